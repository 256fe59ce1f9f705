"""The student as a Flax NNX module: one decoder for every supported family. Mathematics only, no IO.

Everything is written for ONE sequence; callers add axes with `jax.vmap` (over the slots of a group with the
prefix un-batched, over groups, over rows). Shape letters are those of `lalp_jax.data.records`; here also

    S  tokens of the sequence        P  slots of the prefix
    F  feed-forward size             Q  query heads per key-value head, H / K

Parameters are never closed over by a jitted function: split once, ``graphdef, params = nnx.split(decoder)``,
pass `params` in, and ``nnx.merge(graphdef, params)`` inside.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from lalp_jax.student.config import StudentConfig
from lalp_jax.student.sharding import Axes, gathered

QUERY_BLOCK = 512
"""Queries whose scores are held at once; a longer sequence is worked off in blocks of this many."""

INIT_STD = 0.02
"""Standard deviation of freshly drawn weights."""

_MASKED = float(np.finfo(np.float32).min) / 2  # finite: a row that sees nothing becomes an average, not NaN
_NO_WINDOW = 2**30  # wider than any distance between positions


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class KV:
    """Keys (rotated) and values: [L, P, K, d] each; inside one layer [P, K, d]."""

    k: jax.Array
    v: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Prefix:
    """What the tokens of a sequence may look back on, computed once: one prompt, or several in a row.

    Attributes:
      kv: keys and values of P slots.
      positions: int32 [P], the place of each slot in its own prompt.
      owners: int32 [P], id of the prompt a slot belongs to; 0 is padding and never looked at.
    """

    kv: KV
    positions: jax.Array
    owners: jax.Array

    @classmethod
    def of_one(cls, kv: KV, length: jax.Array) -> Prefix:
        """One prompt (id 1) in slots 0 … length-1, at the positions of the same numbers."""
        slots = jnp.arange(kv.k.shape[-3], dtype=jnp.int32)
        return cls(kv, slots, (slots < length).astype(jnp.int32))


def contract(spec: str, a: jax.Array, b: jax.Array, dtype: jnp.dtype | None = None) -> jax.Array:
    """Einsum in the operands' dtype, or accumulated and returned in `dtype`.

    float32 operands are multiplied as float32: the default of GPUs (TF32) and TPUs (bfloat16 passes) is not.
    """
    precision = jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
    return jnp.einsum(spec, a, b, precision=precision, preferred_element_type=dtype)


def rms_norm(x: jax.Array, weight: jax.Array, eps: float) -> jax.Array:
    """Root-mean-square norm over the last axis, in float32; returns x's dtype (weight applied in it)."""
    wide = x.astype(jnp.float32)
    wide = wide * jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + eps)
    return wide.astype(x.dtype) * jnp.expand_dims(weight, range(x.ndim - 1))


def rotary_frequencies(config: StudentConfig) -> np.ndarray:
    """float32 [d / 2]: radians per position of each pair of dimensions; Llama 3.1 slows the long waves."""
    exponents = np.arange(0, config.head_dim, 2, dtype=np.float32) / np.float32(config.head_dim)
    plain = np.float32(1) / np.float32(config.rope_theta) ** exponents
    if config.rope_scaling is None:
        return plain
    rope = config.rope_scaling
    turns = rope.original_max_position_embeddings * plain / np.float32(2 * np.pi)
    share = (turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
    share = np.clip(share, 0, 1)  # of the plain frequency: 1 for short waves, 0 for long ones
    return ((1 - share) * plain / rope.factor + share * plain).astype(np.float32)


Rotation = tuple[jax.Array, jax.Array]
"""Cosines and sines of the rotary angles, float32 [S, d / 2] each."""


def rotation(config: StudentConfig, positions: jax.Array) -> Rotation:
    """The rotary angles of int32 positions [S]."""
    angles = positions.astype(jnp.float32)[:, None] * rotary_frequencies(config)[None, :]
    return jnp.cos(angles), jnp.sin(angles)


def rotate(x: jax.Array, rotation: Rotation) -> jax.Array:
    """Rotary embedding of x [S, …, d] in float32; pairs of dimensions are (j, j + d / 2), as in HF."""
    cos, sin = (jnp.expand_dims(part, range(1, x.ndim - 1)) for part in rotation)
    low, high = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([low * cos - high * sin, high * cos + low * sin], axis=-1).astype(x.dtype)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Place:
    """Where tokens stand: what decides who sees whom. All int32, [S] or scalars of one token."""

    index: jax.Array
    position: jax.Array
    segment: jax.Array
    owner: jax.Array


def _mix(query: jax.Array, parts: list[tuple[KV, jax.Array]]) -> jax.Array:
    """Attention of one token, [K, Q, d], over several sets of keys normalised jointly, without joining them.

    Args:
      parts: keys and values [p, K, d] with a mask [p] of those that are visible.
    """
    scale = query.shape[-1] ** -0.5
    scores = [
        jnp.where(visible[None, None, :], contract("kqd,pkd->kqp", query, kv.k, jnp.float32) * scale, _MASKED)
        for kv, visible in parts
    ]
    top = functools.reduce(jnp.maximum, [jnp.max(s, axis=-1, keepdims=True) for s in scores])
    weights = [jnp.exp(s - jax.lax.stop_gradient(top)) for s in scores]
    total = functools.reduce(jnp.add, [jnp.sum(w, axis=-1, keepdims=True) for w in weights])
    mixed = [
        contract("kqp,pkd->kqd", w.astype(kv.v.dtype), kv.v, jnp.float32)
        for w, (kv, _) in zip(weights, parts, strict=True)
    ]
    return (functools.reduce(jnp.add, mixed) / total).astype(query.dtype)


def attend(
    query: jax.Array, own: KV, prefix: Prefix | None, place: _Place, window: jax.Array | None
) -> jax.Array:
    """Attention [S, K, Q, d] of every token over the prefix and over the tokens of its own segment before it.

    A key is visible while its position is less than `window` behind. Scores of QUERY_BLOCK queries exist at a
    time, in the backward pass too. Padding (segment 0) gets some finite value.
    """

    def attend_one(query: jax.Array, here: _Place) -> jax.Array:
        def near(position: jax.Array) -> jax.Array | bool:
            return True if window is None else here.position - position < window

        mine = (place.segment == here.segment) & (here.segment != 0)
        parts = [(own, mine & (place.index <= here.index) & near(place.position))]
        if prefix is not None:
            parts.append((prefix.kv, (prefix.owners == here.owner) & (prefix.owners != 0) & near(prefix.positions)))
        return _mix(query, parts)

    one = jax.checkpoint(attend_one, prevent_cse=False)
    return jax.lax.map(lambda xs: one(*xs), (query, place), batch_size=QUERY_BLOCK)


class _Parameters:
    """Makes parameters from the names of their axes, which they keep as metadata `axes`.

    The key is our own: under flax's `out_sharding` a Variable would be placed the moment it is made.
    """

    def __init__(self, config: StudentConfig, rngs: nnx.Rngs, dtype: jnp.dtype):
        self.rngs, self.dtype = rngs, dtype
        self.sizes = {
            "layers": config.num_layers,
            "embed": config.hidden_size,
            "norm": config.hidden_size,
            "ffn": config.intermediate_size,
            "kv_heads": config.num_kv_heads,
            "queries_per_kv": config.num_heads // config.num_kv_heads,
            "head_dim": config.head_dim,
            "vocab": config.vocab_size,
        }

    def normal(self, *axes: str) -> nnx.Param:
        shape = self._shape(axes)
        # Drawn flat: the generator in five dimensions takes seconds to compile.
        noise = jax.random.normal(self.rngs.params(), (math.prod(shape),), jnp.float32)
        return nnx.Param((INIT_STD * noise).astype(self.dtype).reshape(shape), axes=axes)

    def ones(self, *axes: str) -> nnx.Param:
        return nnx.Param(jnp.ones(self._shape(axes), self.dtype), axes=axes)

    def zeros(self, *axes: str) -> nnx.Param:
        return nnx.Param(jnp.zeros(self._shape(axes), self.dtype), axes=axes)

    def _shape(self, axes: tuple[str, ...]) -> tuple[int, ...]:
        return tuple(self.sizes[axis] for axis in axes)


class Block(nnx.Module):
    """A layer. Made with the parameters of all layers stacked (leading axis L), run with those of one."""

    def __init__(self, config: StudentConfig, make: _Parameters):
        self.config = config
        heads = ("kv_heads", "queries_per_kv", "head_dim")
        self.attention_norm = make.ones("layers", "norm")
        self.q = make.normal("layers", "embed", *heads)
        self.k = make.normal("layers", "embed", "kv_heads", "head_dim")
        self.v = make.normal("layers", "embed", "kv_heads", "head_dim")
        self.o = make.normal("layers", *heads, "embed")
        if config.attention_bias:
            self.q_bias = make.zeros("layers", *heads)
            self.k_bias = make.zeros("layers", "kv_heads", "head_dim")
            self.v_bias = make.zeros("layers", "kv_heads", "head_dim")
        if config.output_bias:
            self.o_bias = make.zeros("layers", "norm")
        if config.qk_norm:
            self.q_norm = make.ones("layers", "head_dim")
            self.k_norm = make.ones("layers", "head_dim")
        self.ffn_norm = make.ones("layers", "norm")
        self.gate = make.normal("layers", "embed", "ffn")
        self.up = make.normal("layers", "embed", "ffn")
        self.down = make.normal("layers", "ffn", "embed")

    def __call__(
        self, x: jax.Array, turned: Rotation, place: _Place, prefix: Prefix | None, window: jax.Array | None
    ) -> tuple[jax.Array, KV]:
        """x [S, E], prefix of this layer -> x after the layer, keys and values [S, K, d] of these tokens."""
        with jax.named_scope("attention"):
            y = rms_norm(x, self.attention_norm[...], self.config.rms_norm_eps)
            query, own = self._project(y, turned)
            mixed = attend(query, own, prefix, place, window)
            out = contract("skqd,kqde->se", mixed, self.o[...])
            x = x + (out + self.o_bias[...][None] if self.config.output_bias else out)
        with jax.named_scope("ffn"):
            y = rms_norm(x, self.ffn_norm[...], self.config.rms_norm_eps)
            gate, up = contract("se,ef->sf", y, self.gate[...]), contract("se,ef->sf", y, self.up[...])
            return x + contract("sf,fe->se", jax.nn.silu(gate) * up, self.down[...]), own

    def _project(self, y: jax.Array, turned: Rotation) -> tuple[jax.Array, KV]:
        """Rotated queries [S, K, Q, d], rotated keys and values [S, K, d]."""
        q = contract("se,ekqd->skqd", y, self.q[...])
        k = contract("se,ekd->skd", y, self.k[...])
        v = contract("se,ekd->skd", y, self.v[...])
        if self.config.attention_bias:
            q, k, v = q + self.q_bias[...][None], k + self.k_bias[...][None], v + self.v_bias[...][None]
        if self.config.qk_norm:
            q = rms_norm(q, self.q_norm[...], self.config.rms_norm_eps)
            k = rms_norm(k, self.k_norm[...], self.config.rms_norm_eps)
        return rotate(q, turned), KV(k=rotate(k, turned), v=v)


class Decoder(nnx.Module):
    """Token embedding, layers, final norm and head. Computes in the dtype of its parameters.

    Args:
      mesh: where the parameters lie, if on several devices; each layer then gathers its own along fsdp.
    """

    def __init__(
        self,
        config: StudentConfig,
        *,
        rngs: nnx.Rngs,
        param_dtype: jnp.dtype = jnp.float32,
        mesh: Mesh | None = None,
    ):
        make = _Parameters(config, rngs, param_dtype)
        self.config, self.mesh = config, mesh
        self.embedding = make.normal("vocab", "embed")
        self.blocks = Block(config, make)
        self.final_norm = make.ones("norm")
        if not config.tie_embeddings:
            self.output = make.normal("vocab", "embed")

    def __call__(
        self,
        tokens: jax.Array,
        positions: jax.Array,
        segments: jax.Array,
        prefix: Prefix | None = None,
        owners: jax.Array | None = None,
    ) -> tuple[jax.Array, KV]:
        """One sequence through the body.

        Args:
          tokens: int32 [S]; an id outside the vocabulary makes the whole sequence NaN.
          positions: int32 [S], the place of each token for rotary embedding and sliding window.
          segments: int32 [S]; 0 is padding. A token sees those of its own segment at or before its index, and
            the valid slots of the prefix.
          prefix: keys and values that tokens may look back on.
          owners: int32 [S], id of the prompt in the prefix that each token follows; None: all follow prompt 1.

        Returns:
          Hidden states [S, E] after the final norm (those of padding are finite and mean nothing), and the
          keys and values of these tokens, [L, S, K, d]: `Prefix` makes a prefix of them.
        """
        index = jnp.arange(tokens.shape[0], dtype=jnp.int32)
        owners = jnp.ones_like(tokens) if owners is None else owners
        place = _Place(index, positions, segments, owners)
        turned = rotation(self.config, positions)
        graph, layers = nnx.split(self.blocks)

        def layer(x: jax.Array, xs: tuple[nnx.State, Any, Any]) -> tuple[jax.Array, KV]:
            params, remembered, window = xs
            before = None if prefix is None else dataclasses.replace(prefix, kv=remembered)
            return nnx.merge(graph, self._gathered(params))(x, turned, place, before, window)

        x = jnp.take(self._whole(self.embedding), tokens, axis=0)
        # Layer inputs are all that a backward pass keeps. Without one, checkpoint does nothing.
        remembered = None if prefix is None else prefix.kv
        x, kv = jax.lax.scan(
            jax.checkpoint(layer, prevent_cse=False), x, (layers, remembered, self._windows())
        )
        return rms_norm(x, self.final_norm[...], self.config.rms_norm_eps), kv

    def head(self) -> jax.Array:
        """Weights of the head, [V, E]: a row per token of the vocabulary; the embedding itself if tied."""
        return self._whole(self.embedding if self.config.tie_embeddings else self.output)

    def logits(self, hidden: jax.Array) -> jax.Array:
        """Hidden states […, E] -> float32 logits […, V], accumulated in float32 from weights as they are."""
        return contract("...e,ve->...v", hidden, self.head(), jnp.float32)

    def _windows(self) -> np.ndarray | None:
        """int32 [L]: reach of each layer; None if every layer sees all."""
        if self.config.sliding_window is None:
            return None
        return np.where(self.config.sliding_layers, self.config.sliding_window, _NO_WINDOW).astype(np.int32)

    def _whole(self, param: nnx.Param) -> jax.Array:
        return gathered(param[...], self.mesh, param.axes, "embedding or head")

    def _gathered(self, layer: nnx.State) -> nnx.State:
        """One layer's parameters (their first axis already taken off) as they are used."""

        def gather(path: tuple, param: nnx.Variable) -> nnx.Variable:
            axes: Axes = param.axes[1:]
            return param.replace(gathered(param.get_value(), self.mesh, axes, jax.tree_util.keystr(path)))

        return jax.tree.map_with_path(gather, layer, is_leaf=lambda x: isinstance(x, nnx.Variable))

"""Which stored tensor is which parameter: the one table, and the change of shape between the two forms."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np

Bounds = Sequence[tuple[int, int]]
"""Start and end (exclusive) along each axis."""

T = TypeVar("T")

_HEADS = "kv_heads queries_per_kv head_dim"
_KV = "kv_heads head_dim"


@dataclasses.dataclass(frozen=True)
class Entry:
    """How one kind of tensor is stored.

    Attributes:
      name: of the tensor; ``{layer}`` stands for the number of the layer.
      path: of the parameter; it has a leading axis of layers if the name has a layer.
      dims: for each dimension of the tensor the axes of the parameter that lie flat in it, by logical name.
    """

    name: str
    path: tuple[str, ...]
    dims: tuple[str, ...]

    @property
    def layered(self) -> bool:
        """Whether there is such a tensor in every layer."""
        return "{layer}" in self.name

    def names(self, num_layers: int) -> list[str]:
        """Names of the tensors, in the order of the layers."""
        return [self.name.format(layer=layer) for layer in range(num_layers if self.layered else 1)]

    def shape(self, axes: Sequence[str], shape: Sequence[int]) -> tuple[int, ...]:
        """Shape of the tensor, from the axes of the parameter (without layers) and their sizes."""
        return tuple(math.prod(sizes) for sizes in self._grouped(axes, shape))

    def read(self, tensor: Any, axes: Sequence[str], shape: Sequence[int], bounds: Bounds) -> np.ndarray:
        """Cuts a block out of a stored tensor, reading no more, in the parameter's order of axes."""
        cuts = map(_flat_cut, self._grouped(axes, bounds), self._grouped(axes, shape))
        block = tensor[tuple(cuts)]
        lengths = [end - start for start, end in bounds]
        order = self._order(axes)
        return block.reshape([lengths[axis] for axis in order]).transpose(np.argsort(order))

    def write(self, value: np.ndarray, axes: Sequence[str]) -> np.ndarray:
        """The tensor to store for a whole parameter (of one layer)."""
        shape = self.shape(axes, value.shape)
        return np.ascontiguousarray(value.transpose(self._order(axes)).reshape(shape))

    def _order(self, axes: Sequence[str]) -> list[int]:
        return [axes.index(axis) for dim in self.dims for axis in dim.split()]

    def _grouped(self, axes: Sequence[str], values: Sequence[T]) -> list[list[T]]:
        return [[values[axes.index(axis)] for axis in dim.split()] for dim in self.dims]


def _flat_cut(bounds: Bounds, shape: Sequence[int]) -> slice:
    """The cut of axes that lie flat in one dimension; only the outermost of them may be cut."""
    if any(bound != (0, size) for bound, size in itertools.islice(zip(bounds, shape, strict=True), 1, None)):
        raise ValueError(f"cannot cut {bounds} out of {shape}: an inner axis is cut")
    inner = math.prod(shape[1:])
    return slice(bounds[0][0] * inner, bounds[0][1] * inner)


def _layer(name: str, leaf: str, *dims: str) -> Entry:
    return Entry(f"model.layers.{{layer}}.{name}", ("blocks", leaf), dims)


TABLE = (
    Entry("model.embed_tokens.weight", ("embedding",), ("vocab", "embed")),
    Entry("model.norm.weight", ("final_norm",), ("norm",)),
    Entry("lm_head.weight", ("output",), ("vocab", "embed")),
    _layer("input_layernorm.weight", "attention_norm", "norm"),
    _layer("self_attn.q_proj.weight", "q", _HEADS, "embed"),
    _layer("self_attn.k_proj.weight", "k", _KV, "embed"),
    _layer("self_attn.v_proj.weight", "v", _KV, "embed"),
    _layer("self_attn.o_proj.weight", "o", "embed", _HEADS),
    _layer("self_attn.q_proj.bias", "q_bias", _HEADS),
    _layer("self_attn.k_proj.bias", "k_bias", _KV),
    _layer("self_attn.v_proj.bias", "v_bias", _KV),
    _layer("self_attn.o_proj.bias", "o_bias", "norm"),
    _layer("self_attn.q_norm.weight", "q_norm", "head_dim"),
    _layer("self_attn.k_norm.weight", "k_norm", "head_dim"),
    _layer("post_attention_layernorm.weight", "ffn_norm", "norm"),
    _layer("mlp.gate_proj.weight", "gate", "ffn", "embed"),
    _layer("mlp.up_proj.weight", "up", "ffn", "embed"),
    _layer("mlp.down_proj.weight", "down", "embed", "ffn"),
)
"""Tensors of all families and the parameters they fill; a student has those that its config calls for."""

"""The fields of a `config.json`: which are known, what may stand in them, and how each is read.

A field that could change the mathematics and that we do not know is an error; one known to be harmless is
not. Both forms are read as they stand on disk: `rope_theta` with `rope_scaling`, and `rope_parameters`.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from etils import epath

from lalp_jax.errors import InputError

Fields = dict[str, Any]

_SILU = ("silu", "swish")

# fmt: off
_READ = frozenset(
    {
        "model_type", "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers",
        "num_attention_heads", "num_key_value_heads", "head_dim", "rms_norm_eps", "rope_theta",
        "rope_scaling", "rope_parameters", "tie_word_embeddings", "attention_bias", "sliding_window",
        "use_sliding_window", "max_window_layers", "layer_types", "max_position_embeddings",
        "eos_token_id", "torch_dtype", "dtype", "architectures",
    }
)
"""Fields that decide something below."""

_HARMLESS = frozenset(
    {
        # where it comes from and how it was trained
        "_name_or_path", "name_or_path", "transformers_version", "transformers.js_config",
        "is_llama_config", "unsloth_version", "unsloth_fixed", "initializer_range", "attention_dropout",
        "pretraining_tp", "finetuning_task",
        # how a program runs it, not what it computes
        "use_cache", "use_bfloat16", "torchscript", "return_dict", "return_dict_in_generate",
        "output_attentions", "output_hidden_states", "output_scores", "is_decoder", "_attn_implementation",
        "_attn_implementation_autoset", "_attn_implementation_internal", "keys_to_ignore_at_inference",
        "model_max_length", "tokenizer_class", "problem_type", "id2label", "label2id", "num_labels",
        "task_specific_params", "prefix", "tf_legacy_loss",
        # token numbers: the tokenizer has the say
        "bos_token_id", "pad_token_id", "sep_token_id", "unk_token_id", "decoder_start_token_id",
        "forced_bos_token_id", "forced_eos_token_id",
        # how text is sampled
        "max_length", "min_length", "max_new_tokens", "do_sample", "early_stopping", "num_beams",
        "num_beam_groups", "diversity_penalty", "temperature", "top_k", "top_p", "typical_p",
        "repetition_penalty", "length_penalty", "no_repeat_ngram_size", "encoder_no_repeat_ngram_size",
        "bad_words_ids", "num_return_sequences", "remove_invalid_values",
        "exponential_decay_length_penalty", "suppress_tokens", "begin_suppress_tokens",
    }
)
"""Fields that may say what they like."""
# fmt: on

_OFF: Mapping[str, tuple[Any, ...]] = MappingProxyType(
    {
        "hidden_act": _SILU,
        "mlp_bias": (False, None),
        "partial_rotary_factor": (1.0, None),
        "rope_interleaved": (False,),
        "use_mrope": (False,),
        "quantization_config": (None,),
        "compression_config": (None,),
        "auto_map": (None,),
        "is_encoder_decoder": (False,),
        "tie_encoder_decoder": (False,),
        "add_cross_attention": (False,),
        "cross_attention_hidden_size": (None,),
        "chunk_size_feed_forward": (0,),
        "pruned_heads": ({}, None),
    }
)
"""Fields that may only say that what they stand for is off (or, hidden_act, what we compute)."""


@dataclasses.dataclass(frozen=True)
class Llama3Rope:
    """Rotary scaling of Llama 3.1: long waves are slowed by `factor`, short ones kept, the rest blended."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int


@dataclasses.dataclass(frozen=True)
class Family:
    """What a model type leaves unsaid in config.json."""

    qkv_bias: bool | None = False  # None: as `attention_bias` says
    output_bias: bool | None = False
    qk_norm: bool = False
    head_dim: int | None = None  # None: hidden size / heads
    kv_heads_default_to_heads: bool = False
    layered_window: bool = False  # has use_sliding_window, max_window_layers, layer_types
    uniform_window: bool = False  # has sliding_window alone


FAMILIES: Mapping[str, Family] = MappingProxyType(
    {
        "llama": Family(qkv_bias=None, output_bias=None, kv_heads_default_to_heads=True),
        "mistral": Family(uniform_window=True),
        "qwen2": Family(qkv_bias=True, layered_window=True),
        "qwen3": Family(qkv_bias=None, output_bias=None, qk_norm=True, head_dim=128, layered_window=True),
    }
)
"""Supported values of `model_type`."""


def read_json(path: epath.Path) -> Fields:
    """The object that a JSON file holds; InputError naming the file if it holds none."""
    try:
        fields = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise InputError("there is no such file", where=str(path)) from error
    except ValueError as error:
        raise InputError(f"not valid JSON: {error}", where=str(path)) from error
    if not isinstance(fields, dict):
        raise InputError("must hold a JSON object", where=str(path))
    return fields


@dataclasses.dataclass(frozen=True)
class Reader:
    """The fields of one config.json, read with checks; every complaint names file and field."""

    fields: Fields
    file: str

    def wrong(self, field: str, what: str, remedy: str | None = None) -> InputError:
        value = json.dumps(self.fields.get(field))
        return InputError(f"{field} = {value}: {what}", where=self.file, remedy=remedy)

    def family(self) -> Family:
        family = FAMILIES.get(self.fields.get("model_type", ""))
        if family is None:
            raise self.wrong("model_type", f"not supported; supported are {', '.join(FAMILIES)}")
        for name in self.fields.get("architectures") or []:
            if not name.endswith("ForCausalLM"):
                raise self.wrong("architectures", "not a causal language model")
        return family

    def refuse_unknown(self) -> None:
        for field, value in self.fields.items():
            if field in _OFF:
                if value not in _OFF[field]:
                    raise self.wrong(field, f"not supported; only {json.dumps(_OFF[field][0])} is")
            elif field not in _READ | _HARMLESS:
                raise self.wrong(
                    field,
                    "unknown, and it could change what the model computes",
                    "use a model of a supported family; if you know the field to be harmless, remove it",
                )

    def count(self, field: str) -> int:
        value = self.fields.get(field)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise self.wrong(field, "must be a whole number above 0")
        return value

    def positive(self, field: str, default: float) -> float:
        value = self.fields.get(field, default)
        if not isinstance(value, int | float) or isinstance(value, bool) or value <= 0:
            raise self.wrong(field, "must be a number above 0")
        return float(value)

    def flag(self, field: str) -> bool:
        value = self.fields.get(field, False)
        if not isinstance(value, bool):
            raise self.wrong(field, "must be true or false")
        return value

    def heads(self, family: Family) -> tuple[tuple[int, int], int]:
        """Heads and key-value heads; head size."""
        heads = self.count("num_attention_heads")
        unsaid = self.fields.get("num_key_value_heads") is None and family.kv_heads_default_to_heads
        kv_heads = heads if unsaid else self.count("num_key_value_heads")
        if heads % kv_heads:
            raise self.wrong("num_key_value_heads", f"does not divide num_attention_heads = {heads}")
        if self.fields.get("head_dim") is not None:
            head_dim = self.count("head_dim")
        elif family.head_dim is not None and "head_dim" not in self.fields:
            head_dim = family.head_dim
        else:
            if self.count("hidden_size") % heads:
                raise self.wrong("hidden_size", f"num_attention_heads = {heads} does not divide it")
            head_dim = self.count("hidden_size") // heads
        if head_dim % 2:
            raise self.wrong("head_dim", f"rotary embedding needs an even head size, not {head_dim}")
        return (heads, kv_heads), head_dim

    def bias(self, family: Family) -> bool:
        """`attention_bias`, which a family with a fixed bias may only repeat."""
        if family.qkv_bias is None or "attention_bias" not in self.fields:
            return self.flag("attention_bias")
        if self.fields["attention_bias"] != family.qkv_bias:
            raise self.wrong("attention_bias", f"this model type always has {family.qkv_bias}")
        return family.qkv_bias

    def window(self, family: Family, num_layers: int) -> tuple[int | None, tuple[bool, ...]]:
        """Sliding window, if some layer obeys one, and the layers that do."""
        if not (family.layered_window or family.uniform_window):
            for field in ("sliding_window", "use_sliding_window", "layer_types"):
                if self.fields.get(field) not in (None, False, ["full_attention"] * num_layers):
                    raise self.wrong(field, "this model type has no sliding window")
            return None, (False,) * num_layers
        on = self.flag("use_sliding_window") if family.layered_window else True
        on = on and self.fields.get("sliding_window", 4096) is not None
        layers = self._sliding_layers(family, num_layers, on)
        if not any(layers):
            return None, layers
        window = self.count("sliding_window") if "sliding_window" in self.fields else 4096
        return window, layers

    def _sliding_layers(self, family: Family, num_layers: int, on: bool) -> tuple[bool, ...]:
        first = self.fields.get("max_window_layers", 28) if family.layered_window else 0
        sliding = tuple(on and layer >= first for layer in range(num_layers))
        kinds = self.fields.get("layer_types")
        if kinds is None:
            return sliding
        if len(kinds) != num_layers or not set(kinds) <= {"full_attention", "sliding_attention"}:
            raise self.wrong("layer_types", f"must name full or sliding_attention for {num_layers} layers")
        named = tuple(kind == "sliding_attention" for kind in kinds)
        if (family.uniform_window and named != sliding) or (any(named) and not on):
            raise self.wrong("layer_types", "does not agree with the sliding window fields")
        return named

    def _rope(self) -> Fields:
        """Old `rope_scaling` (with `type` or `rope_type`) and new `rope_parameters` in one form."""
        old, new = self.fields.get("rope_scaling"), self.fields.get("rope_parameters")
        for field, value in (("rope_scaling", old), ("rope_parameters", new)):
            if value is not None and not isinstance(value, dict):
                raise self.wrong(field, "must be an object")
        if old and new and old != new:
            raise self.wrong("rope_scaling", "differs from rope_parameters in the same file")
        rope = dict(new or old or {})
        kind = rope.pop("type", None)
        rope.setdefault("rope_type", kind or "default")
        return rope

    def _rope_field(self) -> str:
        return "rope_parameters" if self.fields.get("rope_parameters") else "rope_scaling"

    def rope_theta(self) -> float:
        inner, outer = self._rope().get("rope_theta"), self.fields.get("rope_theta")
        if inner is not None and outer is not None and inner != outer:
            raise self.wrong("rope_theta", f"but {self._rope_field()} says {inner}")
        theta = next((value for value in (inner, outer) if value is not None), 10000.0)
        if not isinstance(theta, int | float) or theta <= 0:
            field = "rope_theta" if inner is None else self._rope_field()
            raise self.wrong(field, "rope_theta must be a number above 0")
        return float(theta)

    def rope_scaling(self) -> Llama3Rope | None:
        rope, field = self._rope(), self._rope_field()
        rope.pop("rope_theta", None)
        if rope.pop("partial_rotary_factor", 1.0) != 1.0:
            raise self.wrong(field, "partial_rotary_factor is not supported")
        kind = rope.pop("rope_type")
        if kind == "default" and not rope:
            return None
        if kind != "llama3":
            raise self.wrong(field, "only rope types default and llama3 are supported, without other entries")
        rope.setdefault("original_max_position_embeddings", self.fields.get("max_position_embeddings"))
        names = {entry.name for entry in dataclasses.fields(Llama3Rope)}
        if set(rope) != names:
            raise self.wrong(field, f"llama3 needs exactly {', '.join(sorted(names))}")
        if not all(isinstance(value, int | float) and value > 0 for value in rope.values()):
            raise self.wrong(field, "every entry must be a number above 0")
        if not rope["high_freq_factor"] > rope["low_freq_factor"]:
            raise self.wrong(field, "high_freq_factor must be above low_freq_factor")
        return Llama3Rope(**rope)

"""What the student is: everything of its `config.json` that decides the mathematics, and what that costs."""

from __future__ import annotations

import dataclasses

from etils import epath

from lalp_jax.student.fields import FAMILIES, Fields, Llama3Rope, Reader, read_json


@dataclasses.dataclass(frozen=True)
class StudentConfig:
    """Everything that decides the mathematics, and the little else that callers ask for. Hashable.

    Attributes:
      attention_bias: queries, keys and values have a bias.
      output_bias: so has the projection after attention.
      qk_norm: queries and keys are normalised per head.
      sliding_window: a key is visible while its position is less than this behind; None: always.
      sliding_layers: which layers obey `sliding_window`; one entry per layer, all False without a window.
      max_positions: longest sequence the student was made for; a statement, not a limit of the mathematics.
      eos_token_ids: tokens that end a turn, those of generation_config.json first.
      stored_dtype: dtype of the weights as config.json names it.
    """

    model_type: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rms_norm_eps: float
    rope_theta: float
    rope_scaling: Llama3Rope | None
    tie_embeddings: bool
    attention_bias: bool
    output_bias: bool
    qk_norm: bool
    sliding_window: int | None
    sliding_layers: tuple[bool, ...]
    max_positions: int
    eos_token_ids: tuple[int, ...]
    stored_dtype: str


def read_config(directory: epath.PathLike) -> StudentConfig:
    """Reads config.json (and the end-of-turn tokens of generation_config.json) of a model directory.

    Raises:
      InputError: no such file, a model type or a field that is not supported, a value out of range.
    """
    directory = epath.Path(directory)
    fields = read_json(directory / "config.json")
    reader = Reader(fields, str(directory / "config.json"))
    family = reader.family()
    reader.refuse_unknown()
    generation = directory / "generation_config.json"
    generation_eos = read_json(generation).get("eos_token_id") if generation.exists() else None
    heads, head_dim = reader.heads(family)
    num_layers = reader.count("num_hidden_layers")
    window, sliding_layers = reader.window(family, num_layers)
    bias = reader.bias(family)
    return StudentConfig(
        model_type=fields["model_type"],
        vocab_size=reader.count("vocab_size"),
        hidden_size=reader.count("hidden_size"),
        intermediate_size=reader.count("intermediate_size"),
        num_layers=num_layers,
        num_heads=heads[0],
        num_kv_heads=heads[1],
        head_dim=head_dim,
        rms_norm_eps=reader.positive("rms_norm_eps", 1e-6),
        rope_theta=reader.rope_theta(),
        rope_scaling=reader.rope_scaling(),
        tie_embeddings=reader.flag("tie_word_embeddings"),
        attention_bias=bias if family.qkv_bias is None else family.qkv_bias,
        output_bias=bias if family.output_bias is None else family.output_bias,
        qk_norm=family.qk_norm,
        sliding_window=window,
        sliding_layers=sliding_layers,
        max_positions=reader.count("max_position_embeddings"),
        eos_token_ids=tuple(dict.fromkeys([*_ids(generation_eos), *_ids(fields.get("eos_token_id"))])),
        stored_dtype=str(fields.get("dtype") or fields.get("torch_dtype") or "float32"),
    )


def config_json(config: StudentConfig) -> Fields:
    """The config.json that `read_config` reads as `config` and transformers as the same model."""
    family, rope = FAMILIES[config.model_type], config.rope_scaling
    names = {"llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2", "qwen3": "Qwen3"}
    fields: Fields = {
        "architectures": [f"{names[config.model_type]}ForCausalLM"],
        "model_type": config.model_type,
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "rms_norm_eps": config.rms_norm_eps,
        "rope_theta": config.rope_theta,
        "rope_scaling": None if rope is None else {"rope_type": "llama3", **dataclasses.asdict(rope)},
        "tie_word_embeddings": config.tie_embeddings,
        "max_position_embeddings": config.max_positions,
        "eos_token_id": list(config.eos_token_ids) or None,
        "dtype": config.stored_dtype,
    }
    if family.qkv_bias is None:
        fields["attention_bias"] = config.attention_bias
    if family.uniform_window or family.layered_window:
        fields["sliding_window"] = config.sliding_window
    if family.layered_window:
        kinds = ("full_attention", "sliding_attention")
        fields["use_sliding_window"] = config.sliding_window is not None
        fields["layer_types"] = [kinds[sliding] for sliding in config.sliding_layers]
    return fields


def parameter_count(config: StudentConfig) -> int:
    """Number of parameters, a tied head counted once."""
    per_layer = _layer_matrix_size(config) + 2 * config.hidden_size
    if config.attention_bias:
        per_layer += (config.num_heads + 2 * config.num_kv_heads) * config.head_dim
    if config.output_bias:
        per_layer += config.hidden_size
    if config.qk_norm:
        per_layer += 2 * config.head_dim
    tables = 1 if config.tie_embeddings else 2
    return config.num_layers * per_layer + config.hidden_size * (1 + tables * config.vocab_size)


def body_flops_per_token(config: StudentConfig) -> int:
    """Forward FLOPs of one token in all layers: 2 per weight of a matrix; attention itself is not counted."""
    return 2 * config.num_layers * _layer_matrix_size(config)


def head_flops_per_token(config: StudentConfig) -> int:
    """Forward FLOPs of the logits of one token."""
    return 2 * config.vocab_size * config.hidden_size


def _layer_matrix_size(config: StudentConfig) -> int:
    attention = 2 * config.head_dim * (config.num_heads + config.num_kv_heads)
    return config.hidden_size * (attention + 3 * config.intermediate_size)


def _ids(value: int | list[int] | None) -> list[int]:
    return [value] if isinstance(value, int) else list(value or [])

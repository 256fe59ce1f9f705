"""Reading config.json: every field counts, unknown ones are refused, old and new forms say the same."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from flax import nnx
from students import FAMILIES, LLAMA3_ROPE, make_student

from lalp_jax.errors import InputError
from lalp_jax.student.config import (
    Llama3Rope,
    StudentConfig,
    body_flops_per_token,
    config_json,
    head_flops_per_token,
    parameter_count,
    read_config,
)
from lalp_jax.student.hf import init_student
from lalp_jax.student.model import Decoder, rotary_frequencies

# As they stand in published models; what is not mathematics is left in to show that it is let through.
QWEN25 = {
    "architectures": ["Qwen2ForCausalLM"],
    "attention_dropout": 0.0,
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "hidden_act": "silu",
    "hidden_size": 3584,
    "initializer_range": 0.02,
    "intermediate_size": 18944,
    "max_position_embeddings": 32768,
    "max_window_layers": 28,
    "model_type": "qwen2",
    "num_attention_heads": 28,
    "num_hidden_layers": 28,
    "num_key_value_heads": 4,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "sliding_window": 131072,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.43.1",
    "use_cache": True,
    "use_mrope": False,
    "use_sliding_window": False,
    "vocab_size": 152064,
}
QWEN3 = {
    "architectures": ["Qwen3ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 1024,
    "initializer_range": 0.02,
    "intermediate_size": 3072,
    "max_position_embeddings": 40960,
    "max_window_layers": 28,
    "model_type": "qwen3",
    "num_attention_heads": 16,
    "num_hidden_layers": 28,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "sliding_window": None,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.51.0",
    "use_cache": True,
    "use_sliding_window": False,
    "vocab_size": 151936,
}
LLAMA31 = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 128000,
    "eos_token_id": [128001, 128008, 128009],
    "hidden_act": "silu",
    "hidden_size": 4096,
    "initializer_range": 0.02,
    "intermediate_size": 14336,
    "max_position_embeddings": 131072,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    "rope_theta": 500000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.42.3",
    "use_cache": True,
    "vocab_size": 128256,
}
MISTRAL = {
    "architectures": ["MistralForCausalLM"],
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "initializer_range": 0.02,
    "intermediate_size": 14336,
    "max_position_embeddings": 32768,
    "model_type": "mistral",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05,
    "rope_theta": 10000.0,
    "sliding_window": 4096,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.34.0.dev0",
    "use_cache": True,
    "vocab_size": 32000,
}
PUBLISHED = {"qwen2": QWEN25, "qwen3": QWEN3, "llama": LLAMA31, "mistral": MISTRAL}
# Parameters as their publishers count them (weights of the checkpoint, a tied head once).
PUBLISHED_SIZES = {
    "qwen2": 7_615_616_512,
    "qwen3": 596_049_920,
    "llama": 8_030_261_248,
    "mistral": 7_241_732_096,
}


def tiny_config(**changes) -> StudentConfig:
    """A small configuration with everything that can be on, on; also used by other tests."""
    base = StudentConfig(
        model_type="qwen3",
        vocab_size=384,
        hidden_size=32,
        intermediate_size=48,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        head_dim=8,
        rms_norm_eps=1e-6,
        rope_theta=10000.0,
        rope_scaling=None,
        tie_embeddings=False,
        attention_bias=True,
        output_bias=True,
        qk_norm=True,
        sliding_window=None,
        sliding_layers=(False, False),
        max_positions=4096,
        eos_token_ids=(0,),
        stored_dtype="float32",
    )
    return dataclasses.replace(base, **changes)


def write(directory, fields, generation=None):
    (directory / "config.json").write_text(json.dumps(fields))
    if generation is not None:
        (directory / "generation_config.json").write_text(json.dumps(generation))
    return directory


def read(directory, fields, **changes):
    return read_config(write(directory, {**fields, **changes}))


@pytest.mark.parametrize("family", PUBLISHED)
def test_published_configs(family, tmp_path):
    config = read(tmp_path, PUBLISHED[family])
    fields = PUBLISHED[family]
    assert config.model_type == family
    assert config.hidden_size == fields["hidden_size"]
    assert config.rope_theta == fields["rope_theta"]
    assert config.tie_embeddings == fields["tie_word_embeddings"]
    assert config.stored_dtype == "bfloat16"
    assert config.head_dim == 128
    assert (config.attention_bias, config.output_bias) == (family == "qwen2", False)
    assert config.qk_norm == (family == "qwen3")
    assert config.sliding_window == (4096 if family == "mistral" else None)
    assert config.sliding_layers == (family == "mistral",) * fields["num_hidden_layers"]
    assert parameter_count(config) == PUBLISHED_SIZES[family]
    assert hash(config) == hash(read(tmp_path, PUBLISHED[family]))


def test_llama3_rope_is_read(tmp_path):
    assert read(tmp_path, LLAMA31).rope_scaling == Llama3Rope(8.0, 1.0, 4.0, 8192)


CHANGES = [
    (QWEN25, "vocab_size", 1000),
    (QWEN25, "hidden_size", 5600),
    (QWEN25, "intermediate_size", 1000),
    (QWEN25, "num_hidden_layers", 2),
    (QWEN25, "num_attention_heads", 56),
    (QWEN25, "num_key_value_heads", 14),
    (QWEN25, "head_dim", 64),
    (QWEN25, "rms_norm_eps", 1e-5),
    (QWEN25, "rope_theta", 10000.0),
    (QWEN25, "tie_word_embeddings", True),
    (QWEN25, "max_position_embeddings", 4096),
    (QWEN25, "eos_token_id", 7),
    (QWEN25, "torch_dtype", "float32"),
    (QWEN25, "dtype", "float32"),
    (QWEN3, "attention_bias", True),
    (MISTRAL, "sliding_window", 2048),
    (MISTRAL, "sliding_window", None),
    (LLAMA31, "attention_bias", True),
    (LLAMA31, "rope_scaling", None),
    *[
        (LLAMA31, "rope_scaling", {**LLAMA31["rope_scaling"], name: 2.0})
        for name in ("factor", "low_freq_factor", "high_freq_factor")
    ],
    (LLAMA31, "rope_scaling", {**LLAMA31["rope_scaling"], "original_max_position_embeddings": 4096}),
    ({**QWEN25, "use_sliding_window": True, "max_window_layers": 4}, "max_window_layers", 5),
    ({**QWEN25, "use_sliding_window": True, "max_window_layers": 4}, "sliding_window", 100),
    ({**QWEN25, "max_window_layers": 4}, "use_sliding_window", True),
    ({**QWEN25, "use_sliding_window": True}, "layer_types", ["full_attention", "sliding_attention"] * 14),
]


@pytest.mark.parametrize(("fields", "name", "value"), CHANGES, ids=lambda v: str(v)[:24])
def test_every_field_that_is_read_counts(fields, name, value, tmp_path):
    assert read(tmp_path, fields) != read(tmp_path, fields, **{name: value})


@pytest.fixture(scope="module")
def tiny():
    return init_student(tiny_config(), 0, "float32")


@pytest.mark.parametrize(
    "change",
    [
        {"rms_norm_eps": 1e-2},
        {"rope_theta": 100.0},
        {"rope_scaling": Llama3Rope(8.0, 1.0, 4.0, 16)},
        {"sliding_window": 3, "sliding_layers": (True, True)},
        {"sliding_window": 3, "sliding_layers": (True, False)},
        {"sliding_window": 3, "sliding_layers": (False, True)},
    ],
    ids=str,
)
def test_every_number_that_shapes_do_not_show_changes_the_output(change, tiny):
    """With the same weights. What changes shapes or the set of tensors makes loading fail instead."""
    assert np.abs(output(tiny, tiny_config(**change)) - output(tiny, tiny.config)).max() > 1e-4


def output(student, config):
    """Hidden states of the student's weights under another configuration of the same shapes."""
    graphdef, _ = nnx.split(nnx.eval_shape(lambda: Decoder(config, rngs=nnx.Rngs(0))))
    positions = np.arange(24, dtype=np.int32)
    run = jax.jit(
        lambda params: nnx.merge(graphdef, params)(positions * 7, positions, np.ones_like(positions))
    )
    return np.asarray(run(student.params)[0])


def test_old_and_new_rope_fields_say_the_same(tmp_path):
    new = {name: value for name, value in LLAMA31.items() if name not in ("rope_scaling", "rope_theta")}
    new["rope_parameters"] = {**LLAMA31["rope_scaling"], "rope_theta": 500000.0}
    older = {**LLAMA31, "rope_scaling": {**LLAMA31["rope_scaling"], "type": "llama3"}}
    del older["rope_scaling"]["rope_type"]
    assert read(tmp_path, new) == read(tmp_path, LLAMA31) == read(tmp_path, older)
    plain = {**QWEN25, "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0}}
    assert read(tmp_path, plain) == read(tmp_path, QWEN25)


@pytest.mark.parametrize("family", FAMILIES)
def test_config_as_transformers_writes_it_now(family, torch, tmp_path):
    reference = make_student(tmp_path, family)
    config = read_config(tmp_path)
    assert config.head_dim == FAMILIES[family].get("head_dim", 16)
    assert config.sliding_window == FAMILIES[family].get("sliding_window")
    assert parameter_count(config) == reference.num_parameters()
    expected = reference.model.rotary_emb.inv_freq.numpy()
    np.testing.assert_allclose(rotary_frequencies(config), expected, rtol=5e-7)


def test_rotary_frequencies_of_real_sizes(torch, tmp_path):
    """Long waves, short ones, and those between, against transformers' own."""
    import transformers

    for fields in PUBLISHED.values():
        write(tmp_path, fields)
        config = transformers.AutoConfig.from_pretrained(tmp_path)
        with torch.device("meta"):
            model = transformers.AutoModelForCausalLM.from_config(config)
        with torch.device("cpu"):
            rotary = type(model.model.rotary_emb)(config)
        np.testing.assert_allclose(
            rotary_frequencies(read_config(tmp_path)), rotary.inv_freq.numpy(), rtol=5e-7
        )


def test_missing_fields_take_the_family_defaults(tmp_path):
    first_llama = {
        name: value
        for name, value in LLAMA31.items()
        if name
        not in ("num_key_value_heads", "rope_theta", "rope_scaling", "rms_norm_eps", "tie_word_embeddings")
    }
    config = read(tmp_path, first_llama)
    assert (config.num_kv_heads, config.rope_theta, config.rms_norm_eps) == (32, 10000.0, 1e-6)
    assert not config.tie_embeddings
    del (fields := dict(QWEN3))["head_dim"]
    assert read(tmp_path, fields, hidden_size=1024).head_dim == 128
    assert read(tmp_path, {**LLAMA31, "head_dim": None}).head_dim == 128


def test_end_of_turn_tokens(tmp_path):
    write(tmp_path, QWEN25, generation={"eos_token_id": [151645, 151643]})
    assert read_config(tmp_path).eos_token_ids == (151645, 151643)
    write(tmp_path, {**QWEN25, "eos_token_id": 5}, generation={"eos_token_id": 6})
    assert read_config(tmp_path).eos_token_ids == (6, 5)
    write(tmp_path, {**QWEN25, "eos_token_id": None}, generation={"do_sample": True})
    assert read_config(tmp_path).eos_token_ids == ()


REFUSED = [
    (QWEN25, "model_type", "gpt2", "supported are llama, mistral, qwen2, qwen3"),
    (QWEN25, "architectures", ["Qwen2ForSequenceClassification"], "causal"),
    (QWEN25, "logit_scale", 0.5, "unknown"),
    (QWEN25, "hidden_act", "gelu", "silu"),
    (QWEN25, "quantization_config", {"quant_method": "awq"}, "not supported"),
    (QWEN25, "auto_map", {"AutoModel": "x.Y"}, "not supported"),
    (QWEN25, "attention_bias", False, "always has True"),
    (QWEN25, "num_key_value_heads", 3, "does not divide"),
    (QWEN25, "num_key_value_heads", None, "whole number"),
    (QWEN25, "hidden_size", 3585, "does not divide"),
    (QWEN25, "hidden_size", "3584", "whole number"),
    (QWEN25, "vocab_size", True, "whole number"),
    (QWEN25, "rms_norm_eps", 0, "above 0"),
    (QWEN25, "rope_theta", -1, "above 0"),
    (QWEN25, "tie_word_embeddings", "no", "true or false"),
    (QWEN25, "layer_types", ["sliding_attention"] * 28, "agree"),
    (QWEN25, "layer_types", ["full_attention"] * 3, "28 layers"),
    (QWEN25, "layer_types", ["linear_attention"] * 28, "28 layers"),
    (QWEN3, "head_dim", 127, "even"),
    (LLAMA31, "mlp_bias", True, "not supported"),
    (LLAMA31, "partial_rotary_factor", 0.5, "not supported"),
    (LLAMA31, "sliding_window", 128, "no sliding window"),
    (LLAMA31, "rope_scaling", {"rope_type": "yarn", "factor": 4.0}, "rope types"),
    (LLAMA31, "rope_scaling", {"type": "linear", "factor": 4.0}, "rope types"),
    (LLAMA31, "rope_scaling", {"rope_type": "default", "factor": 4.0}, "rope types"),
    (LLAMA31, "rope_scaling", {"rope_type": "llama3", "factor": 4.0}, "exactly"),
    (LLAMA31, "rope_scaling", {**LLAMA31["rope_scaling"], "attention_factor": 2.0}, "exactly"),
    (LLAMA31, "rope_scaling", {**LLAMA31["rope_scaling"], "rope_theta": 2.0}, "rope_scaling says 2.0"),
    (LLAMA31, "rope_scaling", {**LLAMA31["rope_scaling"], "low_freq_factor": 4.0}, "above"),
    (LLAMA31, "rope_scaling", "llama3", "object"),
    (LLAMA31, "rope_parameters", {"rope_type": "default", "rope_theta": 500000.0}, "differs"),
    (MISTRAL, "layer_types", ["full_attention"] * 32, "agree"),
]


@pytest.mark.parametrize(("fields", "name", "value", "message"), REFUSED, ids=lambda v: str(v)[:24])
def test_what_we_cannot_compute_is_refused_by_name(fields, name, value, message, tmp_path):
    with pytest.raises(InputError, match=message) as caught:
        read(tmp_path, fields, **{name: value})
    assert name in caught.value.what
    assert caught.value.where == str(tmp_path / "config.json")


def test_unreadable_files(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        read_config(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(InputError, match="not valid JSON"):
        read_config(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(InputError, match="JSON object"):
        read_config(tmp_path)


WRITTEN = [
    *PUBLISHED.values(),
    {**QWEN25, "use_sliding_window": True, "max_window_layers": 4, "sliding_window": 99},
]


@pytest.mark.parametrize("fields", WRITTEN, ids=lambda f: f["model_type"])
def test_written_config_is_read_back(fields, torch, tmp_path):
    import transformers

    config = read(tmp_path, fields)
    assert read_config(write(tmp_path, config_json(config))) == config
    theirs = transformers.AutoConfig.from_pretrained(tmp_path)
    original = transformers.AutoConfig.from_pretrained(write(tmp_path, fields))
    for name in ("hidden_size", "rope_parameters", "tie_word_embeddings", "sliding_window", "rms_norm_eps"):
        assert getattr(theirs, name, None) == getattr(original, name, None), name


def test_counts(tiny):
    config, student = tiny.config, tiny
    assert parameter_count(config) == sum(leaf.size for leaf in jax.tree.leaves(student.params))
    blocks = student.params["blocks"]
    matrices = sum(blocks[name].size for name in ("q", "k", "v", "o", "gate", "up", "down"))
    assert body_flops_per_token(config) == 2 * matrices
    assert head_flops_per_token(config) == 2 * student.params["output"].size


def test_llama3_rope_constants():
    """The test students scale within the lengths that the tests use."""
    assert LLAMA3_ROPE["original_max_position_embeddings"] < 2048

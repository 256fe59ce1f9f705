"""Weights in and out: exact both ways, strict in every way a checkpoint can be wrong."""

import json
import pathlib

import jax
import ml_dtypes
import numpy as np
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file
from students import FAMILIES, make_student, tiny_tokenizer
from test_student_config import tiny_config

from lalp_jax.errors import InputError
from lalp_jax.student import hf
from lalp_jax.student.config import read_config
from lalp_jax.student.hf import fingerprint, init_student, load_student, resolve_student, save_student
from lalp_jax.student.tensors import Entry

EVERYTHING = {
    "qwen2": {"tie_word_embeddings": False},
    "qwen3": {"attention_bias": True, "tie_word_embeddings": True},
    "llama": {"attention_bias": True},
    "mistral": {},
}


def leaves(student):
    return {"/".join(path): np.asarray(leaf[...]) for path, leaf in nnx.to_flat_state(student.params)}


def assert_same(one, other):
    one, other = leaves(one), leaves(other)
    assert one.keys() == other.keys()
    for name in one:
        assert one[name].dtype == other[name].dtype
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)


def tensors_of(directory):
    return {
        name: value
        for file in sorted(directory.glob("*.safetensors"))
        for name, value in load_file(file).items()
    }


@pytest.fixture
def saved(torch, tmp_path):
    """A directory with an untied qwen2 student, and its tensors to play with."""
    make_student(tmp_path, "qwen2", tie_word_embeddings=False)
    return tmp_path


@pytest.mark.parametrize("family", FAMILIES)
def test_export_is_the_same_model_for_transformers(family, torch, tmp_path):
    import transformers

    reference = make_student(tmp_path / "in", family, **EVERYTHING[family])
    student = load_student(tmp_path / "in", dtype="float32")
    save_student(student, tmp_path / "out")
    assert_same(load_student(tmp_path / "out", dtype="float32"), student)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    expected, got = reference.state_dict(), theirs.state_dict()
    assert expected.keys() == got.keys()
    assert all(torch.equal(expected[name], got[name]) for name in expected)
    assert (tmp_path / "out/config.json").read_bytes() == (tmp_path / "in/config.json").read_bytes()


def test_made_students_are_saved_and_read_by_both(torch, tmp_path):
    import transformers

    for config in (tiny_config(), tiny_config(tie_embeddings=True, attention_bias=False, output_bias=False)):
        student = init_student(config, 0, "float32")
        save_student(student, tmp_path)
        again = load_student(tmp_path, dtype="float32")
        assert again.config == config
        assert_same(again, student)
        theirs, info = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
        assert not info["missing_keys"]
        assert not info["unexpected_keys"]
        query = theirs.model.layers[1].self_attn.q_proj.weight.detach().numpy()
        q = leaves(student)["blocks/q"][1]
        np.testing.assert_array_equal(query, q.reshape(config.hidden_size, -1).T)


def test_seeds_make_students():
    one, same, other = (init_student(tiny_config(), seed, "float32") for seed in (3, 3, 4))
    assert_same(one, same)
    assert not np.array_equal(leaves(one)["embedding"], leaves(other)["embedding"])
    assert abs(leaves(one)["embedding"].std() - 0.02) < 1e-3


def test_bfloat16_storage(torch, tmp_path):
    reference = make_student(tmp_path / "in", "qwen3", dtype="bfloat16")
    narrow = load_student(tmp_path / "in", dtype="bfloat16")
    wide = load_student(tmp_path / "in", dtype="float32")
    stored = reference.model.embed_tokens.weight.detach().float().numpy()
    np.testing.assert_array_equal(leaves(wide)["embedding"], stored)
    np.testing.assert_array_equal(leaves(narrow)["embedding"].astype(np.float32), stored)
    save_student(narrow, tmp_path / "out")
    before, after = tensors_of(tmp_path / "in"), tensors_of(tmp_path / "out")
    assert before.keys() == after.keys()
    assert all(before[name].tobytes() == after[name].tobytes() for name in before)
    # float32 weights of a student stored in bfloat16: nothing is rounded, and config.json says so.
    save_student(wide, tmp_path / "wide")
    fields = [json.loads((tmp_path / name / "config.json").read_text()) for name in ("in", "wide")]
    assert fields[1] == {**fields[0], "dtype": "float32"}
    assert_same(load_student(tmp_path / "wide", dtype="float32"), wide)


def test_float32_storage_is_rounded_once(saved):
    """As numpy rounds: to the nearest, ties to even."""
    wide, narrow = load_student(saved, dtype="float32"), load_student(saved, dtype="bfloat16")
    for name, value in leaves(wide).items():
        np.testing.assert_array_equal(leaves(narrow)[name], value.astype(ml_dtypes.bfloat16), err_msg=name)


def test_several_files(torch, tmp_path, monkeypatch):
    import transformers

    make_student(tmp_path / "one", "llama")
    make_student(tmp_path / "many", "llama", max_shard_size="50KB")
    assert len(list((tmp_path / "many").glob("*.safetensors"))) > 2
    student = load_student(tmp_path / "many", dtype="float32")
    assert_same(student, load_student(tmp_path / "one", dtype="float32"))
    monkeypatch.setattr(hf, "SHARD_BYTES", 60_000)
    save_student(student, tmp_path / "out")
    files = list((tmp_path / "out").glob("model-*-of-*.safetensors"))
    assert len(files) > 2
    assert not (tmp_path / "out/model.safetensors").exists()
    assert_same(load_student(tmp_path / "out", dtype="float32"), student)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    embedding = theirs.model.embed_tokens.weight.detach().numpy()
    np.testing.assert_array_equal(embedding, leaves(student)["embedding"])
    monkeypatch.undo()
    save_student(student, tmp_path / "out")  # no file of the earlier, larger save is left behind
    assert [path.name for path in (tmp_path / "out").glob("*.safetensors*")] == ["model.safetensors"]


def test_tokenizer_and_generation_settings_go_along(torch, tmp_path):
    import transformers

    make_student(tmp_path / "in", "qwen2", tokenizer=True)
    student = load_student(tmp_path / "in", dtype="float32")
    save_student(student, tmp_path / "out")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    turns = [{"role": "user", "content": "12 and 30?"}]
    rendered = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    assert rendered == tiny_tokenizer().apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    assert (tmp_path / "out/generation_config.json").exists()
    assert not (tmp_path / "out/model.safetensors.index.json").exists()


def test_missing_tensor(saved):
    tensors = tensors_of(saved)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, saved / "model.safetensors")
    with pytest.raises(InputError, match=r"model\.layers\.1\.mlp\.up_proj\.weight is missing") as caught:
        load_student(saved, dtype="float32")
    assert "model.safetensors" in caught.value.where


SURPLUS = [
    "model.layers.2.mlp.up_proj.weight",
    "model.layers.0.self_attn.q_norm.weight",
    "score.weight",
    "head",
]


@pytest.mark.parametrize("name", SURPLUS)
def test_surplus_tensor(name, saved):
    save_file({**tensors_of(saved), name: np.zeros((96, 64), np.float32)}, saved / "model.safetensors")
    with pytest.raises(InputError, match=name):
        load_student(saved, dtype="float32")


@pytest.mark.parametrize("name", ["model.layers.0.mlp.up_proj.weight", "model.norm.weight", "lm_head.weight"])
def test_wrong_shape(name, saved):
    tensors = tensors_of(saved)
    tensors[name] = np.ascontiguousarray(tensors[name].T) if tensors[name].ndim > 1 else tensors[name][1:]
    save_file(tensors, saved / "model.safetensors")
    with pytest.raises(InputError, match=f"{name} has shape") as caught:
        load_student(saved, dtype="float32")
    assert str(tensors[name].shape) in caught.value.what


def test_every_shape_field_is_held_against_the_weights(saved):
    """config.json cannot lie about a size: some tensor gives it away."""
    original = json.loads((saved / "config.json").read_text())
    changes = {
        "vocab_size": 383,
        "hidden_size": 128,
        "intermediate_size": 95,
        "num_hidden_layers": 1,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 32,
        "tie_word_embeddings": True,
        "model_type": "llama",
    }
    for field, value in changes.items():
        fields = {**original, field: value}
        if field == "num_hidden_layers":
            del fields["layer_types"]
        (saved / "config.json").write_text(json.dumps(fields))
        with pytest.raises(InputError, match="tensor"):
            load_student(saved, dtype="float32")


def test_wrong_kind(saved):
    tensors = tensors_of(saved)
    tensors["model.norm.weight"] = tensors["model.norm.weight"].astype(np.int8)
    save_file(tensors, saved / "model.safetensors")
    with pytest.raises(InputError, match=r"model.norm.weight is stored as I8"):
        load_student(saved, dtype="float32")


def test_harmless_surplus(torch, tmp_path):
    make_student(tmp_path, "qwen2")
    student, tensors = load_student(tmp_path, dtype="float32"), tensors_of(tmp_path)
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.zeros(8, np.float32)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()
    save_file(tensors, tmp_path / "model.safetensors")
    assert_same(load_student(tmp_path, dtype="float32"), student)
    tensors["lm_head.weight"][3, 3] += 1  # tied says config.json, but the head is another
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match=r"lm_head\.weight"):
        load_student(tmp_path, dtype="float32")


def test_broken_files(saved):
    whole = (saved / "model.safetensors").read_bytes()
    (saved / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="not a whole safetensors file"):
        load_student(saved, dtype="float32")
    (saved / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"no model\.safetensors"):
        load_student(saved, dtype="float32")
    (saved / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(InputError, match=r"pickled.*\n.*save_pretrained"):
        load_student(saved, dtype="float32")


def test_broken_index(torch, tmp_path):
    make_student(tmp_path, "qwen2", max_shard_size="50KB")
    index = tmp_path / "model.safetensors.index.json"
    fields = json.loads(index.read_text())
    gone = sorted(set(fields["weight_map"].values()))[1]
    (tmp_path / gone).rename(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="missing") as caught:
        load_student(tmp_path, dtype="float32")
    assert gone in caught.value.where
    fields["weight_map"]["model.norm.weight"] = "../x.safetensors"
    index.write_text(json.dumps(fields))
    with pytest.raises(InputError, match="other than a file beside it"):
        load_student(tmp_path, dtype="float32")
    index.write_text("{}")
    with pytest.raises(InputError, match="weight_map"):
        load_student(tmp_path, dtype="float32")


def test_a_tensor_in_two_files(torch, tmp_path):
    make_student(tmp_path, "qwen2", max_shard_size="50KB")
    first, second = sorted(tmp_path.glob("*.safetensors"))[:2]
    save_file({**load_file(second), **load_file(first)}, second)
    with pytest.raises(InputError, match="too"):
        load_student(tmp_path, dtype="float32")


def test_fingerprint(torch, tmp_path):
    make_student(tmp_path / "a", "qwen2", max_shard_size="50KB")
    make_student(tmp_path / "b", "qwen2", max_shard_size="50KB")
    first = fingerprint(tmp_path / "a")
    assert len(first) == 64
    assert fingerprint(tmp_path / "b") == first
    (tmp_path / "a/tokenizer.json").write_text("{}")
    assert fingerprint(tmp_path / "a") == first
    files = [*sorted((tmp_path / "b").glob("*.safetensors")), tmp_path / "b/config.json"]
    seen = {first}
    for path in files:  # one byte anywhere, in the middle or at the end, makes another student
        whole = path.read_bytes()
        for at in (len(whole) // 2, len(whole) - 1):
            path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
            seen.add(fingerprint(tmp_path / "b"))
        path.write_bytes(whole)
    assert len(seen) == 1 + 2 * len(files)
    assert fingerprint(tmp_path / "b") == first


def test_resolve(tmp_path, monkeypatch):
    assert pathlib.Path(resolve_student(str(tmp_path))) == tmp_path
    for name in ("./no/such/place", "/no/such", "a/b/c"):
        with pytest.raises(InputError, match="there is no directory"):
            resolve_student(name)
    with pytest.raises(InputError, match="not on a local disk"):
        resolve_student("gs://bucket/model")
    with pytest.raises(InputError, match="could not be fetched"):
        resolve_student("nobody/no-such-model")  # conftest keeps the hub offline
    with pytest.raises(InputError, match="could not be fetched"):
        resolve_student("not a model name")

    import huggingface_hub

    def download(name, allow_patterns):
        assert name == "some/model"
        assert not any(pattern.endswith((".py", ".bin", "*")) for pattern in allow_patterns)
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert pathlib.Path(resolve_student("some/model")) == tmp_path


AXES = ("embed", "kv_heads", "queries_per_kv", "head_dim")
QUERY = Entry("q", ("q",), ("kv_heads queries_per_kv head_dim", "embed"))


@given(st.data())
def test_any_block_is_cut_out_of_the_tensor(data):
    """Against reading the whole tensor and cutting the parameter."""
    shape = tuple(data.draw(st.lists(st.integers(1, 5), min_size=4, max_size=4)))
    value = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    stored = QUERY.write(value, AXES)
    assert stored.shape == QUERY.shape(AXES, shape) == (shape[1] * shape[2] * shape[3], shape[0])
    bounds = [(0, size) for size in shape]
    for axis in (0, 1):  # those that meshes cut
        start = data.draw(st.integers(0, shape[axis] - 1))
        bounds[axis] = (start, data.draw(st.integers(start + 1, shape[axis])))
    block = QUERY.read(stored, AXES, shape, bounds)
    np.testing.assert_array_equal(block, value[tuple(slice(*bound) for bound in bounds)])


def test_inner_axes_are_never_torn():
    stored = QUERY.write(np.zeros((3, 2, 2, 4), np.float32), AXES)
    with pytest.raises(ValueError, match="inner axis"):
        QUERY.read(stored, AXES, (3, 2, 2, 4), [(0, 3), (0, 2), (0, 2), (0, 2)])


def test_students_run_where_they_lie(saved):
    student = load_student(saved, dtype="float32")
    assert {device for leaf in jax.tree.leaves(student.params) for device in leaf.devices()} == {
        jax.devices()[0]
    }
    assert student.config == read_config(saved)

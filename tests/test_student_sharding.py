"""Meshes: what a spec means, what is refused, and that no mesh changes the student or what it computes."""

import functools
import math

import jax
import numpy as np
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st
from students import make_student
from test_student_config import tiny_config

from lalp_jax.errors import InputError
from lalp_jax.student.hf import init_student, load_student, save_student
from lalp_jax.student.model import Decoder
from lalp_jax.student.sharding import (
    ACTIVATIONS,
    MeshShape,
    batch_parts,
    batch_sharding,
    make_mesh,
    parse_mesh,
    replicated,
    sharding_of,
)

MESHES = ["data=8", "fsdp=8", "fsdp=4,data=2", "tensor=2,fsdp=2,data=2"]


@given(
    st.permutations(["data", "fsdp", "tensor"]), st.integers(0, 3), st.lists(st.integers(1, 64), min_size=3)
)
def test_specs_are_read(names, count, sizes):
    wanted = dict(zip(names[:count], sizes, strict=False))
    spec = ",".join(f"{name}={size}" for name, size in wanted.items()) or "data=1"
    assert parse_mesh(spec)._asdict() == {"data": 1, "fsdp": 1, "tensor": 1, **wanted}
    assert parse_mesh(spec.replace(",", " , ").replace("=", " = ")) == parse_mesh(spec)


@pytest.mark.parametrize(
    "spec", ["", "8", "data", "data=", "data=0", "data=-1", "data=2.5", "data=2,data=4", "x=2"]
)
def test_bad_specs(spec):
    with pytest.raises(InputError, match="cannot read"):
        parse_mesh(spec)


def test_meshes():
    assert dict(make_mesh().shape) == {"data": 8, "fsdp": 1, "tensor": 1}
    assert tuple(make_mesh("tensor=2,fsdp=4").shape.values()) == MeshShape(1, 4, 2)
    assert make_mesh("data=2", jax.devices()[:2]).size == 2
    assert all(kind == jax.sharding.AxisType.Auto for kind in make_mesh().axis_types)
    with pytest.raises(InputError, match="2 x 2 x 1 = 4 devices, but there are 8"):
        make_mesh("data=2,fsdp=2")


def test_a_size_that_does_not_divide_is_named():
    mesh = make_mesh("fsdp=4,tensor=2")
    with pytest.raises(InputError, match=r"weights: axis 'embed' of size 6 cannot be cut into 4 .*\n.*fsdp"):
        sharding_of(mesh, ("embed", "ffn"), (6, 8), "weights")
    with pytest.raises(InputError, match="'batch' of size 6 cannot be cut into 4"):
        sharding_of(mesh, ("batch", "tokens"), (6, 8), "batch", ACTIVATIONS)


def test_mistakes_of_the_program_are_loud():
    mesh = make_mesh()
    with pytest.raises(ValueError, match="same mesh axis"):
        sharding_of(mesh, ("vocab", "ffn"), (8, 8), "x")
    with pytest.raises(ValueError, match="axes"):
        sharding_of(mesh, ("vocab",), (8, 8), "x")
    with pytest.raises(KeyError):
        sharding_of(mesh, ("vocabulary",), (8,), "x")


def test_a_student_that_the_mesh_does_not_divide(torch, tmp_path):
    make_student(tmp_path, "qwen2")
    with pytest.raises(InputError, match="'kv_heads' of size 2 cannot be cut into 4"):
        load_student(tmp_path, dtype="float32", mesh=make_mesh("tensor=4,data=2"))


@functools.partial(jax.jit, static_argnums=0)
def forward(graphdef, params, tokens):
    """Logits [B, S, V] of rows of tokens."""
    decoder = nnx.merge(graphdef, params)
    positions = jax.numpy.arange(tokens.shape[1], dtype=np.int32)
    hidden, _ = jax.vmap(decoder, in_axes=(0, None, None))(tokens, positions, jax.numpy.ones_like(positions))
    return decoder.logits(hidden)


@pytest.fixture(scope="module")
def plain(torch, tmp_path_factory):
    """An untied qwen3 student on one device, and its logits."""
    directory = tmp_path_factory.mktemp("plain")
    make_student(directory, "qwen3", attention_bias=True)
    student = load_student(directory, dtype="float32")
    tokens = np.random.default_rng(0).integers(0, student.config.vocab_size, (8, 24)).astype(np.int32)
    return student, tokens, np.asarray(forward(student.graphdef, student.params, tokens))


@pytest.mark.parametrize("spec", MESHES)
def test_no_mesh_changes_the_student(spec, plain, tmp_path):
    student, tokens, logits = plain
    mesh = make_mesh(spec)
    sharded = load_student(student.directory, dtype="float32", mesh=mesh)
    for (path, here), (_, there) in zip(
        nnx.to_flat_state(sharded.params), nnx.to_flat_state(student.params), strict=True
    ):
        np.testing.assert_array_equal(here[...], there[...], err_msg=str(path))
        assert here.get_value().sharding.mesh == mesh
        assert here.axes == there.axes
    placed = jax.device_put(tokens, batch_sharding(mesh))
    np.testing.assert_allclose(forward(sharded.graphdef, sharded.params, placed), logits, rtol=0, atol=1e-5)
    save_student(sharded, tmp_path)
    for name in ("model.safetensors", "config.json"):
        save_student(student, tmp_path / "plain")
        assert (tmp_path / name).read_bytes() == (tmp_path / "plain" / name).read_bytes()


@pytest.mark.parametrize("spec", MESHES)
def test_devices_hold_their_share_only(spec, plain):
    student = load_student(plain[0].directory, dtype="float32", mesh=make_mesh(spec))
    shape = parse_mesh(spec)
    for path, leaf in nnx.to_flat_state(student.params):
        parts = math.prod(
            {"embed": shape.fsdp, "ffn": shape.tensor, "kv_heads": shape.tensor, "vocab": shape.tensor}.get(
                axis, 1
            )
            for axis in leaf.axes
        )
        assert leaf.get_value().addressable_shards[0].data.size * parts == leaf.size, path


def test_each_part_of_the_file_is_read_once(plain, monkeypatch):
    """Copies along data are read once, and no device's part is read as part of a larger one."""
    from lalp_jax.student.tensors import Entry

    read, count = Entry.read, [0]

    def counted(self, tensor, axes, shape, bounds):
        block = read(self, tensor, axes, shape, bounds)
        count[0] += block.size
        return block

    monkeypatch.setattr(Entry, "read", counted)
    student = load_student(plain[0].directory, dtype="float32", mesh=make_mesh("data=2,fsdp=2,tensor=2"))
    assert count[0] == sum(leaf.size for leaf in jax.tree.leaves(student.params))


def test_layers_are_gathered_not_activations_cut(plain):
    """Under fsdp a device computes its own rows with whole weights: parameters travel, activations do not."""
    student, tokens, _ = plain
    mesh = make_mesh("fsdp=8")
    sharded = load_student(student.directory, dtype="float32", mesh=mesh)
    placed = jax.device_put(tokens, batch_sharding(mesh))
    text = forward.lower(sharded.graphdef, sharded.params, placed).compile().as_text()
    assert "all-gather" in text
    assert "all-reduce" not in text
    assert "all-to-all" not in text


def test_gradients_come_back_in_shares(plain):
    """The same as on one device, and laid out like the parameters."""
    student, tokens, _ = plain

    @functools.partial(jax.jit, static_argnums=0)
    def gradient(graphdef, params, tokens):
        return jax.grad(lambda params: forward(graphdef, params, tokens).std())(params)

    mesh = make_mesh("fsdp=4,tensor=2")
    sharded = load_student(student.directory, dtype="float32", mesh=mesh)
    expected = gradient(student.graphdef, student.params, tokens)
    got = gradient(sharded.graphdef, sharded.params, jax.device_put(tokens, batch_sharding(mesh)))
    for (path, here), (_, there) in zip(nnx.to_flat_state(got), nnx.to_flat_state(expected), strict=True):
        np.testing.assert_allclose(here[...], there[...], rtol=1e-4, atol=1e-7, err_msg=str(path))


def test_fresh_students_are_the_same_on_every_mesh():
    config = tiny_config()
    alone = init_student(config, 5, "float32")
    for spec in MESHES[-1:]:
        sharded = init_student(config, 5, "float32", make_mesh(spec))
        for one, other in zip(jax.tree.leaves(alone.params), jax.tree.leaves(sharded.params), strict=True):
            np.testing.assert_array_equal(one, other)
        embedding = sharded.params["embedding"].get_value()
        assert embedding.addressable_shards[0].data.shape[1] == config.hidden_size // parse_mesh(spec).fsdp


def test_batches():
    mesh = make_mesh("data=2,fsdp=2,tensor=2")
    assert batch_parts(mesh) == 4
    batch = jax.device_put(np.zeros((8, 3)), batch_sharding(mesh))
    assert batch.addressable_shards[0].data.shape == (2, 3)
    assert jax.device_put(np.zeros((8, 3)), replicated(mesh)).addressable_shards[0].data.shape == (8, 3)


def test_every_logical_axis_of_the_decoder_is_in_the_table():
    abstract = nnx.eval_shape(lambda: Decoder(tiny_config(), rngs=nnx.Rngs(0)))
    for path, leaf in nnx.to_flat_state(nnx.state(abstract)):
        assert len(leaf.axes) == len(leaf.shape), path
        sharding_of(make_mesh("data=1", jax.devices()[:1]), leaf.axes, leaf.shape, str(path))

"""The student against transformers on torch, and against itself where a rearrangement must not matter."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from students import FAMILIES, LLAMA3_ROPE, VOCAB, make_student

from lalp_jax.student import model as model_module
from lalp_jax.student.hf import init_student, load_student
from lalp_jax.student.model import KV, Prefix

LONG = 2100

VARIANTS = {
    **{family: (family, {}) for family in FAMILIES},
    "qwen2-untied": ("qwen2", {"tie_word_embeddings": False}),
    "qwen2-layered-window": (
        "qwen2",
        {"use_sliding_window": True, "sliding_window": 100, "max_window_layers": 1, "num_hidden_layers": 3},
    ),
    "qwen3-tied-bias": ("qwen3", {"tie_word_embeddings": True, "attention_bias": True}),
    "llama-plain-bias": ("llama", {"rope_parameters": None, "attention_bias": True, "head_dim": None}),
    "llama-no-gqa": ("llama", {"num_key_value_heads": 4, "rope_parameters": {**LLAMA3_ROPE, "factor": 32.0}}),
    "mistral-no-window": ("mistral", {"sliding_window": None, "num_key_value_heads": 1, "head_dim": 40}),
}


def tokens_of(length, seed=0):
    return np.random.default_rng(seed).integers(0, VOCAB, length).astype(np.int32)


def torch_logprobs(torch, reference, tokens):
    """float64 [S - 1]: log-prob of each token but the first, by torch."""
    with torch.no_grad():
        logits = reference(torch.tensor(tokens[None].astype(np.int64))).logits[0].float()
    table = torch.log_softmax(logits, dim=-1).numpy().astype(np.float64)
    return np.array([table[i, token] for i, token in enumerate(tokens[1:])])


def target_logprobs(logits, tokens):
    """The same from our logits [S, V], in numpy and float64."""
    logits = np.asarray(logits, np.float64)
    top = logits.max(-1, keepdims=True)
    logsumexp = np.log(np.exp(logits - top).sum(-1)) + top[:, 0]
    return np.array([logits[i, token] - logsumexp[i] for i, token in enumerate(tokens[1:])])


@functools.partial(jax.jit, static_argnums=0)
def run(graphdef, params, tokens, positions, segments, prefix=None):
    """Logits [S, V], hidden [S, E] and KV of one sequence."""
    decoder = nnx.merge(graphdef, params)
    hidden, kv = decoder(tokens, positions, segments, prefix)
    return decoder.logits(hidden), hidden, kv


def run_alone(student, tokens, start=0, prefix=None):
    positions = np.arange(start, start + len(tokens), dtype=np.int32)
    return run(student.graphdef, student.params, tokens, positions, np.ones(len(tokens), np.int32), prefix)


@pytest.fixture(scope="module")
def small(torch, tmp_path_factory):
    """One student per family, of short windows, for the tests of invariance."""

    @functools.cache
    def make(family):
        directory = tmp_path_factory.mktemp(family)
        overrides = {"sliding_window": 16} if family == "mistral" else {}
        make_student(directory, family, **overrides)
        return load_student(directory, dtype="float32")

    return make


@pytest.mark.parametrize("variant", VARIANTS)
def test_logprobs_are_those_of_transformers(variant, torch, tmp_path):
    family, overrides = VARIANTS[variant]
    reference = make_student(tmp_path, family, **overrides)
    student = load_student(tmp_path, dtype="float32")
    tokens = tokens_of(LONG)
    expected = torch_logprobs(torch, reference, tokens)
    got = target_logprobs(run_alone(student, tokens)[0], tokens)
    assert len(got) >= 2048
    assert expected.std() > 0.5  # the logits are not flat
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_bfloat16_mean_is_near_float32(family, torch, tmp_path):
    reference = make_student(tmp_path, family, dtype="bfloat16").float()
    student = load_student(tmp_path, dtype="bfloat16")
    for seed in range(3):
        tokens = tokens_of(600, seed)
        got = target_logprobs(run_alone(student, tokens)[0], tokens)
        assert abs(got.mean() - torch_logprobs(torch, reference, tokens).mean()) <= 1e-2


def test_everything_stays_in_the_parameters_dtype(torch, tmp_path):
    make_student(tmp_path, "qwen3")
    student = load_student(tmp_path, dtype="bfloat16")
    logits, hidden, kv = run_alone(student, tokens_of(8))
    assert {leaf.dtype for leaf in jax.tree.leaves(student.params)} == {jnp.dtype("bfloat16")}
    assert (hidden.dtype, kv.k.dtype, kv.v.dtype) == (jnp.bfloat16,) * 3
    assert logits.dtype == jnp.float32
    # Accumulated in float32, not rounded to bfloat16 on the way.
    assert not np.array_equal(logits, logits.astype(jnp.bfloat16).astype(jnp.float32))


def padded_run(student, pieces, row, start=0, prefix=None):
    """Runs several sequences, each from position `start`, in one row of tokens; returns their slices too."""
    tokens, positions, segments = np.zeros((3, row), np.int32)
    at, places = 0, []
    for number, piece in enumerate(pieces, 1):
        own = slice(at, at + len(piece))
        tokens[own], segments[own], positions[own] = piece, number, start + np.arange(len(piece))
        places.append(own)
        at += len(piece) + 2  # padding between and after them
    outputs = run(student.graphdef, student.params, tokens, positions, segments, prefix)
    assert np.isfinite(outputs[1]).all()
    return outputs, places


@pytest.mark.parametrize("family", FAMILIES)
@settings(deadline=None, max_examples=8)
@given(cut=st.integers(1, 39), seed=st.integers(0, 9))
def test_prefix_changes_nothing(family, small, cut, seed):
    student, tokens = small(family), tokens_of(40, seed)
    whole, _, kv = run_alone(student, tokens)
    (_, _, before), _ = padded_run(student, [tokens[:cut]], 40)
    # What lies beyond the length must not be looked at, however large it is.
    valid = (np.arange(40) < cut)[None, :, None, None]
    before = jax.tree.map(lambda x: np.where(valid, x, np.float32(1e4)), before)
    (rest, _, rest_kv), _ = padded_run(student, [tokens[cut:]], 40, cut, Prefix.of_one(before, np.int32(cut)))
    np.testing.assert_allclose(rest[: 40 - cut], whole[cut:], rtol=0, atol=2e-5)
    np.testing.assert_allclose(rest_kv.k[:, : 40 - cut], kv.k[:, cut:], rtol=0, atol=2e-5)
    np.testing.assert_allclose(rest_kv.v[:, : 40 - cut], kv.v[:, cut:], rtol=0, atol=2e-5)


@pytest.mark.parametrize("family", FAMILIES)
@settings(deadline=None, max_examples=8)
@given(
    lengths=st.lists(st.integers(1, 20), min_size=1, max_size=4), shared=st.booleans(), seed=st.integers(0, 9)
)
def test_packed_segments_are_as_alone(family, small, lengths, shared, seed):
    """Several sequences in one row, with and without a common prefix, and padding wherever it may be."""
    student, start = small(family), 5 if shared else 0
    prefix = Prefix.of_one(run_alone(student, tokens_of(5, 99))[2], np.int32(5)) if shared else None
    pieces = [tokens_of(length, seed + number) for number, length in enumerate(lengths)]
    (packed, _, _), places = padded_run(student, pieces, 90, start, prefix)
    for piece, own in zip(pieces, places, strict=True):
        (alone, _, _), _ = padded_run(student, [piece], 20, start, prefix)
        np.testing.assert_allclose(packed[own], alone[: len(piece)], rtol=0, atol=2e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_query_blocks_change_nothing(family, small, monkeypatch):
    student, tokens = small(family), tokens_of(50)
    prefix = Prefix.of_one(run_alone(student, tokens[:10])[2], jnp.int32(10))
    whole = [run_alone(student, tokens)[0], run_alone(student, tokens[10:], 10, prefix)[0]]
    monkeypatch.setattr(model_module, "QUERY_BLOCK", 16)  # neither 50 nor 40 is a multiple
    run.clear_cache()
    blocks = [run_alone(student, tokens)[0], run_alone(student, tokens[10:], 10, prefix)[0]]
    run.clear_cache()
    for ours, theirs in zip(blocks, whole, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)


def test_long_sequences_hold_the_scores_of_one_block_only(small):
    """[H, S, S] float32 scores never exist, forward or backward."""
    student = small("llama")
    length = 8 * model_module.QUERY_BLOCK

    def loss(params, tokens):
        positions = jnp.arange(length, dtype=jnp.int32)
        return nnx.merge(student.graphdef, params)(tokens, positions, jnp.ones_like(positions))[0].sum()

    compiled = jax.jit(jax.grad(loss)).lower(student.params, tokens_of(length)).compile()
    all_scores = 4 * length * student.config.num_heads * length
    assert compiled.memory_analysis().temp_size_in_bytes < all_scores


@pytest.mark.parametrize("family", FAMILIES)
def test_no_gradient_from_later_tokens(family, small):
    """The logits of a token depend on what it may see, on nothing else, and on all of it."""
    student = small(family)
    length, at, segment_start = 40, 36, 3
    positions = np.arange(length, dtype=np.int32)
    segments = np.where(positions < segment_start, 1, 2).astype(np.int32)

    def one_hidden(params):
        decoder = nnx.merge(student.graphdef, params)
        return decoder(positions, positions, segments)[0][at].sum()  # token i is the i-th of the vocabulary

    gradient = np.abs(jax.jit(jax.grad(one_hidden))(student.params)["embedding"][...]).sum(-1)[:length]
    assert (gradient[at + 1 :] == 0).all()
    assert (gradient[:segment_start] == 0).all()
    window, layers = student.config.sliding_window, student.config.num_layers
    reach = at if window is None else layers * (window - 1)
    seen = np.arange(max(segment_start, at - reach), at + 1)
    assert (gradient[seen] > 0).all()
    assert (gradient[: seen[0]] == 0).all()


def test_sliding_window_reach():
    """With one layer a token sees exactly `window` tokens: itself and those less than `window` before it."""
    config = tiny_config(sliding_window=4, sliding_layers=(True,), num_layers=1)
    student = init_student(config, 0, "float32")
    base = tokens_of(12)
    logits = run_alone(student, base)[0]
    for j in range(12):
        changed = base.copy()
        changed[j] = (changed[j] + 1) % VOCAB
        moved = np.abs(run_alone(student, changed)[0] - logits).max(-1) > 0
        assert set(np.flatnonzero(moved)) == set(range(j, min(j + 4, 12)))


def test_windows_vmapped_over_a_shared_prefix(small):
    """The form in which the scorer calls: slots share a prefix that is never copied for each of them."""
    student = small("qwen3")
    slots, prompt, width = 5, 11, 8
    prefix = Prefix.of_one(run_alone(student, tokens_of(prompt, 7))[2], jnp.int32(prompt))
    tokens = np.stack([tokens_of(width, seed) for seed in range(slots)])
    positions = np.tile(np.arange(prompt, prompt + width, dtype=np.int32), (slots, 1))

    def windows(params, prefix, tokens, positions):
        decoder = nnx.merge(student.graphdef, params)
        over_slots = jax.vmap(decoder, in_axes=(0, 0, 0, None))
        return over_slots(tokens, positions, jnp.ones_like(tokens), prefix)[0]

    hidden = jax.jit(windows)(student.params, prefix, tokens, positions)
    for slot in range(slots):
        alone = run_alone(student, tokens[slot], prompt, prefix)[1]
        np.testing.assert_allclose(hidden[slot], alone, rtol=0, atol=2e-5)
    jaxpr = str(jax.make_jaxpr(windows)(student.params, prefix, tokens, positions))
    config = student.config
    copied = f"{slots},{prompt},{config.num_kv_heads},{config.head_dim}]"
    repeated = f"{prompt},{config.num_kv_heads},{config.num_heads // config.num_kv_heads},{config.head_dim}]"
    assert copied not in jaxpr
    assert repeated not in jaxpr


@pytest.mark.parametrize("prefixed", [False, True])
def test_padding_alone_is_finite(prefixed, small):
    """A row of padding only, after a prefix without a valid slot, gives no NaN, nor does its gradient."""
    student, zeros = small("mistral"), np.zeros(6, np.int32)
    prefix = Prefix.of_one(jax.tree.map(jnp.zeros_like, run_alone(student, tokens_of(4))[2]), jnp.int32(0))

    def total(params):
        decoder = nnx.merge(student.graphdef, params)
        return decoder(zeros, zeros, zeros, prefix if prefixed else None)[0].sum()

    value, gradient = jax.value_and_grad(total)(student.params)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((value, gradient)))


def test_unknown_token_is_loud(small):
    """Its row of NaN reaches every token of the sequence: no number is left that could pass for a score."""
    logits = run_alone(small("qwen2"), np.array([1, VOCAB, 2], np.int32))[0]
    assert np.isnan(logits).all()


def test_one_compilation_for_one_shape(small):
    student, traces = small("qwen3"), []

    @functools.partial(jax.jit, static_argnums=0)
    def forward(graphdef, params, tokens):
        traces.append(1)
        decoder = nnx.merge(graphdef, params)
        return decoder(tokens, tokens, jnp.ones_like(tokens))[0]

    for seed in range(3):
        forward(student.graphdef, student.params, tokens_of(9, seed))
    again = load_student(student.directory, dtype="float32")
    forward(again.graphdef, again.params, tokens_of(9))  # an equal student is the same static argument
    assert len(traces) == 1


def tiny_config(**changes):
    from test_student_config import tiny_config as make

    return make(**changes)


def test_kv_layout(small):
    student = small("llama")
    kv = run_alone(student, tokens_of(9))[2]
    c = student.config
    assert isinstance(kv, KV)
    assert kv.k.shape == kv.v.shape == (c.num_layers, 9, c.num_kv_heads, c.head_dim)

"""Scores against one torch forward per step, and against themselves where a rearrangement must not matter."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from students import FAMILIES, VOCAB, make_student
from test_windows import UNLIMITED, encoded_of

from lalp_jax.data import pipeline
from lalp_jax.data.batches import StepSums, sum_keys
from lalp_jax.data.plan import plan_pool
from lalp_jax.data.windows import Context, plan_windows, step_start
from lalp_jax.errors import InputError
from lalp_jax.scoring import logprob
from lalp_jax.scoring.local import score_batch
from lalp_jax.scoring.results import NOT_FINITE, score_answers, scores_table, steps_table
from lalp_jax.scoring.scorer import result_rows, score_plan
from lalp_jax.scoring.signals import SIGNALS, signals_of
from lalp_jax.scoring.store import PartStore
from lalp_jax.student.hf import load_student
from lalp_jax.student.sharding import make_mesh, one_device_mesh

CLOSE = 1e-5  # nats, mean over a step's tokens
BOTH = signals_of("lalp,galp")


def mostly_slow(quick, others):
    """Cases of one test: each compiles programs of its own, so all but the first wait for the slow run."""
    return [quick, *(pytest.param(case, marks=pytest.mark.slow) for case in others)]


def small_pool():
    """Answers of 35 steps, of one, and of few; prompts of one token and more."""
    rng = np.random.default_rng(7)
    steps = [rng.integers(1, 12, n).tolist() for n in (35, 6, 9, 14)]
    return [
        encoded_of(steps[0], 23, "long", "c0"),
        encoded_of([17], 23, "long", "c1"),
        encoded_of([4, 1, 7], 23, "long", "c2"),
        encoded_of(steps[1], 1, "one", "c3"),
        encoded_of([1], 1, "one", "c4"),
        encoded_of(steps[2], 40, "other", "c5"),
        encoded_of(steps[3], 2, "two", "c6"),
        encoded_of([3, 5, 2, 8, 6], 9, "nine", "c7"),
    ]


@pytest.fixture(scope="module")
def students(torch, tmp_path_factory):
    """Of each family: the directory and torch's own model."""

    @functools.cache
    def make(family):
        directory = tmp_path_factory.mktemp(family)
        overrides = {"sliding_window": 16} if family == "mistral" else {}
        return directory, make_student(directory, family, **overrides)

    return make


@pytest.fixture(scope="module")
def student(students):
    """The one that most tests use."""
    return load_student(students("qwen2")[0], dtype="float32")


def plans_of(pool, context=Context(), local=True, ordinary=True):  # noqa: B008 - frozen
    return [plan_windows(e, context, local=local, ordinary=ordinary, max_positions=UNLIMITED) for e in pool]


def computed(student, pool, plans, tokens_per_batch=1024, shards=1):
    """All sums of a pool, batch by batch, without the scorer."""
    plan = plan_pool(pool, plans, shards=shards, tokens_per_batch=tokens_per_batch)
    rows, sums = result_rows(plan, shards), StepSums(pool, plans)
    for batch, arrays in pipeline.batches(plan.batches, pool, shards):
        result = score_batch(student.params, arrays, graphdef=student.graphdef, n_sums=rows[batch.shape])
        keys = sum_keys(batch, shards)
        sums.put(keys.candidate, keys.step, keys.ordinary, np.asarray(result)[keys.shard, keys.row])
    return sums


def means(encoded, sums):
    return sums.astype(np.float64) / np.diff(encoded.token_ends, prepend=0)


def torch_sum(torch, reference, text, n_scored):
    """Sum of log-prob (nats) of the last tokens of a text, from one forward of it alone."""
    with torch.no_grad():
        logits = reference(torch.tensor(text[None].astype(np.int64))).logits[0]
    table = torch.log_softmax(logits.float(), dim=-1)
    at = range(len(text) - n_scored, len(text))
    return sum(float(table[i - 1, int(text[i])]) for i in at)


def torch_local(torch, reference, encoded, first_of):
    """[p] step means by the definition: one forward per step, prompt, context and step alone."""
    values = []
    for step, end in enumerate(encoded.token_ends):
        first = step_start(encoded.token_ends, first_of(step))
        count = int(end) - step_start(encoded.token_ends, step)
        text = np.concatenate([encoded.prompt_tokens, encoded.tokens[first:end]])
        values.append(torch_sum(torch, reference, text, count) / count)
    return np.array(values)


def check_against_torch(torch, reference, student, pool, context, first_of):
    plans = plans_of(pool, context)
    sums = computed(student, pool, plans)
    answers = score_answers(pool, plans, sums, BOTH)
    for index, (encoded, answer) in enumerate(zip(pool, answers, strict=True)):
        wanted = torch_local(torch, reference, encoded, first_of)
        np.testing.assert_allclose(means(encoded, sums.local(index)), wanted, rtol=0, atol=CLOSE)
        whole = np.concatenate([encoded.prompt_tokens, encoded.tokens])
        galp = torch_sum(torch, reference, whole, len(encoded.tokens)) / len(encoded.tokens)
        assert answer.scores["galp"] == pytest.approx(galp, rel=0, abs=CLOSE)
        assert answer.scores["lalp"] == pytest.approx(wanted.mean(), rel=0, abs=CLOSE)
        assert answer.status == "scored"
        assert answer.reason is None


CONTEXTS = {
    "k=0": (Context(k=0), lambda step: step),
    "k=1": (Context(k=1), lambda step: max(0, step - 1)),
    "k=4": (Context(k=4), lambda step: max(0, step - 4)),
    "quarter": (Context(k=None, fraction=0.25), lambda step: step - (step + 3) // 4),
    "all": (Context(k=None, fraction=1.0), lambda step: 0),
}


@pytest.mark.parametrize("family", mostly_slow("qwen2", sorted({*FAMILIES} - {"qwen2"})))
def test_every_family_against_torch(torch, students, family):
    directory, reference = students(family)
    student = load_student(directory, dtype="float32")
    check_against_torch(torch, reference, student, small_pool(), *CONTEXTS["k=4"])


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted({*CONTEXTS} - {"k=4"}))
def test_every_context_against_torch(torch, students, student, name):
    check_against_torch(torch, students("qwen2")[1], student, small_pool(), *CONTEXTS[name])


@pytest.mark.slow
def test_windows_longer_than_a_shared_slot_against_torch(torch, students, student):
    pool = [*small_pool()[:3], encoded_of([30] * 24, 23, "long", "c8"), encoded_of([600, 4], 5, "five", "c9")]
    check_against_torch(torch, students("qwen2")[1], student, pool, *CONTEXTS["k=4"])


@pytest.mark.parametrize("family", mostly_slow("qwen2", ["mistral"]))
def test_windows_and_the_ordinary_pass_agree_where_they_are_the_same(students, family):
    """Local windows computed on their own, so that none is read off the ordinary pass."""
    pool, k = small_pool(), 5
    student = load_student(students(family)[0], dtype="float32")
    local = computed(student, pool, plans_of(pool, Context(k=k), ordinary=False))
    whole = computed(student, pool, plans_of(pool, local=False))
    differ = 0.0
    for index, encoded in enumerate(pool):
        mine, theirs = means(encoded, local.local(index)), means(encoded, whole.ordinary(index))
        same = encoded.n_steps if k >= encoded.n_steps - 1 else k + 1
        np.testing.assert_allclose(mine[:same], theirs[:same], rtol=0, atol=CLOSE)
        differ = max(differ, np.abs(mine[same:] - theirs[same:]).max(initial=0))
    assert differ > 1e-2


def test_one_step_has_one_score(student):
    pool = [e for e in small_pool() if e.n_steps == 1]
    assert len(pool) == 2
    local, whole = (
        score_answers(pool, plans, computed(student, pool, plans), BOTH)
        for plans in (plans_of(pool, ordinary=False), plans_of(pool, local=False))
    )
    for left, right in zip(local, whole, strict=True):
        assert left.scores["lalp"] == pytest.approx(right.scores["galp"], rel=0, abs=CLOSE)


def by_id(pool, sums):
    return {e.candidate.id: np.stack([means(e, sums.local(i)), means(e, sums.ordinary(i))]) for i, e in enumerate(pool)}


def check_same(left, right):
    assert left.keys() == right.keys()
    for name, values in left.items():
        np.testing.assert_allclose(values, right[name], rtol=0, atol=CLOSE)


@pytest.fixture(scope="module")
def baseline(student):
    pool = small_pool()
    return by_id(pool, computed(student, pool, plans_of(pool)))


@pytest.mark.parametrize("batching", mostly_slow((256, 8), [(256, 1), (4096, 1), (512, 2)]))
def test_batching_does_not_matter(student, baseline, batching):
    """Tokens per batch, data shards."""
    pool = small_pool()
    check_same(baseline, by_id(pool, computed(student, pool, plans_of(pool), *batching)))


def test_order_does_not_matter(student, baseline):
    pool = [small_pool()[i] for i in np.random.default_rng(3).permutation(8)]
    check_same(baseline, by_id(pool, computed(student, pool, plans_of(pool))))


def test_company_does_not_matter(student, baseline):
    """An answer scored alone has the scores that it has among others."""
    pool = [e for e in small_pool() if e.candidate.id == "c5"]
    check_same({"c5": baseline["c5"]}, by_id(pool, computed(student, pool, plans_of(pool))))


@pytest.mark.slow
@pytest.mark.parametrize("spec", ["data=8", "fsdp=2,data=2,tensor=2"])
def test_meshes_do_not_matter(students, baseline, tmp_path, spec):
    mesh, pool = make_mesh(spec), small_pool()
    student = load_student(students("qwen2")[0], dtype="float32", mesh=mesh)
    plans, shards = plans_of(pool), mesh.shape["data"] * mesh.shape["fsdp"]
    plan = plan_pool(pool, plans, shards=shards, tokens_per_batch=256)
    sums = StepSums(pool, plans)
    score_plan(student, plan, pool, sums, PartStore(epath.Path(tmp_path), {}), mesh)
    check_same(baseline, by_id(pool, sums))


@pytest.mark.slow
def test_bfloat16_is_close(students, baseline):
    pool = [e for e in small_pool() if len(e.tokens) > 10]  # the mean over an answer, not the noise of a token
    student = load_student(students("qwen2")[0], dtype="bfloat16")
    half = by_id(pool, computed(student, pool, plans_of(pool)))
    assert len(half) == 7
    differences = [np.abs(half[name].mean(1) - baseline[name].mean(1)) for name in half]
    assert 0 < np.max(differences) < 1e-2


@pytest.mark.slow
def test_a_shape_is_one_program(students, tmp_path_factory, tmp_path):
    directory = tmp_path_factory.mktemp("shallow")
    make_student(directory, "qwen2", num_hidden_layers=1)
    student = load_student(directory, dtype="float32")
    pool = [encoded_of([7, 3, 12, 5] * (2 + i), 3 + i, f"p{i}", f"p{i}c{j}") for i in range(9) for j in range(2)]
    pool.append(encoded_of([200] * 5, 6, "p3", "wide"))
    plans = plans_of(pool)
    plan = plan_pool(pool, plans, tokens_per_batch=512)
    assert len(plan.batches) > len(plan.shapes) > 1
    before = score_batch._cache_size()
    store = PartStore(epath.Path(tmp_path), {})
    score_plan(student, plan, pool, StepSums(pool, plans), store, one_device_mesh())
    assert score_batch._cache_size() - before == len(plan.shapes)


def test_a_student_of_nan_gives_no_score(student):
    pool = small_pool()[:3]
    plans = plans_of(pool)
    broken = dataclasses.replace(student, params=jax.tree.map(lambda x: x * jnp.nan, student.params))
    answers = score_answers(pool, plans, computed(broken, pool, plans), BOTH)
    for answer in answers:
        assert answer.scores == {"lalp": None, "galp": None}
        assert answer.missing == {"lalp": NOT_FINITE, "galp": NOT_FINITE}
        assert answer.status == "skipped"
    table = scores_table(answers, BOTH).to_pydict()
    assert table["lalp"] == table["galp"] == [None] * 3
    assert all("lalp: " in reason and "galp: " in reason for reason in table["skip_reason"])
    steps = steps_table(answers).to_pydict()
    for name in ("logprob_sum", "logprob_mean", "ordinary_logprob_sum"):
        assert steps[name] == [None] * sum(e.n_steps for e in pool)


def test_what_was_not_planned_is_missing_and_the_rest_is_there(student):
    pool = [small_pool()[0]]
    plans = [plan_windows(pool[0], Context(), local=True, ordinary=True, max_positions=100)]
    [answer] = score_answers(pool, plans, computed(student, pool, plans), BOTH)
    assert answer.scores["galp"] is None
    assert answer.scores["lalp"] < 0
    assert answer.status == "scored"
    assert answer.reason.startswith("galp: ")
    assert "100 positions" in answer.reason


def test_tables_say_what_was_computed(student):
    pool = small_pool()
    plans = plans_of(pool)
    sums = computed(student, pool, plans)
    answers = score_answers(pool, plans, sums, BOTH)
    scores, steps = scores_table(answers, BOTH).to_pylist(), steps_table(answers).to_pylist()
    assert [row["candidate_id"] for row in scores] == [e.candidate.id for e in pool]
    for row in scores:
        mine = [step for step in steps if step["candidate_id"] == row["candidate_id"]]
        assert [step["step"] for step in mine] == list(range(row["n_steps"]))
        assert sum(step["n_tokens"] for step in mine) == row["n_tokens"]
        assert row["lalp"] == pytest.approx(np.mean([step["logprob_mean"] for step in mine]), abs=1e-6)
        total = sum(step["ordinary_logprob_sum"] for step in mine)
        assert row["galp"] == pytest.approx(total / row["n_tokens"], abs=1e-6)
        for step in mine:
            assert step["logprob_mean"] * step["n_tokens"] == pytest.approx(step["logprob_sum"], rel=1e-6)


def test_tables_of_nothing():
    assert scores_table([], BOTH).num_rows == steps_table([]).num_rows == 0


def test_signals_are_named():
    assert [s.name for s in signals_of(" galp, lalp,galp")] == ["galp", "lalp"]
    assert all(s.name == name and s.higher_is_better for name, s in SIGNALS.items())
    for wrong in ("", " , ", "lalp,perplexity"):
        with pytest.raises(InputError, match="--signals"):
            signals_of(wrong)


@pytest.fixture
def head():
    """Hidden states, tokens, targets and the weights of a head."""
    rng = np.random.default_rng(5)
    hidden, weights = (rng.normal(size=shape).astype(np.float32) for shape in ((60, 16), (VOCAB, 16)))
    tokens = rng.integers(0, VOCAB, 60).astype(np.int32)
    targets = np.sort(rng.choice(np.arange(1, 60), 37, replace=False)).astype(np.int32)
    return jnp.asarray(hidden), jnp.asarray(tokens), jnp.asarray(targets), jnp.asarray(weights)


def dense_logprobs(hidden, tokens, targets, weights):
    values = jax.nn.log_softmax(jnp.einsum("re,ve->rv", hidden, weights), axis=-1)
    return values[targets - 1, tokens[targets]]


def chunked(hidden, tokens, targets, weights, n_targets=None):
    return logprob.token_logprobs(
        hidden, tokens, targets, lambda rows: jnp.einsum("re,ve->rv", rows, weights), n_targets
    )


@pytest.mark.parametrize("size", [1, 8, 37, 512])
def test_chunks_do_not_matter(head, monkeypatch, size):
    wanted = dense_logprobs(*head)
    monkeypatch.setattr(logprob, "HEAD_CHUNK", size)
    np.testing.assert_allclose(chunked(*head), wanted, rtol=0, atol=1e-5)
    np.testing.assert_allclose(chunked(*head, n_targets=37), wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("n_targets", [0, 1, 8, 9, 37])
def test_chunks_without_a_target_are_not_computed(head, monkeypatch, n_targets):
    monkeypatch.setattr(logprob, "HEAD_CHUNK", 8)
    values = np.asarray(jax.jit(chunked)(*head, jnp.int32(n_targets)))
    done = min(37, -(-n_targets // 8) * 8)
    np.testing.assert_allclose(values[:done], dense_logprobs(*head)[:done], rtol=0, atol=1e-5)
    assert np.isnan(values[done:]).all()


def test_gradient_is_the_dense_one(head, monkeypatch):
    monkeypatch.setattr(logprob, "HEAD_CHUNK", 8)
    hidden, tokens, targets, weights = head
    scale = jnp.linspace(0.5, 2, len(targets), dtype=jnp.float32)

    def loss(function):
        return lambda hidden, weights: (function(hidden, tokens, targets, weights) * scale).sum()

    for mine, dense in zip(
        jax.jit(jax.grad(loss(chunked), (0, 1)))(hidden, weights),
        jax.grad(loss(dense_logprobs), (0, 1))(hidden, weights),
        strict=True,
    ):
        assert np.abs(dense).max() > 0.1
        np.testing.assert_allclose(mine, dense, rtol=1e-4, atol=1e-5)

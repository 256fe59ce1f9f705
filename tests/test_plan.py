"""The schedule: every window once, nothing overlaps, few shapes, little padding; and its arrays, token by token."""

import itertools
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_windows import UNLIMITED, encoded_of

from lalp_jax.data import pipeline
from lalp_jax.data.batches import StepSums, lay_out, n_sums, sum_keys
from lalp_jax.data.plan import GRAIN, MAX_SHAPES, plan_pool
from lalp_jax.data.pool import read_pool
from lalp_jax.data.steps import parse_segmenter
from lalp_jax.data.tokens import load_tokenizer
from lalp_jax.data.windows import Context, plan_windows, step_start, window_tokens

PADDED = np.iinfo(np.int32).max


def plans_of(pool, context=Context(), local=True, ordinary=True):  # noqa: B008 - frozen
    return [plan_windows(e, context, local=local, ordinary=ordinary, max_positions=UNLIMITED) for e in pool]


STEPS = st.one_of(
    st.lists(st.integers(1, 40), min_size=1, max_size=12),
    st.lists(st.integers(1, 900), min_size=1, max_size=4),
)
PROMPTS = st.tuples(st.one_of(st.integers(1, 60), st.integers(500, 900)), st.lists(STEPS, min_size=1, max_size=3))


@st.composite
def pools(draw):
    prompts = draw(st.lists(PROMPTS, min_size=1, max_size=6))
    return [
        encoded_of(lengths, n_prompt, prompt_id=f"p{i}", name=f"p{i}c{j}")
        for i, (n_prompt, candidates) in enumerate(prompts)
        for j, lengths in enumerate(candidates)
    ]


def check_schedule(plan, pool, plans, shards, budget):
    """Every promise of a schedule that does not depend on how it was found."""
    expected = Counter((i, window) for i, p in enumerate(plans) for window in p.windows)
    groups = [(batch.shape, group) for batch in plan.batches for group in batch.groups]
    assert Counter((p.candidate, p.window) for _, group in groups for p in group.windows) == expected
    for shape, group in groups:
        assert sum(len(pool[c].prompt_tokens) - 1 for c in group.prompts) <= shape.prompt
        slots = {}
        for placed in group.windows:
            encoded, owner = pool[placed.candidate], pool[group.prompts[placed.prompt]]
            assert owner.candidate.prompt.id == encoded.candidate.prompt.id
            size = 1 + window_tokens(encoded, placed.window)
            slots.setdefault(placed.slot, []).append((placed.offset, placed.offset + size))
        assert set(slots) <= set(range(shape.slots))
        for runs in slots.values():
            runs.sort()
            assert runs[0][0] >= 0
            assert runs[-1][1] <= shape.window
            assert all(end <= start for (_, end), (start, _) in itertools.pairwise(runs))
    for number, batch in enumerate(plan.batches):
        assert batch.index == number
        assert 0 < len(batch.groups) <= batch.shape.groups * shards
        assert batch.shape.prompt % GRAIN == batch.shape.window % GRAIN == 0
        assert batch.shape.tokens <= budget or batch.shape.groups == batch.shape.slots == 1
    assert len(plan.shapes) <= MAX_SHAPES <= 12
    check_cost(plan, pool, plans, shards)


def check_cost(plan, pool, plans, shards):
    prompts = {e.candidate.prompt.id: len(e.prompt_tokens) - 1 for e in pool}
    windows = [(pool[i], window) for i, p in enumerate(plans) for window in p.windows]
    assert plan.useful_tokens == sum(prompts.values()) + sum(1 + window_tokens(e, w) for e, w in windows)
    assert plan.scored_tokens == sum(
        int(e.token_ends[w.end - 1]) - step_start(e.token_ends, w.scored) for e, w in windows
    )
    sizes = [(b.shape.prompt + b.shape.slots * b.shape.window) * b.shape.groups for b in plan.batches]
    assert plan.computed_tokens == shards * sum(sizes) >= plan.useful_tokens


@settings(max_examples=60, deadline=None)
@given(
    pools(), st.integers(0, 5), st.sampled_from([1, 2, 3, 8]), st.sampled_from([64, 1024, 8192]),
    st.sampled_from([(True, True), (True, False), (False, True)]), st.sampled_from([0.0, 1e-3]),
)  # fmt: skip
def test_any_pool_is_scheduled(pool, k, shards, budget, kinds, attention):
    plans = plans_of(pool, Context(k=k), *kinds)
    plan = plan_pool(pool, plans, shards=shards, tokens_per_batch=budget, attention=attention)
    check_schedule(plan, pool, plans, shards, budget)
    again = plan_pool(pool, plans, shards=shards, tokens_per_batch=budget, attention=attention)
    assert again == plan


def test_nothing_to_do_is_no_batch():
    pool = [encoded_of([3, 4])]
    unplanned = [plan_windows(pool[0], Context(), local=True, ordinary=True, max_positions=1)]
    for plan in (plan_pool([], []), plan_pool(pool, unplanned)):
        assert plan.batches == ()
        assert plan.shapes == ()
        assert plan.useful_tokens == plan.computed_tokens == plan.scored_tokens == 0


def check_arrays(batch, pool, shards):
    """Reads every scored token back from the arrays, with what it is predicted from."""
    arrays, keys = lay_out(batch, pool, shards), sum_keys(batch, shards)
    assert arrays.tokens.shape == (shards, batch.shape.groups, batch.shape.slots, batch.shape.window)
    assert arrays.prompts.shape == (shards, batch.shape.groups, batch.shape.prompt)
    flat = {name: getattr(arrays, name).reshape(shards, -1) for name in ("tokens", "positions", "segments")}
    real = arrays.sums != PADDED
    assert arrays.n_targets == real.sum(1).max()
    assert all(not row[count:].any() for row, count in zip(real, real.sum(1), strict=True))
    assert n_sums(batch, shards) == max(np.bincount(keys.shard))
    first_of = {
        (p.candidate, step, p.window.ordinary): p.window.first
        for group in batch.groups for p in group.windows for step in range(p.window.scored, p.window.end)
    }  # fmt: skip
    assert len(first_of) == len(keys.row)
    for shard, row, candidate, step, ordinary in zip(
        keys.shard, keys.row, keys.candidate, keys.step, keys.ordinary, strict=True
    ):
        encoded = pool[candidate]
        start, end = step_start(encoded.token_ends, step), int(encoded.token_ends[step])
        at = arrays.targets[shard][arrays.sums[shard] == row]
        assert len(at) == end - start
        first = step_start(encoded.token_ends, first_of[candidate, step, bool(ordinary)])
        text = np.concatenate([encoded.prompt_tokens, encoded.tokens[first:end]])
        run = slice(at[0] - (1 + start - first), at[-1] + 1)
        np.testing.assert_array_equal(flat["tokens"][shard, run], text[len(encoded.prompt_tokens) - 1 :])
        np.testing.assert_array_equal(at, np.arange(at[0], at[-1] + 1))
        places = len(encoded.prompt_tokens) - 1 + np.arange(1 + end - first)
        np.testing.assert_array_equal(flat["positions"][shard, run], places)
        assert len(set(flat["segments"][shard, run])) == 1
        assert flat["segments"][shard, run][0] != 0
        check_prompt(arrays, shard, run, encoded)
    return arrays, keys


def check_prompt(arrays, shard, run, encoded):
    """The prompt that a window follows stands whole in its group's row, under the same id."""
    per_group = arrays.tokens[0, 0].size
    group = run.start // per_group
    owners = np.unique(arrays.owners[shard].reshape(-1)[run])
    assert len(owners) == 1
    assert owners[0] > 0
    mine = arrays.prompt_owners[shard, group] == owners[0]
    np.testing.assert_array_equal(arrays.prompts[shard, group][mine], encoded.prompt_tokens[:-1])
    wanted = np.arange(len(encoded.prompt_tokens) - 1)
    np.testing.assert_array_equal(arrays.prompt_positions[shard, group][mine], wanted)


@settings(max_examples=25, deadline=None)
@given(pools(), st.integers(0, 5), st.sampled_from([1, 2, 8]), st.sampled_from([256, 2048]))
def test_arrays_hold_what_the_keys_say(pool, k, shards, budget):
    plans = plans_of(pool, Context(k=k))
    sums = StepSums(pool, plans)
    for batch in plan_pool(pool, plans, shards=shards, tokens_per_batch=budget).batches:
        _, keys = check_arrays(batch, pool, shards)
        assert not sums.has(keys)
        sums.put(keys.candidate, keys.step, keys.ordinary, 1000.0 * keys.candidate + keys.step)
        assert sums.has(keys)
    for index, encoded in enumerate(pool):
        wanted = 1000.0 * index + np.arange(encoded.n_steps)
        np.testing.assert_array_equal(sums.local(index), wanted)
        np.testing.assert_array_equal(sums.ordinary(index), wanted)


def test_segments_within_a_slot_are_distinct():
    pool = [encoded_of([4] * 12, 7, prompt_id=f"p{i}", name=f"c{i}") for i in range(6)]
    plans = plans_of(pool)
    crowded = 0
    for batch in plan_pool(pool, plans).batches:
        segments = lay_out(batch, pool, 1).segments[0]
        for number, group in enumerate(batch.groups):
            ids = [int(segments[number, p.slot, p.offset]) for p in group.windows]
            assert sorted(ids) == list(range(1, len(ids) + 1))
            crowded += len(group.windows) > batch.shape.slots
            used = sum(1 + window_tokens(pool[p.candidate], p.window) for p in group.windows)
            assert (segments[number] != 0).sum() == used
    assert crowded


def test_the_pipeline_lays_out_the_same_arrays():
    pool = [encoded_of([5, 9, 3] * 4, 11, prompt_id=f"p{i % 4}", name=f"c{i}") for i in range(9)]
    plan = plan_pool(pool, plans_of(pool), shards=2, tokens_per_batch=256)
    assert len(plan.batches) > 2
    seen = []
    for batch, arrays in pipeline.batches(plan.batches, pool, 2):
        seen.append(batch)
        for name, value in vars(lay_out(batch, pool, 2)).items():
            np.testing.assert_array_equal(getattr(arrays, name), value)
            assert getattr(arrays, name).dtype == np.int32
    assert tuple(seen) == plan.batches


def useful_share(plan):
    return plan.useful_tokens / plan.computed_tokens


def long_answers(seed=0):
    """Reasoning traces: 30 prompts of 100-400 tokens, 4 answers each of 2k-20k tokens in steps of about 30."""
    rng = np.random.default_rng(seed)
    pool = []
    for prompt in range(30):
        n_prompt = int(rng.integers(100, 401))
        for candidate in range(4):
            total = int(np.exp(rng.uniform(np.log(2000), np.log(20000))))
            steps = np.clip(rng.lognormal(3.1, 0.9, total), 1, 1500).astype(int)
            steps = steps[: int(np.searchsorted(np.cumsum(steps), total)) + 1]
            pool.append(encoded_of(steps, n_prompt, prompt_id=f"p{prompt}", name=f"p{prompt}c{candidate}"))
    return pool


@pytest.mark.slow
@pytest.mark.parametrize(("seed", "attention"), [(0, 0.0), (1, 0.0), (2, 2e-5)])
def test_long_answers_waste_little(seed, attention):
    pool = long_answers(seed)
    plans = plans_of(pool)
    plan = plan_pool(pool, plans, attention=attention)
    check_schedule(plan, pool, plans, 1, 8192)
    assert useful_share(plan) >= 0.90


@pytest.mark.slow
def test_real_answers_waste_little(shared_data):
    candidates = read_pool(str(shared_data / "gsm8k_teachers")).candidates
    tokenizer = load_tokenizer(shared_data / "tokenizers" / "gpt2")
    skipped = Counter()
    pool = list(pipeline.encode(candidates, tokenizer, parse_segmenter("sentence"), skipped))
    assert (len(pool), skipped) == (4000, {})
    plans = plans_of(pool)
    plan = plan_pool(pool, plans)
    check_schedule(plan, pool, plans, 1, 8192)
    assert useful_share(plan) >= 0.90

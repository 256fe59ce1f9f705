"""Window plans against the definition, step by step and in exact arithmetic."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lalp_jax.data.records import Candidate, Encoded, Prompt, Turn
from lalp_jax.data.windows import Context, Window, local_windows, plan_windows, step_start, window_tokens
from lalp_jax.errors import InputError

UNLIMITED = 10**9


def encoded_of(step_lengths, n_prompt=3, prompt_id="p", name="c", vocab=384, seed=0):
    """A candidate of random tokens; candidates of one prompt id have the same prompt."""
    digits = np.random.default_rng([*prompt_id.encode(), n_prompt])
    ends = np.cumsum(step_lengths).astype(np.int32)
    tokens = np.random.default_rng([*name.encode(), seed]).integers(0, vocab, int(ends[-1])).astype(np.int32)
    prompt = Prompt(prompt_id, (Turn("user", prompt_id),))
    return Encoded(
        candidate=Candidate(name, prompt, "teacher", "x" * len(tokens)),
        prompt_tokens=digits.integers(0, vocab, n_prompt).astype(np.int32),
        tokens=tokens,
        token_ends=ends,
        char_starts=np.concatenate([[0], ends[:-1]]).astype(np.int32),
        char_ends=ends,
    )


CONTEXTS = st.one_of(
    st.integers(0, 12).map(lambda k: (Context(k=k), lambda step: max(0, step - k))),
    st.integers(0, 100).map(
        lambda percent: (
            Context(k=None, fraction=percent / 100),
            lambda step: step - math.ceil(Fraction(percent, 100) * step),
        )
    ),
)
"""A context, and by the definition the first step that a step (from 0) is read with."""


@given(st.integers(1, 150), CONTEXTS)
def test_every_step_is_scored_once_with_exactly_its_context(n_steps, case):
    context, first_of = case
    windows = local_windows(n_steps, context)
    scored = [(step, window.first) for window in windows for step in range(window.scored, window.end)]
    assert scored == [(step, first_of(step)) for step in range(n_steps)]
    assert len({window.first for window in windows}) == len(windows)
    assert all(window.scored < window.end and not window.ordinary for window in windows)


@given(st.integers(1, 60), st.integers(0, 12))
def test_a_number_of_steps_makes_one_window_of_the_first_and_one_for_each_later(n_steps, k):
    head = min(n_steps, k + 1)
    later = [Window(step - k, step, step + 1) for step in range(k + 1, n_steps)]
    assert local_windows(n_steps, Context(k=k)) == [Window(0, 0, head), *later]


@given(st.integers(1, 2000), st.integers(0, 1000))
def test_fractions_are_rounded_up_exactly(step, thousandths):
    context = Context(k=None, fraction=thousandths / 1000)
    assert step - context.first_step(step) == math.ceil(Fraction(thousandths, 1000) * step)


LENGTHS = st.lists(st.integers(1, 9), min_size=1, max_size=25)


@given(LENGTHS, st.integers(1, 20), CONTEXTS)
def test_the_ordinary_pass_takes_over_the_steps_that_start_where_it_does(lengths, n_prompt, case):
    context, first_of = case
    encoded = encoded_of(lengths, n_prompt)
    plan = plan_windows(encoded, context, local=True, ordinary=True, max_positions=UNLIMITED)
    folded = 0
    while folded < len(lengths) and first_of(folded) == 0:
        folded += 1
    assert plan.folded == folded
    if context.k is not None:
        assert plan.folded == min(len(lengths), context.k + 1)
    assert plan.windows[0] == Window(0, 0, len(lengths), ordinary=True)
    local = [step for w in plan.windows[1:] for step in range(w.scored, w.end) if not w.ordinary]
    assert local == list(range(folded, len(lengths)))
    assert not plan.missing


@given(LENGTHS, st.integers(1, 20), CONTEXTS, st.booleans(), st.booleans(), st.integers(1, 120))
def test_what_does_not_fit_is_missing_with_a_reason(lengths, n_prompt, case, local, ordinary, positions):
    context, first_of = case
    encoded = encoded_of(lengths, n_prompt)
    plan = plan_windows(encoded, context, local=local, ordinary=ordinary, max_positions=positions)
    needed = [n_prompt + sum(lengths[first_of(step) : step + 1]) for step in range(len(lengths))]
    local_fits, ordinary_fits = max(needed) <= positions, n_prompt + sum(lengths) <= positions
    wanted = {
        kind
        for kind, asked, fits in [("local", local, local_fits), ("ordinary", ordinary, ordinary_fits)]
        if asked and not fits
    }
    assert set(plan.missing) == wanted
    assert all(str(positions) in reason for reason in plan.missing.values())
    kinds = {window.ordinary for window in plan.windows}
    assert (True in kinds) == (ordinary and ordinary_fits)
    if local and local_fits and not (ordinary and ordinary_fits):
        assert plan.windows == tuple(local_windows(len(lengths), context))
        assert plan.folded == 0
    if not local:
        assert kinds <= {True}
        assert plan.folded == 0


def test_local_windows_are_planned_where_only_the_ordinary_pass_is_too_long():
    encoded = encoded_of([10] * 20, n_prompt=5)
    plan = plan_windows(encoded, Context(k=2), local=True, ordinary=True, max_positions=35)
    assert plan.missing == {"ordinary": "205 tokens exceed the student's 35 positions"}
    assert len(plan.windows) == 18
    short = plan_windows(encoded, Context(k=2), local=True, ordinary=True, max_positions=34)
    assert short.windows == ()
    assert short.missing["local"] == ("step 3 with its context takes 35 tokens; the student has 34 positions")


@given(LENGTHS, st.data())
def test_window_tokens_counts_context_and_steps(lengths, data):
    first = data.draw(st.integers(0, len(lengths) - 1))
    end = data.draw(st.integers(first + 1, len(lengths)))
    encoded = encoded_of(lengths)
    assert window_tokens(encoded, Window(first, first, end)) == sum(lengths[first:end])
    assert step_start(encoded.token_ends, first) == sum(lengths[:first])


def test_contexts():
    assert Context().name == "k=4"
    assert Context(k=None, fraction=0.25).name == "fraction=0.25"
    for wrong in ({"k": -1}, {"k": 2, "fraction": 0.5}, {"k": None}, {"k": None, "fraction": 1.5}):
        with pytest.raises(InputError, match="--"):
            Context(**wrong)
    with pytest.raises(InputError, match="window-fraction"):
        Context(k=None, fraction=float("nan"))

"""Selecting answers and teachers, against slow plain computations; the files they become; the table."""

import dataclasses
import json
import math
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lalp_jax.data.records import Candidate, Prompt, Turn
from lalp_jax.errors import InputError
from lalp_jax.selection.responses import (
    ScoredCandidate,
    Selected,
    select_responses,
    select_teacher,
    to_jsonl,
    to_messages,
)
from lalp_jax.selection.summary import summary_table, visible
from lalp_jax.selection.teachers import rank_teachers


def row(id, prompt="p", teacher="t", score=-1.0, n_tokens=3, correct=None, **scores):
    turns = (Turn("user", f"question {prompt}"),)
    candidate = Candidate(id, Prompt(prompt, turns), teacher, f"answer {id}", correct)
    return ScoredCandidate(candidate, n_tokens, {"lalp": score, **scores})


def ids(selected):
    return [item.row.candidate.id for item in selected]


# Few values, so that ties in score, and in score and tokens, are common.
SCORES = st.sampled_from([-2.0, -1.0, -0.5, 0.0, None, math.nan, math.inf, -math.inf])


@st.composite
def pools(draw):
    n = draw(st.integers(0, 14))
    return [
        row(
            f"c{i:02d}",
            prompt=draw(st.sampled_from("pqr")),
            teacher=draw(st.sampled_from("tuv")),
            score=draw(SCORES),
            n_tokens=draw(st.sampled_from([None, 1, 2])),
            correct=draw(st.sampled_from([None, True, False])),
        )
        for i in range(n)
    ]


SETTINGS = st.fixed_dictionaries(
    {"higher_is_better": st.booleans(), "keep": st.integers(1, 4), "require_correct": st.booleans()}
)


def beats(a, b, higher):
    """The tie rule, spelt out case by case."""
    x, y = a.scores["lalp"], b.scores["lalp"]
    if x != y:
        return x > y if higher else x < y
    if a.n_tokens != b.n_tokens:
        return b.n_tokens is None or (a.n_tokens is not None and a.n_tokens < b.n_tokens)
    return a.candidate.id < b.candidate.id


@given(pools(), SETTINGS)
def test_against_counting_the_better_ones(rows, settings):
    """An answer is selected at rank r exactly if r-1 eligible answers to its prompt beat it, r <= keep."""
    eligible = [
        r
        for r in rows
        if r.scores["lalp"] is not None
        and math.isfinite(r.scores["lalp"])
        and not (settings["require_correct"] and r.candidate.correct is not True)
    ]
    expected = {}
    for a in eligible:
        rivals = [b for b in eligible if b.candidate.prompt.id == a.candidate.prompt.id]
        rank = 1 + sum(beats(b, a, settings["higher_is_better"]) for b in rivals if b is not a)
        if rank <= settings["keep"]:
            expected[a.candidate.id] = rank
    selected = select_responses(rows, signal="lalp", **settings)
    assert {s.row.candidate.id: s.rank for s in selected} == expected
    assert all(s.score == s.row.scores["lalp"] for s in selected)


@given(pools(), SETTINGS)
def test_prompts_come_in_input_order_and_ranks_within(rows, settings):
    first = {r.candidate.prompt.id: i for i, r in reversed(list(enumerate(rows)))}
    keys = [
        (first[s.row.candidate.prompt.id], s.rank) for s in select_responses(rows, signal="lalp", **settings)
    ]
    assert keys == sorted(keys)


@given(pools(), SETTINGS, st.randoms(use_true_random=False))
def test_order_of_rows_does_not_matter(rows, settings, random):
    shuffled = random.sample(rows, len(rows))
    one, other = (select_responses(r, signal="lalp", **settings) for r in (rows, shuffled))
    assert {(s.row.candidate.id, s.rank) for s in one} == {(s.row.candidate.id, s.rank) for s in other}
    if rows:
        ranking = {"lalp": settings["higher_is_better"]}
        assert rank_teachers(rows, ranking) == rank_teachers(shuffled, ranking)


@given(pools(), SETTINGS)
def test_keeping_more_keeps_what_was_kept(rows, settings):
    more = {**settings, "keep": settings["keep"] + 1}
    fewer, larger = (select_responses(rows, signal="lalp", **s) for s in (settings, more))
    assert set(ids(fewer)) <= set(ids(larger))


def test_ties():
    rows = [
        row("d", score=-1.0, n_tokens=None),
        row("c", score=-1.0, n_tokens=9),
        row("b", score=-1.0, n_tokens=5),
        row("a", score=-1.0, n_tokens=5),
        row("e", score=-3.0, n_tokens=1),
    ]
    options = {"signal": "lalp", "keep": 9, "require_correct": False}
    assert ids(select_responses(rows, higher_is_better=True, **options)) == ["a", "b", "c", "d", "e"]
    assert ids(select_responses(rows, higher_is_better=False, **options)) == ["e", "a", "b", "c", "d"]


def test_a_missing_value_is_not_the_best_log_prob():
    """A missing score must not be read as 0.0, the best there is."""
    rows = [row("none", score=None), row("nan", score=math.nan), row("real", score=-7.0)]
    options = {"signal": "lalp", "keep": 3, "require_correct": False, "higher_is_better": True}
    assert ids(select_responses(rows, **options)) == ["real"]


def test_select_teacher_is_the_selection_among_its_rows():
    rows = [
        row("a", "p", "t", -1.0),
        row("b", "p", "u", -0.5),
        row("c", "q", "t", -2.0),
        row("d", "p", "t", -3.0),
    ]
    options = {"signal": "lalp", "higher_is_better": True, "require_correct": False}
    assert ids(select_teacher(rows, teacher="t", keep=1, **options)) == ["a", "c"]
    assert ids(select_teacher(rows, teacher="t", keep=2, **options)) == ["a", "d", "c"]
    with pytest.raises(InputError, match="no answer of teacher 'x'"):
        select_teacher(rows, teacher="x", keep=1, **options)


def test_mistakes_are_named():
    rows = [row("a", galp=-1.0)]
    options = {"higher_is_better": True, "require_correct": False}
    with pytest.raises(InputError, match=r"lapl.*\n.*galp, lalp"):
        select_responses(rows, signal="lapl", keep=1, **options)
    with pytest.raises(InputError, match="--keep"):
        select_responses(rows, signal="lalp", keep=0, **options)
    with pytest.raises(InputError, match="lapl"):
        rank_teachers(rows, {"lapl": True})


def conversation(response, score=-0.1):
    prompt = Prompt("p1", (Turn("system", "Be brief."), Turn("user", "你好?")))
    return Selected(ScoredCandidate(Candidate("c1", prompt, "T", response), 4, {"lalp": score}), 1, score)


def test_messages():
    assert to_messages(conversation("Hi."), signal="lalp") == {
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "你好?"},
            {"role": "assistant", "content": "Hi."},
        ],
        "prompt_id": "p1",
        "teacher": "T",
        "candidate_id": "c1",
        "signal": "lalp",
        "score": -0.1,
    }


@given(
    st.text(
        st.characters(codec=None, categories=None) | st.sampled_from('\u2028\u2029\x85\x0b\x0c\x1c\\"\ud800')
    ),
    st.floats(allow_nan=False, allow_infinity=False),
)
def test_jsonl_reads_back_exactly_with_any_reader(text, score):
    data = to_jsonl([conversation(text, score)] * 2, signal="lalp")
    lines = data.decode().splitlines()  # splits at far more than \n
    assert len(lines) == 2
    for line in lines:
        back = json.loads(line)
        assert back["messages"][2]["content"] == text
        assert back["score"] == score


def test_jsonl_keeps_letters_as_they_are():
    assert "你好" in to_jsonl([conversation("x")], signal="lalp").decode()
    assert to_jsonl([], signal="lalp") == b""


@given(pools().filter(bool), st.booleans())
def test_teachers_against_plain_statistics(rows, higher):
    ranking = rank_teachers(rows, {"lalp": higher})
    teachers = sorted({r.candidate.teacher for r in rows})
    prompts = {r.candidate.prompt.id for r in rows}
    found = {t: {} for t in teachers}
    for r in rows:
        if r.scores["lalp"] is not None and math.isfinite(r.scores["lalp"]):
            found[r.candidate.teacher].setdefault(r.candidate.prompt.id, []).append(r.scores["lalp"])
    shared = [p for p in prompts if all(p in found[t] for t in teachers)]
    result = ranking.by("lalp")
    assert result.n_prompts == len(shared)
    assert (result.reason is None) == bool(shared)
    for name in teachers:
        entry, values = result.of(name), [statistics.fmean(found[name][p]) for p in shared]
        assert entry.coverage == pytest.approx(len(found[name]) / len(prompts))
        assert entry.n_scored == sum(map(len, found[name].values()))
        assert entry.mean == (pytest.approx(statistics.fmean(values)) if values else None)
        error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
        assert entry.stderr == (pytest.approx(error) if error is not None else None)
    if shared:
        best = (max if higher else min)(entry.mean for entry in result.teachers)
        assert result.of(result.best).mean == best
        means = [entry.mean for entry in result.teachers]
        assert means == sorted(means, reverse=higher)


def test_mean_of_prompt_means_on_shared_prompts_only():
    rows = [
        row("a", "p", "t", -1.0, correct=True),
        row("b", "p", "t", -3.0, correct=False),
        row("c", "q", "t", -4.0),
        row("d", "r", "t", 0.0),  # u has no score for r: it must not lift t
        row("e", "p", "u", -2.5),
        row("f", "q", "u", -2.5),
        row("g", "r", "u", None),
    ]
    ranking = rank_teachers(rows, {"lalp": True})
    result = ranking.by("lalp")
    assert result.n_prompts == 2
    assert result.best == "u"
    assert result.of("t").mean == pytest.approx(-3.0)  # (-2 + -4) / 2, not (-1 - 3 - 4) / 3
    assert result.of("t").stderr == pytest.approx(1.0)
    assert result.of("u").coverage == pytest.approx(2 / 3)
    assert ranking.teachers[0] == dataclasses.replace(
        ranking.teachers[0], name="t", n_answers=4, n_prompts=3, n_judged=2, share_correct=0.5
    )
    assert ranking.teachers[1].share_correct is None


def test_no_shared_prompt_has_a_reason_and_no_mean():
    rows = [row("a", "p", "t"), row("b", "q", "u"), row("c", "q", "mute", None)]
    ranking = rank_teachers(rows, {"lalp": True})
    result = json.loads(ranking.to_json())["signals"][0]
    assert result["best"] is None
    assert result["reason"] == "no prompt has a scored answer from every teacher; none at all from mute"
    assert [entry["mean"] for entry in result["teachers"]] == [None] * 3
    assert rank_teachers([], {"lalp": True}).by("lalp").reason == "there are no answers"


def test_direction_turns_the_order():
    rows = [row("a", teacher="t", score=-1.0), row("b", teacher="u", score=-2.0)]
    assert rank_teachers(rows, {"lalp": True}).by("lalp").best == "t"
    assert rank_teachers(rows, {"lalp": False}).by("lalp").best == "u"


def test_summary_table():
    rows = [
        row("a", "p", "stepwise", -1.0, galp=-0.5),
        row("b", "q", "stepwise", -2.0, galp=-0.25),
        row("c", "p", "老师", -3.0, galp=-0.125),
        row("d", "q", "老师", -4.0, galp=None),
    ]
    ranking = rank_teachers(rows, {"lalp": True, "galp": True})
    selected = select_responses(rows, signal="lalp", higher_is_better=True, keep=1, require_correct=False)
    assert summary_table(ranking, selected, signals=("lalp", "galp")).splitlines() == [
        "teacher   answers  scored         mean lalp  mean galp  selected   share",
        "────────  ───────  ──────  ────────────────  ─────────  ────────  ──────",
        "stepwise        2       2  -1.5000 ± 0.5000    -0.5000         2  100.0%",
        "老师            2       2  -3.5000 ± 0.5000    -0.1250         0    0.0%",
    ]
    assert summary_table(ranking, [], signals=("lalp",)).splitlines()[-1].endswith("0      –")


def test_summary_table_is_safe_on_a_terminal():
    hostile = "\x1b[2Jevil\u202ename\r\n\u2066\ud800" + "x" * 300
    ranking = rank_teachers([row("a", teacher=hostile)], {"lalp": True})
    table = summary_table(ranking, [], signals=("lalp",))
    assert "\\x1b[2Jevil\\u202ename\\x0d\\x0a\\u2066" in table
    assert len(table.splitlines()) == 3
    assert max(map(len, table.splitlines())) < 110
    table.encode()


def test_summary_says_why_there_is_no_mean():
    ranking = rank_teachers([row("a", "p", "t"), row("b", "q", "u")], {"lalp": True})
    assert summary_table(ranking, [], signals=("lalp",)).endswith(
        "lalp: no prompt has a scored answer from every teacher\n"
    )


@given(st.text(st.characters(codec=None, categories=None)))
def test_visible_text_holds_nothing_that_hides(text):
    shown = visible(text)
    assert not any(c in shown for c in "\x00\x1b\x7f\x9b\u200b\u200e\u202a\u202e\u2066\u2069\u2028\ufeff\n")
    shown.encode()
    assert visible("a\nb\tc", keep="\n\t") == "a\nb\tc"

"""The report: complete, inert whatever the data holds, and seen through by a browser."""

import dataclasses
import html.parser
import itertools
import math
import random
import shutil
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lalp_jax.data.records import Candidate, Prompt, Turn
from lalp_jax.selection.charts import Interval, Points, bin_shares, histogram, interval_chart, scatter, ticks
from lalp_jax.selection.report import ReportData, ShownAnswer, render_report
from lalp_jax.selection.responses import ScoredCandidate, select_responses
from lalp_jax.selection.teachers import rank_teachers

HOSTILE = [
    "<script>alert(1)</script>",
    "\"><img src=x onerror='alert(1)'>",
    "' onmouseover='alert(1)' x='",
    "--> </style></title></svg><script>alert(1)</script><!--",
    '<a href="javascript:alert(1)">x</a>',
    "<iframe srcdoc='&lt;script&gt;'></iframe>",
    "&lt;b&gt; &#60;script&#62;",
    "\u202eevil\u2066\u200b\x00\x1b[31m\ud800",
    "</svg><style>*{background:url(//evil)}</style>",
]
VOID = {"meta", "rect", "path", "circle"}


class Page(html.parser.HTMLParser):
    """Collects tags, attributes and text, and insists that every element is closed in order."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.text, self.open = [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)

    @property
    def content(self):
        return "".join(self.text)


def pool(teachers=("terse", "stepwise", "often wrong"), prompts=30, ask="What is 2 + 2?", say="It is 4.\n"):
    """Rows of several teachers whose scores differ by teacher and prompt; a few are missing."""
    dice, rows = random.Random(0), []
    for i in range(prompts):
        prompt = Prompt(f"prompt-{i}", (Turn("system", "Be brief."), Turn("user", ask)))
        for t, teacher in enumerate(teachers):
            lalp = None if dice.random() < 0.05 else dice.gauss(-0.8 - 0.1 * t, 0.25)
            galp = None if lalp is None else lalp * 0.7
            candidate = Candidate(f"{teacher}-{i}", prompt, teacher, say, dice.random() < 0.6)
            rows.append(ScoredCandidate(candidate, dice.randint(20, 900), {"lalp": lalp, "galp": galp}))
    return rows


def report(rows, n_shown=3, **changes):
    selected = select_responses(rows, signal="lalp", higher_is_better=True, keep=1, require_correct=False)
    values = [-0.1, -0.3, -0.7, -1.2, -1.7, -2.5, -9.0, None]
    shown = tuple(
        ShownAnswer(
            item, tuple((f"{item.row.candidate.response} step {i}.\n", v) for i, v in enumerate(values))
        )
        for item in selected[:n_shown]
    )
    data = ReportData(
        student="tiny-student",
        date="2026-01-02",
        signal="lalp",
        rows=tuple(rows),
        selected=tuple(selected),
        ranking=rank_teachers(rows, {"galp": True, "lalp": True}),
        shown=shown,
        settings=(("signal", "lalp"), ("k", "4")),
        accounting=(("read", len(rows)), ("skipped: no text", 12)),
    )
    return dataclasses.replace(data, **changes)


def test_the_page_tells_what_it_was_given():
    data = report(pool())
    page = Page(render_report(data))
    for text in (
        "tiny-student",
        "2026-01-02",
        "often wrong",
        "skipped: no text",
        "30 prompts",
        "What is 2 + 2?",
    ):
        assert text in page.content
    ranking = data.ranking.by("lalp")
    for entry in ranking.teachers:
        assert f"−{-entry.mean:.4f} ± {entry.stderr:.4f}" in page.content
    picked = sum(item.row.candidate.teacher == "terse" for item in data.selected) / len(data.selected)
    assert f"{picked:.1%}" in page.content
    assert page.tags.count("article") == 3
    assert page.tags.count("figure") == 3
    for value in ("−0.100", "−9.000", "missing"):  # readable without colour
        assert page.content.count(value) == 3
    classes = [value.split()[-1] for name, value in page.attributes if name == "class" and "step" in value]
    assert classes == ["q0", "q1", "q2", "q3", "q4", "q5", "q6", "qx"] * 3


def test_same_input_same_bytes():
    assert render_report(report(pool())) == render_report(report(pool()))


@pytest.mark.parametrize("payload", HOSTILE)
def test_hostile_data_is_inert(payload):
    rows = pool(teachers=(payload, payload + "2"), prompts=4, ask=payload, say=payload)
    rows = [dataclasses.replace(r, scores={**r.scores, payload: -1.0}) for r in rows]
    rows = [
        dataclasses.replace(r, candidate=dataclasses.replace(r.candidate, prompt=_named(r, payload)))
        for r in rows
    ]
    hostile = report(
        rows,
        student=payload,
        date=payload,
        settings=((payload, payload),),
        accounting=((payload, 1),),
        ranking=rank_teachers(rows, {"lalp": True, payload: True}),
    )
    check_inert(render_report(hostile), render_report(report(pool(teachers=("a", "b"), prompts=4))))
    by_payload = dataclasses.replace(hostile, signal=payload)
    check_inert(render_report(by_payload), render_report(report(pool(teachers=("a", "b"), prompts=4))))


def _named(row, payload):
    return dataclasses.replace(row.candidate.prompt, id=payload + row.candidate.prompt.id)


def check_inert(text, harmless):
    """Nothing in the page that a harmless page of the same make does not have."""
    page, plain = Page(text), Page(harmless)
    assert set(page.tags) == set(plain.tags)
    assert {name for name, _ in page.attributes} == {name for name, _ in plain.attributes}
    assert "script" not in page.tags
    assert not any(
        name.startswith("on") or name in ("href", "src", "style", "srcdoc") for name, _ in page.attributes
    )
    assert ("http-equiv", "Content-Security-Policy") in page.attributes
    policy = next(value for name, value in page.attributes if name == "content" and "default-src" in value)
    assert policy.startswith("default-src 'none'; style-src 'unsafe-inline'; img-src data:")
    assert not any(c in text for c in "\u202e\u2066\u200b\x00\x1b")
    text.encode()


@given(st.text(st.characters(codec=None, categories=None), max_size=30))
def test_any_text_is_inert(text):
    rows = pool(teachers=(text, "other" + text), prompts=2, ask=text, say=text)
    check_inert(render_report(report(rows, student=text)), render_report(report(pool(("a", "b"), 2))))


def test_degenerate_reports():
    assert "Nothing was selected" in render_report(report([]))
    lone = pool(teachers=("only",), prompts=1)
    assert "–" not in Page(render_report(report(lone, n_shown=0))).content.split("Teachers")[0]
    unscored = [dataclasses.replace(r, scores={"lalp": None, "galp": None}) for r in pool(prompts=2)]
    content = Page(render_report(report(unscored))).content
    assert "no prompt has a scored answer from every teacher" in content
    assert "Nothing was selected" in content
    same = [dataclasses.replace(r, n_tokens=7, scores={"lalp": -1.0, "galp": None}) for r in pool(prompts=3)]
    assert "nan" not in render_report(report(same))


def test_the_scatter_is_a_fixed_fair_draw():
    rows = pool(teachers=("a", "b", "c"), prompts=1500)
    page = render_report(report(rows))
    assert "2,000 of" in page
    assert page.count("h0") == 2000
    assert len(page.encode()) < 120_000
    shuffled = random.Random(1).sample(rows, len(rows))
    line = next(line for line in page.splitlines() if "against response tokens" in line)
    other = next(
        line for line in render_report(report(shuffled)).splitlines() if "against response tokens" in line
    )
    assert line == other


@given(st.floats(-1e3, 1e3), st.floats(1e-3, 1e6), st.integers(2, 9))
def test_ticks_are_few_round_and_within(low, width, count):
    high = low + width
    marks = ticks(low, high, count)
    slack = 1e-6 * (high - low) + 1e-9 * abs(low)
    assert all(low - slack <= mark <= high + slack for mark in marks)
    assert len(marks) <= count + 1
    for a, b in itertools.pairwise(marks):
        digits = (b - a) / 10.0 ** math.floor(math.log10((b - a) * (1 + 1e-6)))
        assert min(abs(digits - d) for d in (1, 2, 5)) < 1e-2


def test_histogram_shares():
    assert bin_shares([-9.0, 0.1, 0.2, 0.6, 9.0], [0.0, 0.5, 1.0]) == pytest.approx([0.6, 0.4])
    assert bin_shares([], [0.0, 0.5, 1.0]) == [0.0, 0.0]
    page = Page(histogram([0.1, 0.2, 0.6], [0.0, 0.5, 1.0], 1.0, 0, "t"))
    heights = [float(value) for name, value in page.attributes if name == "height"]
    assert heights[0] == pytest.approx(2 * heights[1], abs=0.2)


def test_charts_place_values_in_order():
    """Further right is larger, further up is larger, and a whisker spans mean ± error."""
    chart = Page(interval_chart([Interval("a", 0, -1.0, 0.1), Interval("b", 1, -0.5, None)], "t"))
    a, b = [float(value) for name, value in chart.attributes if name == "cx"]
    assert a < b
    whisker = next(value for name, value in chart.attributes if name == "d" and "v12" in value)
    low = float(whisker[1:].split()[0])
    high = float(whisker.split("H")[1].split("M")[0])
    assert (low + high) / 2 == pytest.approx(a, abs=0.1)
    assert (high - low) / 2 == pytest.approx((b - a) * 0.1 / 0.5, abs=0.2)
    dots = Page(scatter([Points(0, [10, 100, 1000], [-2.0, -1.0, -0.5])], "x", "y", "t"))
    d = next(value for name, value in dots.attributes if name == "d" and "h0" in value)
    places = [tuple(map(float, dot.split("h")[0].split())) for dot in d.split("M")[1:]]
    assert places[1][0] - places[0][0] == pytest.approx(places[2][0] - places[1][0], abs=0.2)  # logarithmic
    assert places[0][1] > places[1][1] > places[2][1]
    assert places[0][1] - places[1][1] == pytest.approx(2 * (places[1][1] - places[2][1]), abs=0.2)


@pytest.mark.parametrize("dark", [False, True])
def test_a_browser_shows_it_and_reports_no_error(tmp_path, dark):
    """Chromium draws the page in both schemes, and says nothing of a refused style or script."""
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("chromium is not on PATH")
    path, shot = tmp_path / "report.html", tmp_path / "shot.png"
    path.write_text(render_report(report(pool(teachers=tuple(HOSTILE[:3])))), encoding="utf-8")
    scheme = ["--blink-settings=preferredColorScheme=0"] if dark else []
    command = [chromium, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", *scheme]
    command += [
        f"--user-data-dir={tmp_path / 'profile'}",
        "--enable-logging=stderr",
        "--window-size=1000,1400",
    ]
    done = subprocess.run([*command, f"--screenshot={shot}", path.as_uri()], capture_output=True, timeout=120)
    assert done.returncode == 0
    assert shot.stat().st_size > 20_000
    assert b"CONSOLE" not in done.stderr, done.stderr

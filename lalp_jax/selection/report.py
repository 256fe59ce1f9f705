"""`report.html`: what was selected and why, on one page that needs no network and runs no script.

Whatever comes from data (names, prompts, answers) passes `_esc` on its way into the page: characters that
hide or reorder text are shown as escapes, and markup is inert. The page's own policy forbids scripts, too.
"""

import dataclasses
import hashlib
import html
from collections import Counter
from collections.abc import Sequence

import numpy as np

from lalp_jax.selection.charts import (
    Interval,
    Points,
    bin_shares,
    histogram,
    interval_chart,
    scatter,
    share_bar,
    swatch,
    true_minus,
)
from lalp_jax.selection.responses import ScoredCandidate, Selected
from lalp_jax.selection.style import STYLE
from lalp_jax.selection.summary import format_mean, shorten, visible
from lalp_jax.selection.teachers import SignalRanking, TeacherRanking

_SCATTER_POINTS = 2000
_BINS = 24
_LEVELS = (-0.25, -0.5, -1.0, -1.5, -2.0, -3.0)  # nats per token; each is the upper end of a darker tint
_LABEL_WIDTH = 24
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"


@dataclasses.dataclass(frozen=True, slots=True)
class ShownAnswer:
    """A selected answer to print: its steps in order, each with its mean log-prob in nats (None: missing)."""

    selected: Selected
    steps: tuple[tuple[str, float | None], ...]


@dataclasses.dataclass(frozen=True, slots=True)
class ReportData:
    """All that the page tells.

    Attributes:
      date: as it is to be printed; an argument, so that the same input gives the same bytes.
      signal: the one that selected; it must be among the signals of `ranking`.
      rows: all candidates with their scores; `selected`: those picked.
      shown: the selected answers to print.
      settings: labels and values; `accounting`: what became of the rows, labels and counts.
    """

    student: str
    date: str
    signal: str
    rows: tuple[ScoredCandidate, ...]
    selected: tuple[Selected, ...]
    ranking: TeacherRanking
    shown: tuple[ShownAnswer, ...]
    settings: tuple[tuple[str, str], ...]
    accounting: tuple[tuple[str, int], ...]


def render_report(data: ReportData) -> str:
    """The page, as text to be stored in UTF-8."""
    series = {teacher.name: i for i, teacher in enumerate(data.ranking.teachers)}
    body = [
        _header(data),
        _teachers(data, series),
        _distributions(data, series),
        _lengths(data, series),
        _answers(data, series),
        _facts("Settings", data.settings),
        _facts("Rows", [(label, f"{count:,}") for label, count in data.accounting]),
    ]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>Selection for {_esc(data.student)}</title>\n<style>{STYLE}</style>\n</head>\n"
        f"<body>\n<main>\n{''.join(part for part in body if part)}</main>\n</body>\n</html>\n"
    )


def _esc(text: str) -> str:
    """Text from data, fit for element content and quoted attributes."""
    return html.escape(visible(text, keep="\n\t"), quote=True)


def _section(title: str, content: str, note: str = "") -> str:
    said = f'<p class="note">{note}</p>\n' if note else ""
    return f"<section>\n<h2>{title}</h2>\n{said}{content}\n</section>\n"


def _header(data: ReportData) -> str:
    """Title and the four numbers that matter most."""
    n_scored = sum(row.score(data.signal) is not None for row in data.rows)
    tiles = [
        (f"{data.ranking.n_prompts:,}", "prompts"),
        (f"{len(data.ranking.teachers):,}", "teachers"),
        (f"{n_scored:,}", f"of {len(data.rows):,} answers scored"),
        (f"{len(data.selected):,}", "selected"),
    ]
    boxes = "".join(f"<li><b>{number}</b> {label}</li>" for number, label in tiles)
    return (
        f"<header>\n<h1>Selection report</h1>\n<p>Student <b>{_esc(data.student)}</b>, signal "
        f'<b>{_esc(data.signal)}</b>, {_esc(data.date)}</p>\n<ul class="tiles">{boxes}</ul>\n</header>\n'
    )


def _teachers(data: ReportData, series: dict[str, int]) -> str:
    """The ranking: a chart of means, and a table with the other signals and the share of the selection."""
    ranking = data.ranking.by(data.signal)
    if ranking.reason is not None:
        note = f"No means: {_esc(ranking.reason)}."
    else:
        side = "higher" if ranking.higher_is_better else "lower"
        note = (
            f"Mean {_esc(data.signal)} ± one standard error over the {ranking.n_prompts:,} prompts that all "
            f"teachers share; {side} is better. Best: <b>{_esc(ranking.best or '')}</b>."
        )
    intervals = [
        Interval(
            shorten(visible(entry.teacher), _LABEL_WIDTH), series[entry.teacher], entry.mean, entry.stderr
        )
        for entry in ranking.teachers
        if entry.mean is not None
    ]
    chart = interval_chart(intervals, f"Mean {visible(data.signal)} of each teacher") if intervals else ""
    return _section(
        "Teachers", f'<div class="wide">{chart}</div>\n' + _teacher_table(data, ranking, series), note
    )


def _teacher_table(data: ReportData, ranking: SignalRanking, series: dict[str, int]) -> str:
    picked = Counter(item.row.candidate.teacher for item in data.selected)
    facts = {teacher.name: teacher for teacher in data.ranking.teachers}
    signals = [data.signal, *(r.signal for r in data.ranking.signals if r.signal != data.signal)]
    titles = ["Answers", "Prompts covered", "Correct", *map(_esc, signals), "Share of the selection"]
    lines = []
    for entry in ranking.teachers:
        teacher = facts[entry.teacher]
        share = picked[entry.teacher] / len(data.selected) if data.selected else 0.0
        cells = [
            f"{teacher.n_answers:,}",
            f"{entry.coverage:.1%}",
            "–" if teacher.share_correct is None else f"{teacher.share_correct:.1%}",
            *(true_minus(format_mean(data.ranking.by(signal).of(entry.teacher))) for signal in signals),
            f"{share:.1%} {share_bar(share, series[entry.teacher])}",
        ]
        row = "".join(f"<td>{cell}</td>" for cell in cells)
        lines.append(f'<tr><th scope="row">{_name(entry.teacher, series)}</th>{row}</tr>\n')
    head = "".join(f'<th scope="col">{title}</th>' for title in ["Teacher", *titles])
    table = f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{''.join(lines)}</tbody></table>"
    return f'<div class="wide">{table}</div>'


def _name(teacher: str, series: dict[str, int]) -> str:
    return f'<span class="who">{swatch(series[teacher])}<bdi>{_esc(teacher)}</bdi></span>'


def _distributions(data: ReportData, series: dict[str, int]) -> str:
    """A histogram of the signal for each teacher, all on the same axes."""
    values: dict[str, list[float]] = {name: [] for name in series}
    for row in data.rows:
        score = row.score(data.signal)
        if score is not None:
            values[row.candidate.teacher].append(score)
    everything = [value for own in values.values() for value in own]
    if not everything:
        return ""
    low, high = np.quantile(everything, [0.005, 0.995])
    edges = np.linspace(low, max(high, low + 1e-6), _BINS + 1).tolist()
    top = max(max(bin_shares(own, edges)) for own in values.values())
    figures = [
        f"<figure>{histogram(own, edges, top, series[name], f'Answers by {visible(data.signal)}')}"
        f"<figcaption>{_name(name, series)} <small>{len(own):,} answers</small></figcaption></figure>\n"
        for name, own in values.items()
        if own
    ]
    note = (
        f"Share of each teacher's answers by {_esc(data.signal)}, on the same axes. The outermost bars also "
        "hold what lies beyond: half a per cent of all answers on either side."
    )
    return _section("Distribution", f'<div class="panels">\n{"".join(figures)}</div>', note)


def _lengths(data: ReportData, series: dict[str, int]) -> str:
    """The signal against length: whether it merely prefers short or long answers."""
    points = [
        (
            hashlib.sha256(row.candidate.id.encode("utf-8", "backslashreplace")).digest(),
            row.n_tokens,
            score,
            row,
        )
        for row in data.rows
        if row.n_tokens and (score := row.score(data.signal)) is not None
    ]
    if not points:
        return ""
    sample = sorted(points, key=lambda point: point[0])[
        :_SCATTER_POINTS
    ]  # by hash: a fair draw, always the same
    groups = []
    for name, i in series.items():
        own = [(tokens, score) for _, tokens, score, row in sample if row.candidate.teacher == name]
        groups.append(Points(i, [tokens for tokens, _ in own], [score for _, score in own]))
    keys = "".join(f"<li>{_name(name, series)}</li>" for name in series)
    signal = visible(data.signal)
    chart = scatter(groups, "response tokens (logarithmic)", signal, f"{signal} against response tokens")
    note = f"{len(sample):,} of {len(points):,} answers." if len(sample) < len(points) else ""
    return _section("Length", f'<ul class="key">{keys}</ul>\n<div class="wide">{chart}</div>', note)


def _answers(data: ReportData, series: dict[str, int]) -> str:
    """Selected answers, step by step."""
    if not data.selected:
        return _section("Selected answers", "", "Nothing was selected.")
    if not data.shown:
        return ""
    bounds = ["≥ −0.25", *(f"&lt; {_signed(level, 2)}" for level in _LEVELS)]
    scale = "".join(f'<li class="q{i}">{bound}</li>' for i, bound in enumerate(bounds))
    articles = "".join(_answer(answer, data.signal, series) for answer in data.shown)
    note = (
        f"{len(data.shown):,} of {len(data.selected):,}. Before each step stands its mean local log-prob in "
        "nats per token; the stronger the tint, the less the student expected the step."
    )
    return _section("Selected answers", f'<ul class="scale">{scale}</ul>\n{articles}', note)


def _answer(answer: ShownAnswer, signal: str, series: dict[str, int]) -> str:
    """One answer: whose it is, the prompt to unfold, and its steps."""
    row = answer.selected.row
    candidate = row.candidate
    known = {True: ", correct", False: ", wrong", None: ""}[candidate.correct]
    tokens = "" if row.n_tokens is None else f", {row.n_tokens:,} tokens"
    facts = f"{_esc(signal)} {_signed(answer.selected.score)}{tokens}, {len(answer.steps):,} steps{known}"
    turns = "".join(
        f'<p class="turn" dir="auto"><b>{_esc(turn.role)}</b>{_esc(turn.content)}</p>'
        for turn in candidate.prompt.turns
    )
    steps = "".join(
        f'<li><span class="value">{"missing" if value is None else _signed(value)}</span>'
        f'<span class="step q{_level(value)}" dir="auto">{_esc(text.strip(chr(10)))}</span></li>\n'
        for text, value in answer.steps
    )
    return (
        f"<article>\n<h3>{_name(candidate.teacher, series)} <small>{facts}</small></h3>\n"
        f"<details><summary>Prompt {_esc(candidate.prompt.id)}</summary>{turns}</details>\n"
        f"<ol>\n{steps}</ol>\n</article>\n"
    )


def _level(value: float | None) -> str:
    """Which tint: 0 for a step that the student expects … 6; "x" for a missing value."""
    return "x" if value is None else str(sum(value < level for level in _LEVELS))


def _signed(value: float, digits: int = 3) -> str:
    """A number with a true minus sign."""
    return true_minus(f"{value:.{digits}f}")


def _facts(title: str, items: Sequence[tuple[str, str]]) -> str:
    """Labels and values."""
    lines = "".join(f"<dt>{_esc(label)}</dt><dd>{_esc(value)}</dd>\n" for label, value in items)
    return _section(title, f"<dl>\n{lines}</dl>") if items else ""

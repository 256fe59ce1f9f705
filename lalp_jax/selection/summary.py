"""The closing table of a selection, for the terminal, and text made safe to be looked at."""

import unicodedata
from collections import Counter
from collections.abc import Sequence

from lalp_jax.selection.responses import Selected
from lalp_jax.selection.teachers import TeacherMean, TeacherRanking

_NAME_WIDTH = 40  # columns of a teacher's name before it is cut
_GAP = "  "
_JOINERS = "\u200c\u200d"  # invisible, but Persian and emoji are spelt with them


def visible(text: str, *, keep: str = "") -> str:
    """Text without a character that hides, reorders or controls: those are shown as escapes.

    Control and format characters (terminal escapes, bidirectional overrides, zero-width spaces), line
    separators and lone surrogates become ``\\xNN`` or ``\\uNNNN``; those in `keep` stay.
    """
    return "".join(c if c in keep or not _hides(c) else _escape(c) for c in text)


def summary_table(ranking: TeacherRanking, selected: Sequence[Selected], *, signals: Sequence[str]) -> str:
    """The table of teachers, best first by the first signal.

    Args:
      signals: those to show, each as mean ± standard error over the prompts that all teachers share.
    """
    shares = Counter(item.row.candidate.teacher for item in selected)
    facts = {teacher.name: teacher for teacher in ranking.teachers}
    header = ["teacher", "answers", "scored", *(f"mean {signal}" for signal in signals), "selected", "share"]
    lines = [header]
    for entry in ranking.by(signals[0]).teachers:
        means = [format_mean(ranking.by(signal).of(entry.teacher)) for signal in signals]
        count = shares[entry.teacher]
        share = f"{count / len(selected):.1%}" if selected else "–"
        counts = [str(facts[entry.teacher].n_answers), str(entry.n_scored)]
        lines.append([shorten(visible(entry.teacher), _NAME_WIDTH), *counts, *means, str(count), share])
    notes = [f"{s}: {visible(r.reason)}" for s in signals if (r := ranking.by(s)).reason is not None]
    return "\n".join([*_aligned(lines), *notes]) + "\n"


def format_mean(entry: TeacherMean) -> str:
    """``-0.8123 ± 0.0045``, as much of it as exists; a dash for no mean."""
    if entry.mean is None:
        return "–"
    return f"{entry.mean:.4f}" if entry.stderr is None else f"{entry.mean:.4f} ± {entry.stderr:.4f}"


def shorten(text: str, width: int) -> str:
    """At most `width` columns of a terminal, the last one an ellipsis if something was cut off."""
    if _columns(text) <= width:
        return text
    while _columns(text) > width - 1:
        text = text[:-1]
    return text + "…"


def _hides(char: str) -> bool:
    """Whether a character must not reach the reader's eye or terminal as it is."""
    return char not in _JOINERS and unicodedata.category(char) in ("Cc", "Cf", "Cs", "Zl", "Zp")


def _escape(char: str) -> str:
    code = ord(char)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def _aligned(lines: Sequence[Sequence[str]]) -> list[str]:
    """Columns under each other: the first to the left, the others to the right, a rule below the header."""
    widths = [max(map(_columns, column)) for column in zip(*lines, strict=True)]
    text = []
    for line in lines:
        pads = [" " * (width - _columns(cell)) for width, cell in zip(widths, line, strict=True)]
        cells = [line[0] + pads[0], *(pad + cell for pad, cell in zip(pads[1:], line[1:], strict=True))]
        text.append(_GAP.join(cells).rstrip())
    return [text[0], _GAP.join("─" * width for width in widths), *text[1:]]


def _columns(text: str) -> int:
    """Columns that a text takes in a terminal: two for a wide East Asian character, none for a mark."""
    return sum(_char_columns(char) for char in text)


def _char_columns(char: str) -> int:
    if char in _JOINERS or unicodedata.category(char) in ("Mn", "Me"):
        return 0
    return 2 if unicodedata.east_asian_width(char) in ("W", "F") else 1

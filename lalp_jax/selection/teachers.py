"""Which teacher suits the student: the mean of each signal over the prompts that all teachers answered."""

import dataclasses
import json
from collections.abc import Mapping, Sequence

import numpy as np

from lalp_jax.selection.responses import ScoredCandidate, check_signal


@dataclasses.dataclass(frozen=True, slots=True)
class Teacher:
    """What is known of a teacher before any signal.

    Attributes:
      n_answers: its answers; n_prompts: the prompts they belong to.
      n_judged: its answers of which it is known whether they are correct.
      share_correct: correct ones among those; None if none was judged.
    """

    name: str
    n_answers: int
    n_prompts: int
    n_judged: int
    share_correct: float | None


@dataclasses.dataclass(frozen=True, slots=True)
class TeacherMean:
    """One teacher under one signal.

    Attributes:
      mean: over the shared prompts, of the mean over its answers to a prompt; None if no prompt is shared.
      stderr: standard error of that mean (between prompts); None for fewer than two prompts.
      n_scored: its answers with a score, on any prompt.
      coverage: share of all prompts to which it has an answer with a score.
    """

    teacher: str
    mean: float | None
    stderr: float | None
    n_scored: int
    coverage: float


@dataclasses.dataclass(frozen=True, slots=True)
class SignalRanking:
    """The teachers by one signal, best first; ties, and all without a mean, by name.

    Attributes:
      n_prompts: prompts to which every teacher has an answer with a score; the means are over these.
      reason: why there are no means; None if there are.
      best: name of the best teacher; None if there are no means.
    """

    signal: str
    higher_is_better: bool
    n_prompts: int
    reason: str | None
    best: str | None
    teachers: tuple[TeacherMean, ...]

    def of(self, teacher: str) -> TeacherMean:
        """The entry of one teacher. Raises KeyError for an unknown one."""
        return {entry.teacher: entry for entry in self.teachers}[teacher]


@dataclasses.dataclass(frozen=True, slots=True)
class TeacherRanking:
    """Content of `teachers.json`: teachers by name, and their order under each signal."""

    n_prompts: int
    teachers: tuple[Teacher, ...]
    signals: tuple[SignalRanking, ...]

    def by(self, signal: str) -> SignalRanking:
        """The ranking by one signal. Raises KeyError for one that was not asked for."""
        return {ranking.signal: ranking for ranking in self.signals}[signal]

    def to_json(self) -> bytes:
        """The bytes of `teachers.json`; missing values are null."""
        text = json.dumps(dataclasses.asdict(self), ensure_ascii=False, allow_nan=False, indent=2)
        return text.encode("utf-8", "backslashreplace") + b"\n"


def rank_teachers(rows: Sequence[ScoredCandidate], signals: Mapping[str, bool]) -> TeacherRanking:
    """Ranks the teachers by every signal; the order of the rows does not matter.

    Args:
      signals: whether higher is better, by name of the signal.

    Raises:
      InputError: no row knows one of the signals.
    """
    names = sorted({row.candidate.teacher for row in rows})
    prompts = {row.candidate.prompt.id for row in rows}
    return TeacherRanking(
        n_prompts=len(prompts),
        teachers=tuple(
            _facts(name, [row for row in rows if row.candidate.teacher == name]) for name in names
        ),
        signals=tuple(_rank(rows, names, len(prompts), *item) for item in signals.items()),
    )


def _facts(name: str, rows: Sequence[ScoredCandidate]) -> Teacher:
    """Counts of one teacher."""
    judged = [row.candidate.correct for row in rows if row.candidate.correct is not None]
    return Teacher(
        name=name,
        n_answers=len(rows),
        n_prompts=len({row.candidate.prompt.id for row in rows}),
        n_judged=len(judged),
        share_correct=sum(judged) / len(judged) if judged else None,
    )


def _rank(
    rows: Sequence[ScoredCandidate], names: Sequence[str], n_prompts: int, signal: str, higher_is_better: bool
) -> SignalRanking:
    """The teachers under one signal."""
    check_signal(rows, signal)
    values: dict[str, dict[str, list[float]]] = {name: {} for name in names}
    for row in rows:
        score = row.score(signal)
        if score is not None:
            values[row.candidate.teacher].setdefault(row.candidate.prompt.id, []).append(score)
    shared = sorted(set.intersection(*(set(own) for own in values.values()))) if values else []
    entries = [_mean(name, values[name], shared, n_prompts) for name in names]
    sign = -1.0 if higher_is_better else 1.0
    entries.sort(
        key=lambda entry: (sign * (entry.mean or 0.0), entry.teacher)
    )  # all have a mean, or none has
    return SignalRanking(
        signal=signal,
        higher_is_better=higher_is_better,
        n_prompts=len(shared),
        reason=None if shared else _why_nothing_is_shared(values),
        best=entries[0].teacher if shared else None,
        teachers=tuple(entries),
    )


def _mean(name: str, own: Mapping[str, list[float]], shared: Sequence[str], n_prompts: int) -> TeacherMean:
    """Mean and standard error of one teacher; sums are sorted, so that the order of rows is of no account."""
    per_prompt = np.sort(np.array([np.mean(np.sort(np.array(own[prompt], np.float64))) for prompt in shared]))
    return TeacherMean(
        teacher=name,
        mean=float(per_prompt.mean()) if shared else None,
        stderr=float(per_prompt.std(ddof=1) / np.sqrt(len(shared))) if len(shared) > 1 else None,
        n_scored=sum(map(len, own.values())),
        coverage=len(own) / n_prompts,
    )


def _why_nothing_is_shared(values: Mapping[str, Mapping[str, object]]) -> str:
    """A reason that names the teachers to blame, if some have no score at all."""
    if not values:
        return "there are no answers"
    without = [name for name, own in values.items() if not own]
    blame = f"; none at all from {', '.join(without)}" if without else ""
    return f"no prompt has a scored answer from every teacher{blame}"

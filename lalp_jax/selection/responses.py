"""Which answers the student learns from: the best of each prompt, or the best of one teacher."""

import dataclasses
import json
import math
from collections.abc import Iterable, Mapping, Sequence

from lalp_jax.data.records import Candidate
from lalp_jax.errors import InputError

# Inside a JSON string these mean the same escaped, and no reader can take them for the end of a line.
_LINE_ENDS = {ord(sign): f"\\u{ord(sign):04x}" for sign in "\x85\u2028\u2029"}


@dataclasses.dataclass(frozen=True, slots=True)
class ScoredCandidate:
    """A candidate and what the student makes of it.

    Attributes:
      n_tokens: tokens of the response, T; None if it was not tokenised.
      scores: value of each signal (log-probs in nats per token); None or absent where it is missing.
    """

    candidate: Candidate
    n_tokens: int | None
    scores: Mapping[str, float | None]

    def score(self, signal: str) -> float | None:
        """The value of `signal`; None if it is missing or no finite number."""
        value = self.scores.get(signal)
        return value if value is not None and math.isfinite(value) else None


@dataclasses.dataclass(frozen=True, slots=True)
class Selected:
    """A candidate that was picked.

    Attributes:
      rank: 1 for the best of its prompt, 2 for the next, …
      score: the value of the signal that picked it.
    """

    row: ScoredCandidate
    rank: int
    score: float


def select_responses(
    rows: Sequence[ScoredCandidate], *, signal: str, higher_is_better: bool, keep: int, require_correct: bool
) -> list[Selected]:
    """The best `keep` answers of every prompt, prompts in the order of their first row.

    Ties go to fewer tokens, then to the smaller candidate id. An answer without a finite score is never
    selected, and with `require_correct` only one known to be correct is.

    Raises:
      InputError: `keep` is not positive, or no row knows `signal`.
    """
    if keep < 1:
        raise InputError(f"keep is {keep}", where="--keep", remedy="keep at least 1 answer per prompt")
    check_signal(rows, signal)

    def order(item: tuple[float, ScoredCandidate]) -> tuple[float, float, str]:
        score, row = item
        tokens = math.inf if row.n_tokens is None else row.n_tokens
        return (-score if higher_is_better else score, tokens, row.candidate.id)

    by_prompt: dict[str, list[tuple[float, ScoredCandidate]]] = {}
    for row in rows:
        group = by_prompt.setdefault(row.candidate.prompt.id, [])
        score = row.score(signal)
        if score is not None and (row.candidate.correct is True or not require_correct):
            group.append((score, row))
    return [
        Selected(row, rank, score)
        for group in by_prompt.values()
        for rank, (score, row) in enumerate(sorted(group, key=order)[:keep], start=1)
    ]


def select_teacher(
    rows: Sequence[ScoredCandidate],
    *,
    teacher: str,
    signal: str,
    higher_is_better: bool,
    keep: int,
    require_correct: bool,
) -> list[Selected]:
    """The best `keep` answers per prompt of one teacher, usually the best of `teachers.rank_teachers`.

    Raises:
      InputError: as `select_responses`, or `teacher` has no row.
    """
    own = [row for row in rows if row.candidate.teacher == teacher]
    if not own:
        raise InputError(
            f"no answer of teacher {teacher!r}", remedy="choose one of the teachers in the input"
        )
    return select_responses(
        own, signal=signal, higher_is_better=higher_is_better, keep=keep, require_correct=require_correct
    )


def check_signal(rows: Sequence[ScoredCandidate], signal: str) -> None:
    """Raises `InputError` if rows exist and none of them knows `signal`, not even as missing."""
    known = {name for row in rows for name in row.scores}
    if rows and signal not in known:
        names = ", ".join(sorted(known)) or "none"
        raise InputError(
            f"no row has the signal {signal!r}", where="--signal", remedy=f"scored signals: {names}"
        )


def to_messages(selected: Selected, *, signal: str) -> dict[str, object]:
    """The row of `selected.jsonl`: a conversation to train on, and where it comes from."""
    candidate = selected.row.candidate
    turns = [{"role": turn.role, "content": turn.content} for turn in candidate.prompt.turns]
    return {
        "messages": [*turns, {"role": "assistant", "content": candidate.response}],
        "prompt_id": candidate.prompt.id,
        "teacher": candidate.teacher,
        "candidate_id": candidate.id,
        "signal": signal,
        "score": selected.score,
    }


def to_jsonl(selected: Iterable[Selected], *, signal: str) -> bytes:
    """The bytes of `selected.jsonl`: UTF-8, one object a line, the same for the same selection.

    Every line end that some reader knows besides ``\\n`` is escaped, and so is a lone surrogate, which
    UTF-8 cannot hold; both read back as they were.
    """
    objects = (to_messages(item, signal=signal) for item in selected)
    lines = (json.dumps(item, ensure_ascii=False, allow_nan=False).translate(_LINE_ENDS) for item in objects)
    return b"".join(line.encode("utf-8", "backslashreplace") + b"\n" for line in lines)

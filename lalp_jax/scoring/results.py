"""Scores of answers from the sums of their steps, and the tables `scores.parquet` and `steps.parquet`."""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa

from lalp_jax.data.batches import StepSums
from lalp_jax.data.records import Encoded
from lalp_jax.data.windows import WindowPlan
from lalp_jax.scoring.signals import Signal, StepTable

NOT_FINITE = "the student gives no finite log-probability"


@dataclasses.dataclass(frozen=True)
class ScoredAnswer:
    """One answer with everything known of it.

    Attributes:
      steps: its steps; sums that were not computed are NaN.
      scores: value of each signal, None where it is missing.
      missing: why, by signal.
    """

    encoded: Encoded
    steps: StepTable
    scores: Mapping[str, float | None]
    missing: Mapping[str, str]

    @property
    def status(self) -> str:
        """``scored`` if any signal has a value, else ``skipped``."""
        return "scored" if any(value is not None for value in self.scores.values()) else "skipped"

    @property
    def reason(self) -> str | None:
        """Why signals are missing, or None if none is."""
        return "; ".join(f"{name}: {why}" for name, why in self.missing.items()) or None


def score_answers(
    pool: Sequence[Encoded], plans: Sequence[WindowPlan], sums: StepSums, signals: Sequence[Signal]
) -> list[ScoredAnswer]:
    """Values of all signals of all answers. A value that is not finite is missing: 0.0 would be the best there is."""
    answers = []
    for index, (encoded, plan) in enumerate(zip(pool, plans, strict=True)):
        counts = np.diff(encoded.token_ends, prepend=0)
        table = StepTable(counts, sums.local(index), sums.ordinary(index))
        scores: dict[str, float | None] = {}
        missing: dict[str, str] = {}
        for signal in signals:
            if signal.needs in plan.missing:
                scores[signal.name], missing[signal.name] = None, plan.missing[signal.needs]
                continue
            value = signal.value(table)
            scores[signal.name] = value if math.isfinite(value) else None
            if scores[signal.name] is None:
                missing[signal.name] = NOT_FINITE
        answers.append(ScoredAnswer(encoded, table, scores, missing))
    return answers


def scores_table(answers: Sequence[ScoredAnswer], signals: Sequence[Signal]) -> pa.Table:
    """A row per candidate: DESIGN's columns, then one per signal (nats per token, null where missing)."""
    candidates = [answer.encoded.candidate for answer in answers]
    columns = {
        "prompt_id": pa.array([c.prompt.id for c in candidates], pa.string()),
        "candidate_id": pa.array([c.id for c in candidates], pa.string()),
        "teacher": pa.array([c.teacher for c in candidates], pa.string()),
        "status": pa.array([answer.status for answer in answers], pa.string()),
        "skip_reason": pa.array([answer.reason for answer in answers], pa.string()),
        "n_tokens": pa.array([len(answer.encoded.tokens) for answer in answers], pa.int32()),
        "n_steps": pa.array([answer.encoded.n_steps for answer in answers], pa.int32()),
        "correct": pa.array([c.correct for c in candidates], pa.bool_()),
    }
    for signal in signals:
        columns[signal.name] = pa.array([a.scores[signal.name] for a in answers], pa.float64())
    return pa.table(columns)


def steps_table(answers: Sequence[ScoredAnswer]) -> pa.Table:
    """A row per step: its characters, tokens, and log-probability in its window and in the ordinary pass."""
    encoded = [answer.encoded for answer in answers]
    counts = np.concatenate([np.zeros(0), *(a.steps.n_tokens for a in answers)]).astype(np.int32)
    local, ordinary = (
        np.concatenate([np.zeros(0), *(getattr(a.steps, kind) for a in answers)]).astype(np.float32)
        for kind in ("local", "ordinary")
    )

    def column(values: np.ndarray) -> pa.Array:
        return pa.array(values, mask=~np.isfinite(values))

    def joined(name: str) -> np.ndarray:
        return np.concatenate([np.zeros(0), *(getattr(e, name) for e in encoded)]).astype(np.int32)

    return pa.table({
        "candidate_id": pa.array([e.candidate.id for e in encoded for _ in range(e.n_steps)], pa.string()),
        "step": pa.array([step for e in encoded for step in range(e.n_steps)], pa.int32()),
        "char_start": pa.array(joined("char_starts")),
        "char_end": pa.array(joined("char_ends")),
        "n_tokens": pa.array(counts),
        "logprob_sum": column(local),
        "logprob_mean": column(local.astype(np.float64) / counts),
        "ordinary_logprob_sum": column(ordinary),
    })  # fmt: skip

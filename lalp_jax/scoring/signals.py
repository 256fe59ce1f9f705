"""What each signal is: its direction, its level, its tokens and what it needs. One entry per signal."""

import dataclasses
from collections.abc import Callable

import numpy as np

from lalp_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class StepTable:
    """The steps of one answer: [p] each.

    Attributes:
      n_tokens: tokens of each step.
      local: sum of log-probs (nats) of each step in its window.   ordinary: given all that precedes.
    """

    n_tokens: np.ndarray
    local: np.ndarray
    ordinary: np.ndarray


@dataclasses.dataclass(frozen=True)
class Signal:
    """A student-based score of an answer.

    Attributes:
      higher_is_better: its direction.
      level: what it is defined on.
      token_set: the tokens that count.
      needs: ``local`` (windows) or ``ordinary`` (one pass over the whole answer).
      value: nats per token, from the sums of the steps, in float64.
      source: where it is defined.
    """

    name: str
    higher_is_better: bool
    level: str
    token_set: str
    needs: str
    value: Callable[[StepTable], float]
    source: str


def _lalp(steps: StepTable) -> float:
    return float(np.mean(steps.local.astype(np.float64) / steps.n_tokens))


def _galp(steps: StepTable) -> float:
    return float(np.sum(steps.ordinary, dtype=np.float64) / np.sum(steps.n_tokens))


_RESPONSE = "all tokens of the response; not the end of turn"

SIGNALS = {
    signal.name: signal
    for signal in (
        Signal("lalp", True, "response, teacher", _RESPONSE, "local", _lalp, "arXiv 2510.03988, LALP"),
        Signal("galp", True, "response, teacher", _RESPONSE, "ordinary", _galp, "arXiv 2502.04194 (GRAPE), GALP"),
    )
}


def signals_of(names: str) -> tuple[Signal, ...]:
    """The signals of a comma-separated list, in its order.

    Raises:
      InputError: an unknown name, or none.
    """
    chosen = list(dict.fromkeys(name.strip() for name in names.split(",") if name.strip()))
    unknown = [name for name in chosen if name not in SIGNALS]
    if unknown or not chosen:
        what = f"unknown signal {unknown[0]!r}" if unknown else "no signal is named"
        raise InputError(what, where="--signals", remedy=f"a comma-separated list of {', '.join(SIGNALS)}")
    return tuple(SIGNALS[name] for name in chosen)

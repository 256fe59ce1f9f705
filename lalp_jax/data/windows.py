"""Which windows an answer needs: the plan of LALP for one candidate, in steps.

A window is a run of steps that is read after the prompt alone. Steps that share their first context step
share a window, because a causal model scores them all in one pass: with ``k`` steps of context, steps
1 … k+1 all start at step 1 and make one window; every later step has a window of its own.
"""

import dataclasses
import math
from typing import NamedTuple

import numpy as np

from lalp_jax.data.records import Encoded
from lalp_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Context:
    """How many preceding steps a step is read with: `k` steps, or a `fraction` of those before it.

    Source: LALP's k (arXiv 2510.03988 v1, §4) and its percentages (v2, Fig. 3), rounded up.
    """

    k: int | None = 4
    fraction: float | None = None

    def __post_init__(self) -> None:
        if (self.k is None) == (self.fraction is None):
            raise InputError("give either a number of context steps or a fraction", where="--k, --window-fraction")
        if self.k is not None and self.k < 0:
            raise InputError(f"k is {self.k}", where="--k", remedy="a whole number, 0 or more")
        if self.fraction is not None and not 0 <= self.fraction <= 1:
            raise InputError(f"{self.fraction} is no fraction", where="--window-fraction", remedy="between 0 and 1")

    @property
    def name(self) -> str:
        """As the manifest has it: ``k=4`` or ``fraction=0.25``."""
        return f"k={self.k}" if self.fraction is None else f"fraction={self.fraction:g}"

    def first_step(self, step: int) -> int:
        """Index of the first context step of `step` (both from 0)."""
        if self.fraction is None:
            assert self.k is not None
            return max(0, step - self.k)
        # Rounded first: 0.07 * 100 is 7.000000000000001 in binary, and its ceiling is not 8.
        return step - math.ceil(round(self.fraction * step, 9))


class Window(NamedTuple):
    """Steps ``first … end-1`` read after the prompt, of which ``scored … end-1`` are scored.

    Attributes:
      ordinary: it is the ordinary pass over the whole answer, not a local window.
    """

    first: int
    scored: int
    end: int
    ordinary: bool = False


def local_windows(n_steps: int, context: Context) -> list[Window]:
    """The windows that score each of `n_steps` steps once, in order."""
    windows: list[Window] = []
    for step in range(n_steps):
        first = context.first_step(step)
        if windows and windows[-1].first == first:
            windows[-1] = windows[-1]._replace(end=step + 1)
        else:
            windows.append(Window(first, step, step + 1))
    return windows


@dataclasses.dataclass(frozen=True)
class WindowPlan:
    """The windows of one candidate, and what could not be planned.

    Attributes:
      folded: number of first steps whose LocalLP value is read off the ordinary pass: there the two are the same.
      missing: reason by kind of pass (``local``, ``ordinary``) where the student's positions do not suffice.
    """

    windows: tuple[Window, ...]
    folded: int
    missing: dict[str, str]


def plan_windows(
    encoded: Encoded, context: Context, *, local: bool, ordinary: bool, max_positions: int
) -> WindowPlan:
    """Plans one candidate.

    Args:
      local: whether windowed scores are wanted (LALP).
      ordinary: whether the ordinary pass is wanted (GALP). It also serves the first local window.
      max_positions: tokens that the student can take at once, prompt included.
    """
    n_prompt = len(encoded.prompt_tokens)
    missing: dict[str, str] = {}
    n_total = n_prompt + len(encoded.tokens)
    if ordinary and n_total > max_positions:
        missing["ordinary"] = f"{n_total} tokens exceed the student's {max_positions} positions"
        ordinary = False
    windows = local_windows(encoded.n_steps, context) if local else []
    for window in windows:
        size = n_prompt + window_tokens(encoded, window)
        if size > max_positions:
            missing["local"] = (
                f"step {window.end} with its context takes {size} tokens; the student has {max_positions} positions"
            )
            windows = []
            break
    folded = 0
    if ordinary:
        if windows:
            folded = windows.pop(0).end
        windows.insert(0, Window(0, 0, encoded.n_steps, ordinary=True))
    return WindowPlan(tuple(windows), folded, missing)


def window_tokens(encoded: Encoded, window: Window) -> int:
    """Number of response tokens in a window, context included."""
    return int(encoded.token_ends[window.end - 1]) - step_start(encoded.token_ends, window.first)


def step_start(token_ends: np.ndarray, step: int) -> int:
    """First token of a step, given the exclusive ends of all steps."""
    return int(token_ends[step - 1]) if step else 0

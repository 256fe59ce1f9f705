"""What a prompt, a candidate answer and a pool of them are. Plain data: no IO, no mathematics.

Shape legend, used in every docstring of the package:

    P  tokens of a prompt            T  tokens of a response        p  steps of a response
    W  tokens of a window slot       N  slots per group             G  groups per batch and data shard
    D  data shards of the mesh       S  scored tokens               V  vocabulary
    L  layers                        E  hidden size                 H, K, d  heads, key-value heads, head size
"""

import dataclasses
import hashlib
import unicodedata
from collections import Counter
from collections.abc import Sequence
from typing import Literal

import numpy as np

Role = Literal["system", "user", "assistant"]


@dataclasses.dataclass(frozen=True, slots=True)
class Turn:
    """One message of a conversation."""

    role: Role
    content: str


@dataclasses.dataclass(frozen=True, slots=True)
class Prompt:
    """What the teachers were asked: the conversation before the answer, and the gold answer if known."""

    id: str
    turns: tuple[Turn, ...]
    answer: str | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Candidate:
    """One teacher's answer to one prompt.

    Attributes:
      id: unique in the pool and the same wherever the same answer is read again (see `candidate_id`).
      correct: whether the final answer is right, if that is known.
      steps: the steps that the input itself brings (they tile `response`), for the `given` segmenter.
      origin: ``file:line`` of the row, for messages.
    """

    id: str
    prompt: Prompt
    teacher: str
    response: str
    correct: bool | None = None
    steps: tuple[str, ...] | None = None
    origin: str = ""


@dataclasses.dataclass(frozen=True)
class Pool:
    """All candidates, in input order, and the account of the answers that did not become one.

    Attributes:
      skipped: number of answers left out while reading, by reason.
      mapping: lines that tell which column was read as what, one for each source; printed before work.
    """

    candidates: tuple[Candidate, ...]
    skipped: Counter[str]
    mapping: tuple[str, ...]

    @property
    def answers(self) -> int:
        """Answers that the input offered: candidates plus those skipped while reading."""
        return len(self.candidates) + self.skipped.total()


@dataclasses.dataclass(frozen=True)
class Encoded:
    """A candidate in the student's tokens.

    Attributes:
      candidate: where it came from.
      prompt_tokens: int32 [P], the rendered prompt; the same array object for candidates of one prompt.
      tokens: int32 [T], the response tokenised once and whole.
      token_ends: int32 [p], end (exclusive) of each step in `tokens`; strictly increasing, last is T.
      char_starts: int32 [p], start of each step in `candidate.response`, in characters.
      char_ends: int32 [p], end (exclusive) likewise.
    """

    candidate: Candidate
    prompt_tokens: np.ndarray
    tokens: np.ndarray
    token_ends: np.ndarray
    char_starts: np.ndarray
    char_ends: np.ndarray

    @property
    def n_steps(self) -> int:
        """Number of steps, p."""
        return len(self.token_ends)


def prompt_hash(turns: Sequence[Turn]) -> str:
    """Identity of a prompt without an id: a hash of its turns, blind to Unicode form and white space."""
    digest = hashlib.sha256()
    for turn in turns:
        text = " ".join(unicodedata.normalize("NFC", turn.content).split())
        digest.update(f"{turn.role}\x1f{text}\x1e".encode())
    return digest.hexdigest()[:16]


def candidate_id(
    prompt_id: str, turns: Sequence[Turn], teacher: str, response: str, steps: Sequence[str] | None, repeat: int
) -> str:
    """Content-derived id: re-reading the same answer gives the same id, changing it gives another.

    Args:
      repeat: 0 for the first, 1 for the second, … of answers alike in everything else.
    """
    parts = [prompt_id, teacher, response, str(repeat), *(f"{t.role}\x1f{t.content}" for t in turns)]
    if steps is not None:
        parts += ["steps", *steps]
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode()
        digest.update(len(data).to_bytes(8, "big") + data)
    return digest.hexdigest()[:20]

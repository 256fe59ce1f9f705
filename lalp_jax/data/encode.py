"""From characters to tokens: which token belongs to which step."""

import itertools

import numpy as np

from lalp_jax.data.records import Candidate, Encoded
from lalp_jax.errors import InputError


def assemble(
    candidate: Candidate,
    prompt_tokens: np.ndarray,
    dropped_chars: int,
    token_ids: np.ndarray,
    token_char_starts: np.ndarray,
    char_ends: np.ndarray,
) -> Encoded:
    """A candidate in tokens, each token in the step that holds its first character.

    A span of white space only, or without a token, joins the step before it; at the beginning, the one after.
    So every step has a token and something to read, unless the whole response has nothing to read.

    Args:
      prompt_tokens: int32 [P].
      dropped_chars: leading characters of the response that the prompt already has; no token covers them.
      token_ids: int32 [T], the response after those characters.
      token_char_starts: int32 [T], non-decreasing, where each token starts in that same rest.
      char_ends: int32 [spans], strictly increasing ends of the spans of the whole response, in characters.

    Raises:
      InputError: the response has no token at all.
      ValueError: `char_ends` does not tile the response.
    """
    response = candidate.response
    if not len(token_ids):
        raise InputError(
            "the response has no tokens",
            where=candidate.origin or None,
            remedy="leave the row out, or give it a text",
        )
    if char_ends[-1] != len(response) or char_ends[0] <= 0 or (np.diff(char_ends) <= 0).any():
        raise ValueError(f"ends of steps do not tile a response of {len(response)} characters: {char_ends}")
    starts = np.minimum(token_char_starts + dropped_chars, len(response) - 1)
    token_ends = np.searchsorted(starts, char_ends)  # tokens that start before each end
    last = _last_spans(response, char_ends, np.diff(token_ends, prepend=0) > 0)
    ends = char_ends[last].astype(np.int32)
    return Encoded(
        candidate=candidate,
        prompt_tokens=prompt_tokens,
        tokens=token_ids,
        token_ends=token_ends[last].astype(np.int32),
        char_starts=np.concatenate([np.zeros(1, np.int32), ends[:-1]]),
        char_ends=ends,
    )


def _last_spans(response: str, char_ends: np.ndarray, has_token: np.ndarray) -> np.ndarray:
    """Index of the last span of every step, int64 [p]: a span that can stand alone, with what joins it."""
    bounds = [0, *char_ends.tolist()]
    readable = [not response[start:end].isspace() for start, end in itertools.pairwise(bounds)]
    alone = np.flatnonzero(has_token & np.asarray(readable))
    return np.append(alone[1:] - 1, len(char_ends) - 1)

"""Segmenters: where one step of a response ends and the next begins.

A text segmenter is data: one RE2 pattern and what it is rewritten to. The executor puts a byte that no
UTF-8 text contains after every step, splits there and counts characters; all of it are TensorFlow string
operations, so it runs inside tf.data, in parallel and off the Python interpreter. RE2 takes time linear in
the text; what the patterns add to that is that no construct may contain its own opening, so that a long run
of unclosed openings is not scanned again for each of them.
"""

import dataclasses
import re
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from lalp_jax.data.records import Candidate
from lalp_jax.errors import InputError

if TYPE_CHECKING:
    import tensorflow as tf

_CUT = b"\xff"

# White space but the newline: what Python's str.isspace holds for white space, inside a character class.
_B = r"\t\v\f\r \x1c-\x1f\x{85}\p{Z}"
_NEWLINES = rf"\n(?:[{_B}]*\n)*"


def _bracketed(opening: str, closing: str, escapes: str, plain: str) -> tuple[str, str]:
    """Mathematics between delimiters: over several lines, but not over a blank one (TeX forbids that too).

    Args:
      escapes: characters that may not follow a backslash inside, those of the delimiters.
      plain: characters that may not stand alone inside.

    Returns:
      The patterns of any such formula and of one that ends in a full stop, "!" or "?".
    """
    solid = rf"\\[^\n{_B}{escapes}]|[^\\\n{_B}{plain}]"
    body = rf"{opening}(?:\\[^\n{escapes}]|[^\\\n{plain}]|\n[{_B}]*(?:{solid}))*"
    end = rf"(?:\n[{_B}]*)?{closing}"
    return body + end, rf"{body}(?:\n[{_B}]*)?[.!?][{_B}]*{end}"


def _worded() -> tuple[str, str]:
    """`$…$` within a line that begins with neither a digit nor "<"; patterns as in `_bracketed`.

    No white space just inside the dollars and no digit after the closing one tell mathematics from prices
    ("from $5 to $6"), "<" tells it from GSM8K's calculator ("= $<<2*3=6>>6"). RE2 has no lookahead: `\\B`
    after a dollar says that no letter or digit follows, and a letter ("the $n$th") is taken along.
    """
    solid = rf"\\[^\n{_B}]|[^$\\\n{_B}]"
    body = rf"\$(?:\\[^\n{_B}]|[^$\\\n{_B}0-9<])(?:\\[^\n]|[^$\\\n])*"
    first_alone = rf"\$(?:\\[^\n{_B}]|[^$\\\n{_B}0-9<])\$"
    return rf"(?:{first_alone}|{body}(?:{solid})\$)(?:\B|[A-Za-z_])", rf"{body}[.!?]\$"


def _numeric() -> tuple[str, str]:
    """`$…$` that begins with a digit, as `_worded` otherwise: a formula ("$5! + 1$"), or two prices.

    No full stop or question mark before white space inside, so that prices of two sentences
    ("costs $5. So 3*5=$<<3*5=15>>15") do not join them.
    """
    solid = rf"\\[^\n{_B}]|[^$\\\n{_B}.?]"
    body = rf"\$[0-9](?:\\[^\n]|[^$\\\n.?]|[.?]+(?:{solid}))*"
    whole = rf"(?:\$[0-9]|{body}(?:[.?]+|[.?]*(?:{solid})))\$(?:\B|[A-Za-z_])"
    return whole, rf"{body}(?:[.?]+!?|!)\$"


_DISPLAY = _bracketed(r"\$\$", r"\$\$", "", "$")
_SQUARE = _bracketed(r"\\\[", r"\\\]", r"\[\]", "")
_ROUND = _bracketed(r"\\\(", r"\\\)", "()", "")

# Initials: of two or more letters (U.S., J. K. Rowling), or after a name (John F. Kennedy). A lone capital
# after a word in lower case ("the answer is B. Next") ends the sentence.
_INITIALS = r"\b(?:[A-Z][a-z]+ |[A-Z]\. ?)(?:[A-Z]\. ?)*[A-Z]\."

# Taken as a whole, in this order of preference: no step ends inside.
_WHOLE = (
    r"```.*?```",
    r"```",  # a fence that is not closed protects nothing, nor do dollars and brackets
    r"\\[\\$]",  # \$ is a dollar, and the bracket of \\[2pt] opens nothing
    _DISPLAY[0],
    r"\$\$",
    _SQUARE[0],
    _ROUND[0],
    _worded()[0],
    _numeric()[0],
    # Abbreviations that are followed by what they belong to ...
    r"\b(?:[Ee]\.g|[Ii]\.e|vs|cf|[Ff]ig|Figs|[Ee]qs?|Secs?|Thm|Lem|Prop|[Rr]esp|[Aa]pprox|Mrs?|Ms|Dr|Prof|St)\.",
    rf"\bNos?\.[{_B}][0-9]",
    # ... and those that may end a sentence as well: they do, unless it goes on in lower case or with a digit.
    rf"\b(?:etc|al|a\.m|p\.m|Inc|Ltd|Co|Jr|Sr)\.[{_B}][a-z0-9(]",
    _INITIALS,
)
_STOPS, _WIDE_STOPS = ".!?．", "。！？｡"
_ANY_STOPS = f"[{_STOPS}{_WIDE_STOPS}]"
_WIDE_CLOSERS = r"”’»›)\]}）］｝」』】〉》〕"
_CLOSERS = rf"{_WIDE_CLOSERS}\"'*_"  # straight quotes and emphasis close only where white space follows
_LIST_MARK = rf"[{_B}*_#>(\-]*(?:[0-9]{{1,3}}(?:\.[0-9]{{1,3}})*|[A-Za-z])\.[{_B}]"
# A formula that ends in a full stop ("so $x = 5.$ Then") ends the sentence with it.
_STOPPED_FORMULA = "|".join((_DISPLAY[1], _SQUARE[1], _ROUND[1], _worded()[1], _numeric()[1]))
_ENDED = rf"(?:{_ANY_STOPS}+|{_STOPPED_FORMULA})[{_CLOSERS}]*"
# Chinese and Japanese write no blank after a full stop, so theirs ends a sentence in any case.
_WIDE_ENDED = rf"{_ANY_STOPS}*[{_WIDE_STOPS}]{_ANY_STOPS}*[{_WIDE_CLOSERS}]*"

# Groups: 1 the step up to its end; then 2 an end with newlines, or 3 an end and 4 the blank after it (it goes
# to the next step: byte-level tokenizers keep it with the next word), or 5 an end that needs no blank.
_SENTENCE = (
    rf"(?s)((?:{_INITIALS}|{_LIST_MARK})?(?:{'|'.join(_WHOLE)}|.)*?)"
    rf"(?:((?:{_ENDED})?[{_B}]*{_NEWLINES})|({_ENDED})([{_B}])|({_WIDE_ENDED}|\z))"
)


@dataclasses.dataclass(frozen=True)
class Segmenter:
    """A way of dividing a response into steps.

    Attributes:
      name: as the user writes it and the manifest records it.
      pattern: RE2 pattern that matches every end of a step, for segmenters that look at the text.
      rewrite: what a match becomes; it holds the byte 0xff after the end of the step.
      every: for ``tokens:N``, the number of tokens in a step.
    """

    name: str
    pattern: str | None = None
    rewrite: bytes = b"\\0" + _CUT
    every: int | None = None


SENTENCE = Segmenter("sentence", _SENTENCE, b"\\1\\2\\3\\5" + _CUT + b"\\4")
LINE = Segmenter("line", _NEWLINES)
PARAGRAPH = Segmenter("paragraph", rf"\n(?:[{_B}]*\n)+")
GIVEN = Segmenter("given")
_NAMED = {segmenter.name: segmenter for segmenter in (SENTENCE, LINE, PARAGRAPH, GIVEN)}


def parse_segmenter(name: str) -> Segmenter:
    """The segmenter of that name: `sentence`, `line`, `paragraph`, `given` or `tokens:N`.

    Raises:
      InputError: there is none, or N is not a whole number above zero.
    """
    if name in _NAMED:
        return _NAMED[name]
    if match := re.fullmatch(r"tokens:([1-9][0-9]{0,8})", name):
        return Segmenter(name, every=int(match[1]))
    raise InputError(
        f"unknown segmenter {name!r}",
        where="--segmenter",
        remedy=f"one of {', '.join(_NAMED)}, or tokens:N with N of at least 1 (tokens:64)",
    )


def segment_ops(segmenter: Segmenter) -> "Callable[[tf.Tensor], tf.RaggedTensor]":
    """The segmenter as a function of TensorFlow strings, for tf.data's `map`.

    Returns:
      A function from responses, string [B] in UTF-8, to the lengths of their steps in characters, int32
      ragged [B, p]. Every length is at least 1 and those of a response sum to its length.

    Raises:
      ValueError: the segmenter does not look at the text (`given`, `tokens:N`).
    """
    import tensorflow as tf

    if segmenter.pattern is None:
        raise ValueError(f"segmenter {segmenter.name} does not look at the text")
    pattern, rewrite = segmenter.pattern, segmenter.rewrite

    def lengths(texts: "tf.Tensor") -> "tf.RaggedTensor":
        pieces = tf.strings.split(tf.strings.regex_replace(texts, pattern, rewrite), _CUT)
        counts = tf.ragged.map_flat_values(tf.strings.length, pieces, unit="UTF8_CHAR")
        return tf.ragged.boolean_mask(counts, counts > 0)

    return lengths


def segment_texts(segmenter: Segmenter, texts: list[str]) -> list[np.ndarray]:
    """Ends (exclusive) of the steps of each text in characters, int32 [p]: `segment_ops`, run at once."""
    import tensorflow as tf

    if not texts:
        return []
    lengths = segment_ops(segmenter)(tf.constant([text.encode() for text in texts], tf.string))
    rows = np.split(lengths.values.numpy(), lengths.row_splits.numpy()[1:-1])
    return [np.cumsum(row, dtype=np.int32) for row in rows]


def given_ends(candidate: Candidate) -> np.ndarray:
    """Ends of the steps that the input brings, int32 [p].

    Raises:
      InputError: it brings none, or they do not join to the response.
    """
    if candidate.steps is None:
        raise InputError(
            "the segmenter is `given`, but this answer brings no steps",
            where=candidate.origin or None,
            remedy="give every row a list `steps` that joins to the response, or take another --segmenter",
        )
    if "".join(candidate.steps) != candidate.response:
        raise InputError(
            "the steps do not join to the response",
            where=candidate.origin or None,
            remedy='every character of the response must be in exactly one step: "".join(steps) == response',
        )
    return np.cumsum([len(step) for step in candidate.steps if step], dtype=np.int32)


def token_ends(every: int, char_starts: np.ndarray, n_chars: int) -> np.ndarray:
    """Ends of steps of `every` tokens, int32 [p].

    A character is never divided: where a step would end between two tokens of one character, all of them go
    to the next step.

    Args:
      char_starts: int32 [T], non-decreasing, where each token starts in the response.
      n_chars: length of the response.
    """
    cuts = char_starts[every::every]
    return np.unique(np.append(cuts[cuts > 0], n_chars)).astype(np.int32)

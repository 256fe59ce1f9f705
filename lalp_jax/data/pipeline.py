"""The tf.data pipelines: answers to encoded answers, and planned batches to arrays.

Segmenting runs as TensorFlow string operations and tokenising in Rust, both off the Python interpreter and in
parallel; laying out runs ahead of the device. TensorFlow is imported here and nowhere above.
"""

import contextlib
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from lalp_jax.data import steps as segmenting
from lalp_jax.data.batches import BatchArrays, lay_out
from lalp_jax.data.encode import assemble
from lalp_jax.data.plan import Batch
from lalp_jax.data.prompts import RenderedPrompt, render
from lalp_jax.data.records import Candidate, Encoded
from lalp_jax.data.steps import Segmenter
from lalp_jax.data.tokens import Tokenizer

ANSWERS_AT_ONCE = 64  # answers that one call of the tokenizer takes
BATCHES_AHEAD = 4

NO_TOKENS = "response without tokens"


def tensorflow() -> Any:
    """TensorFlow, kept off the accelerator, which is the student's."""
    with _quiet():
        import tensorflow as tf

    for kind in ("GPU", "TPU"):
        tf.config.set_visible_devices([], kind)
    return tf


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps what TensorFlow's loader writes to stderr before it reads any log level; its errors are exceptions."""
    kept = os.dup(2)
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def encode(
    candidates: Sequence[Candidate], tokenizer: Tokenizer, segmenter: Segmenter, skipped: Counter[str]
) -> Iterator[Encoded]:
    """Segments and tokenises candidates, in their order.

    Args:
      skipped: gets a count for each answer that has nothing to score.
    """
    rendered: dict[str, RenderedPrompt] = {}
    dropped: list[int] = []
    for candidate in candidates:
        if candidate.prompt.id not in rendered:
            rendered[candidate.prompt.id] = render(tokenizer, candidate.prompt)
        dropped.append(rendered[candidate.prompt.id].doubled(candidate.response))
    rows = _tokenised(candidates, dropped, tokenizer, segmenter)
    for candidate, cut, (ids, starts, ends) in zip(candidates, dropped, rows, strict=True):
        if not len(ids):
            skipped[NO_TOKENS] += 1
            continue
        if segmenter.every is not None:
            ends = segmenting.token_ends(segmenter.every, starts + cut, len(candidate.response))
        elif segmenter is segmenting.GIVEN:
            ends = segmenting.given_ends(candidate)
        yield assemble(candidate, rendered[candidate.prompt.id].tokens, cut, ids, starts, ends)


def _tokenised(
    candidates: Sequence[Candidate], dropped: Sequence[int], tokenizer: Tokenizer, segmenter: Segmenter
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Token ids, their starts and the ends of steps of each answer."""
    tf = tensorflow()

    def texts() -> Iterator[tuple[bytes, bytes]]:
        for candidate, cut in zip(candidates, dropped, strict=True):
            yield candidate.response.encode(), candidate.response[cut:].encode()

    def tokenise(rests: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        tokens = tokenizer.encode_response([rest.decode() for rest in rests])
        ids, starts = (np.concatenate([t[i] for t in tokens]).astype(np.int32) for i in (0, 1))
        return ids, starts, np.array([len(t.ids) for t in tokens], np.int32)

    lengths_of = segmenting.segment_ops(segmenter) if segmenter.pattern is not None else None

    def prepare(wholes: Any, rests: Any) -> tuple[Any, ...]:
        ids, starts, counts = tf.numpy_function(tokenise, [rests], [tf.int32, tf.int32, tf.int32])
        if lengths_of is None:
            return ids, starts, counts, tf.zeros([0], tf.int32), tf.zeros_like(wholes, tf.int32)
        lengths = lengths_of(wholes)
        return ids, starts, counts, tf.cast(lengths.values, tf.int32), tf.cast(lengths.row_lengths(), tf.int32)

    string = tf.TensorSpec([], tf.string)
    data = tf.data.Dataset.from_generator(texts, output_signature=(string, string))
    data = data.batch(ANSWERS_AT_ONCE).map(prepare, num_parallel_calls=tf.data.AUTOTUNE).prefetch(4)
    for ids, starts, counts, lengths, spans in data.as_numpy_iterator():
        token_cuts, span_cuts = np.cumsum(counts)[:-1], np.cumsum(spans)[:-1]
        for parts in zip(
            np.split(ids, token_cuts), np.split(starts, token_cuts), np.split(lengths, span_cuts), strict=True
        ):
            yield parts[0], parts[1], np.cumsum(parts[2], dtype=np.int32)


def batches(wanted: Sequence[Batch], pool: Sequence[Encoded], shards: int) -> Iterable[tuple[Batch, BatchArrays]]:
    """Lays planned batches out ahead of the device, in their order."""
    tf = tensorflow()
    fields = list(BatchArrays.__dataclass_fields__)

    def fill(at: np.ndarray) -> list[np.ndarray]:
        arrays = lay_out(wanted[int(at)], pool, shards)
        return [getattr(arrays, field) for field in fields]

    data = tf.data.Dataset.range(len(wanted)).map(
        lambda at: tf.numpy_function(fill, [at], [tf.int32] * len(fields)),
        num_parallel_calls=2,
        deterministic=True,
    )
    for batch, arrays in zip(wanted, data.prefetch(BATCHES_AHEAD).as_numpy_iterator(), strict=True):
        yield batch, BatchArrays(*arrays)

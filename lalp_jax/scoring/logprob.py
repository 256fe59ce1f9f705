"""From hidden states to the log-probabilities of tokens: the program's one shift-by-one, and its only head.

Scoring reads values from here and the training loss reads gradients; neither shifts by itself.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

# Rows of the head computed at once: for a vocabulary of 152k the float32 logits of a chunk take 311 MB.
HEAD_CHUNK = 512


def token_logprobs(
    hidden: jax.Array,
    tokens: jax.Array,
    targets: jax.Array,
    logits: Callable[[jax.Array], jax.Array],
    n_targets: jax.Array | int | None = None,
) -> jax.Array:
    """Natural log-probability of chosen tokens, each given what its row's predecessor has seen.

    Token ``t`` is predicted by the hidden state of row ``t - 1``; the caller lays rows out so that this is
    the token before it in the same text. The head runs on the chosen rows alone, a chunk at a time, so that
    no array of tokens by vocabulary exists beyond a chunk.

    Args:
      hidden: [R, E], final hidden states of R rows laid end to end.
      tokens: int32 [R], the tokens of those rows.
      targets: int32 [S], rows whose token is wanted, all ≥ 1; padding lies at the end, of any value.
      logits: the student's head, [c, E] → float32 [c, V].
      n_targets: how many of `targets` are real. If it is a traced value, chunks without a real target are not
        computed and the result has no gradient; if None, all are computed and it has one.

    Returns:
      float32 [S], nats. Entries of chunks that were not computed are NaN, so that a misuse shows.
    """
    size = min(HEAD_CHUNK, targets.shape[0])
    padding = -targets.shape[0] % size
    padded = jnp.pad(targets, (0, padding))

    def chunk(rows: jax.Array) -> jax.Array:
        values = logits(hidden[jnp.maximum(rows - 1, 0)])
        chosen = jnp.take_along_axis(values, tokens[rows][:, None], axis=1)[:, 0]
        return chosen - jax.nn.logsumexp(values, axis=1)

    if n_targets is None:
        # Rematerialised: the backward pass recomputes a chunk's logits instead of keeping them all.
        return jax.lax.map(jax.checkpoint(chunk), padded.reshape(-1, size)).reshape(-1)[: targets.shape[0]]

    def step(index: jax.Array, result: jax.Array) -> jax.Array:
        rows = jax.lax.dynamic_slice(padded, (index * size,), (size,))
        return jax.lax.dynamic_update_slice(result, chunk(rows), (index * size,))

    empty = jnp.full(padded.shape, jnp.nan, jnp.float32)
    n_chunks = (jnp.asarray(n_targets, jnp.int32) + size - 1) // size
    return jax.lax.fori_loop(jnp.int32(0), n_chunks, step, empty)[: targets.shape[0]]

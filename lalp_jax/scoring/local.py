"""The scoring program: windows after a prompt whose keys and values are computed once.

An ordinary pass is a window that holds the whole answer, so one program serves both.
"""

import functools

import jax
from flax import nnx

from lalp_jax.data.batches import BatchArrays
from lalp_jax.scoring.logprob import token_logprobs
from lalp_jax.student.model import Decoder, Prefix

jax.tree_util.register_dataclass(
    BatchArrays, data_fields=list(BatchArrays.__dataclass_fields__), meta_fields=[]
)


def hidden_states(decoder: Decoder, batch: BatchArrays) -> jax.Array:
    """Final hidden states of all window tokens, [D, G, N, W, E].

    The prompts' keys and values have no slot axis: the inner vmap reads them un-batched, so that they are
    neither computed nor stored once per window.
    """

    def window(
        prefix: Prefix, tokens: jax.Array, positions: jax.Array, segments: jax.Array, owners: jax.Array
    ) -> jax.Array:
        return decoder(tokens, positions, segments, prefix, owners)[0]

    def group(
        prompts: jax.Array, prompt_positions: jax.Array, prompt_owners: jax.Array, *slots: jax.Array
    ) -> jax.Array:
        _, kv = decoder(prompts, prompt_positions, prompt_owners)
        prefix = Prefix(kv, prompt_positions, prompt_owners)
        return jax.vmap(functools.partial(window, prefix))(*slots)

    return jax.vmap(jax.vmap(group))(
        batch.prompts, batch.prompt_positions, batch.prompt_owners,
        batch.tokens, batch.positions, batch.segments, batch.owners,
    )  # fmt: skip


@functools.partial(jax.jit, static_argnames=("graphdef", "n_sums"))
def score_batch(params: nnx.State, batch: BatchArrays, *, graphdef: nnx.GraphDef, n_sums: int) -> jax.Array:
    """Sums of log-probability per step.

    Args:
      params, graphdef: the student, as `nnx.split` gives it.
      n_sums: M, at least the rows of the fullest shard.

    Returns:
      float32 [D, M], nats; rows beyond a shard's own are 0 and mean nothing.
    """
    decoder = nnx.merge(graphdef, params)
    hidden = hidden_states(decoder, batch)
    shards, width = hidden.shape[0], hidden.shape[-1]

    def shard_sums(hidden: jax.Array, tokens: jax.Array, targets: jax.Array, sums: jax.Array) -> jax.Array:
        logprobs = token_logprobs(hidden, tokens, targets, decoder.logits, batch.n_targets)
        # Entries that were not computed are NaN, and their row is beyond the last: segment_sum drops them.
        return jax.ops.segment_sum(logprobs, sums, num_segments=n_sums)

    return jax.vmap(shard_sums)(
        hidden.reshape(shards, -1, width), batch.tokens.reshape(shards, -1), batch.targets, batch.sums
    )

"""A planned batch as arrays: what the device computes on, and which value each of its sums is."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from lalp_jax.data.plan import Batch, Group
from lalp_jax.data.records import Encoded
from lalp_jax.data.windows import WindowPlan, step_start


@dataclasses.dataclass(frozen=True)
class BatchArrays:
    """Static-shaped int32 arrays of one batch; the leading axis D are the data shards.

    Attributes:
      prompts, prompt_positions, prompt_owners: [D, G, P], rows of prompts without their last tokens; owner 0 pads.
      tokens, positions, segments, owners: [D, G, N, W], slots of windows ``[last prompt token | context | steps]``.
      targets: [D, S], flat index into the shard's G·N·W window tokens of each scored token.
      sums: [D, S], row of the result that each scored token adds to; padding points at row M.
      n_targets: most scored tokens of any shard.
    """

    prompts: np.ndarray
    prompt_positions: np.ndarray
    prompt_owners: np.ndarray
    tokens: np.ndarray
    positions: np.ndarray
    segments: np.ndarray
    owners: np.ndarray
    targets: np.ndarray
    sums: np.ndarray
    n_targets: np.ndarray


@dataclasses.dataclass(frozen=True)
class SumKeys:
    """What the rows of a batch's result are, [rows] each, shard after shard.

    Attributes:
      shard, row: where the sum stands in the result [D, M].
      candidate: index in the pool.   step: index in the answer.
      ordinary: whether it is of the ordinary pass, else of a local window.
    """

    shard: np.ndarray
    row: np.ndarray
    candidate: np.ndarray
    step: np.ndarray
    ordinary: np.ndarray


def sum_keys(batch: Batch, shards: int) -> SumKeys:
    """The keys of a batch in the order in which `lay_out` numbers its sums."""
    columns: list[tuple[int, int, int, int, bool]] = []
    for shard in range(shards):
        row = 0
        for group in _of_shard(batch, shard):
            for placed in group.windows:
                for step in range(placed.window.scored, placed.window.end):
                    columns.append((shard, row, placed.candidate, step, placed.window.ordinary))
                    row += 1
    table = np.array(columns, np.int64).reshape(-1, 5)
    return SumKeys(*(table[:, i] for i in range(4)), ordinary=table[:, 4].astype(bool))


def n_sums(batch: Batch, shards: int) -> int:
    """Sums that the fullest shard of a batch has."""
    return max(
        sum(p.window.end - p.window.scored for group in _of_shard(batch, shard) for p in group.windows)
        for shard in range(shards)
    )


def lay_out(batch: Batch, pool: Sequence[Encoded], shards: int) -> BatchArrays:
    """Fills the arrays of a batch."""
    shape = batch.shape
    row = (shards, shape.groups, shape.prompt)
    slots = (shards, shape.groups, shape.slots, shape.window)
    prompts, windows = [np.zeros(row, np.int32) for _ in range(3)], [np.zeros(slots, np.int32) for _ in range(4)]
    targets: list[list[np.ndarray]] = [[] for _ in range(shards)]
    lengths: list[list[int]] = [[] for _ in range(shards)]
    for shard in range(shards):
        for number, group in enumerate(_of_shard(batch, shard)):
            _lay_prompts(group, pool, [array[shard, number] for array in prompts])
            base = number * shape.slots * shape.window
            _lay_windows(group, pool, [a[shard, number] for a in windows], base, targets[shard], lengths[shard])
    size = shape.groups * shape.slots * shape.window
    flat, rows = np.zeros((shards, size), np.int32), np.zeros((shards, size), np.int32)
    most = 0
    for shard in range(shards):
        joined = np.concatenate([*targets[shard], np.zeros(0, np.int32)]).astype(np.int32)
        flat[shard, : len(joined)] = joined
        rows[shard, : len(joined)] = np.repeat(np.arange(len(lengths[shard])), lengths[shard])
        rows[shard, len(joined) :] = np.iinfo(np.int32).max  # beyond every row: added to none
        most = max(most, len(joined))
    return BatchArrays(*prompts, *windows, flat, rows, np.int32(most))


def _of_shard(batch: Batch, shard: int) -> tuple[Group, ...]:
    """Groups are dealt out in runs, so that a shard is full before the next one has any."""
    return batch.groups[shard * batch.shape.groups : (shard + 1) * batch.shape.groups]


def _lay_prompts(group: Group, pool: Sequence[Encoded], arrays: list[np.ndarray]) -> None:
    tokens, positions, owners = arrays
    at = 0
    for owner, candidate in enumerate(group.prompts, start=1):
        prompt = pool[candidate].prompt_tokens[:-1]
        run = slice(at, at + len(prompt))
        tokens[run], positions[run], owners[run] = prompt, np.arange(len(prompt)), owner
        at += len(prompt)


def _lay_windows(
    group: Group,
    pool: Sequence[Encoded],
    arrays: list[np.ndarray],
    base: int,
    targets: list[np.ndarray],
    lengths: list[int],
) -> None:
    tokens, positions, segments, owners = arrays
    for segment, placed in enumerate(group.windows, start=1):
        encoded, window = pool[placed.candidate], placed.window
        start, end = step_start(encoded.token_ends, window.first), int(encoded.token_ends[window.end - 1])
        run = slice(placed.offset, placed.offset + 1 + end - start)
        slot = placed.slot
        tokens[slot, run] = np.concatenate([encoded.prompt_tokens[-1:], encoded.tokens[start:end]])
        positions[slot, run] = len(encoded.prompt_tokens) - 1 + np.arange(1 + end - start)
        segments[slot, run], owners[slot, run] = segment, placed.prompt + 1
        first_scored = step_start(encoded.token_ends, window.scored)
        origin = base + slot * tokens.shape[1] + placed.offset + 1 - start
        targets.append(np.arange(first_scored, end, dtype=np.int32) + np.int32(origin))
        ends = encoded.token_ends[window.scored : window.end]
        lengths.extend(np.diff(ends, prepend=first_scored).tolist())


class StepSums:
    """Sums of log-probability (nats) of every step of a pool, as far as they are computed.

    One flat array for local windows and one for the ordinary pass, candidates end to end.
    """

    def __init__(self, pool: Sequence[Encoded], plans: Sequence[WindowPlan]):
        """Nothing is known yet."""
        self.starts = np.concatenate([[0], np.cumsum([e.n_steps for e in pool])]).astype(np.int64)
        self.plans = plans
        self.values = np.full((2, self.starts[-1]), np.nan, np.float32)
        self.known = np.zeros((2, self.starts[-1]), bool)

    def put(self, candidate: np.ndarray, step: np.ndarray, ordinary: np.ndarray, value: np.ndarray) -> None:
        """Stores sums by their keys."""
        at = self.starts[candidate] + step
        self.values[ordinary.astype(int), at] = value
        self.known[ordinary.astype(int), at] = True

    def has(self, keys: SumKeys) -> bool:
        """Whether every value of a batch is there."""
        return bool(self.known[keys.ordinary.astype(int), self.starts[keys.candidate] + keys.step].all())

    def ordinary(self, candidate: int) -> np.ndarray:
        """float32 [p]: sums per step given all that precedes."""
        return self.values[1, self.starts[candidate] : self.starts[candidate + 1]]

    def local(self, candidate: int) -> np.ndarray:
        """float32 [p]: sums per step given its window; the first ones may be the ordinary pass's, being the same."""
        own = self.values[0, self.starts[candidate] : self.starts[candidate + 1]].copy()
        folded = self.plans[candidate].folded
        own[:folded] = self.ordinary(candidate)[:folded]
        return own

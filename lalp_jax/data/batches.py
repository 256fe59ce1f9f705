"""A planned batch as arrays: what the device computes on, and which value each of its sums is."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from lalp_jax.data.plan import Batch, Group
from lalp_jax.data.records import Encoded
from lalp_jax.data.windows import WindowPlan, step_start

Array = Any  # of numpy on the host, of jax once it is on the device


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

    prompts: Array
    prompt_positions: Array
    prompt_owners: Array
    tokens: Array
    positions: Array
    segments: Array
    owners: Array
    targets: Array
    sums: Array
    n_targets: Array


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
    shards_, rows, candidates, steps, ordinary = table.T
    return SumKeys(shards_, rows, candidates, steps, ordinary.astype(bool))


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
    size = shape.groups * shape.slots * shape.window
    arrays = BatchArrays(
        prompts=np.zeros(row, np.int32),
        prompt_positions=np.zeros(row, np.int32),
        prompt_owners=np.zeros(row, np.int32),
        tokens=np.zeros(slots, np.int32),
        positions=np.zeros(slots, np.int32),
        segments=np.zeros(slots, np.int32),
        owners=np.zeros(slots, np.int32),
        targets=np.zeros((shards, size), np.int32),
        # Beyond every row, until it is set: such a token is added to none.
        sums=np.full((shards, size), np.iinfo(np.int32).max, np.int32),
        n_targets=np.zeros((), np.int32),
    )
    for shard in range(shards):
        scored = _Scored()
        for number, group in enumerate(_of_shard(batch, shard)):
            _lay_prompts(group, pool, arrays, (shard, number))
            _lay_windows(group, pool, arrays, (shard, number), scored)
        targets = scored.targets()
        arrays.targets[shard, : len(targets)] = targets
        arrays.sums[shard, : len(targets)] = np.repeat(np.arange(len(scored.lengths)), scored.lengths)
        arrays.n_targets[()] = max(int(arrays.n_targets), len(targets))
    return arrays


@dataclasses.dataclass
class _Scored:
    """The scored tokens of a shard so far: runs of flat indices, and the tokens of each step."""

    runs: list[np.ndarray] = dataclasses.field(default_factory=list)
    lengths: list[int] = dataclasses.field(default_factory=list)

    def targets(self) -> np.ndarray:
        return np.concatenate(self.runs) if self.runs else np.zeros(0, np.int32)


def _of_shard(batch: Batch, shard: int) -> tuple[Group, ...]:
    """Groups are dealt out in runs, so that a shard is full before the next one has any."""
    return batch.groups[shard * batch.shape.groups : (shard + 1) * batch.shape.groups]


def _lay_prompts(group: Group, pool: Sequence[Encoded], arrays: BatchArrays, place: tuple[int, int]) -> None:
    at = 0
    for owner, candidate in enumerate(group.prompts, start=1):
        prompt = pool[candidate].prompt_tokens[:-1]
        run = (*place, slice(at, at + len(prompt)))
        arrays.prompts[run], arrays.prompt_owners[run] = prompt, owner
        arrays.prompt_positions[run] = np.arange(len(prompt))
        at += len(prompt)


def _lay_windows(
    group: Group, pool: Sequence[Encoded], arrays: BatchArrays, place: tuple[int, int], scored: _Scored
) -> None:
    n_slots, width = arrays.tokens.shape[2:]
    for segment, placed in enumerate(group.windows, start=1):
        encoded, window = pool[placed.candidate], placed.window
        start, end = step_start(encoded.token_ends, window.first), int(encoded.token_ends[window.end - 1])
        run = (*place, placed.slot, slice(placed.offset, placed.offset + 1 + end - start))
        arrays.tokens[run] = np.concatenate([encoded.prompt_tokens[-1:], encoded.tokens[start:end]])
        arrays.positions[run] = len(encoded.prompt_tokens) - 1 + np.arange(1 + end - start)
        arrays.segments[run], arrays.owners[run] = segment, placed.prompt + 1
        first_scored = step_start(encoded.token_ends, window.scored)
        # Where token `start` of the answer stands: after the prompt's last token, which opens the window.
        origin = (place[1] * n_slots + placed.slot) * width + placed.offset + 1
        scored.runs.append(np.arange(first_scored, end, dtype=np.int32) + np.int32(origin - start))
        ends = encoded.token_ends[window.scored : window.end]
        scored.lengths.extend(np.diff(ends, prepend=first_scored).tolist())


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

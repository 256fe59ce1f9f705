"""The schedule of a whole pool: which windows are computed together, in which few static shapes.

A group is a row of prompts and N slots of W tokens. Short windows share a slot and short prompts share a row;
who sees whom is settled by ids, so that any mix of lengths fills the same shape. The schedule is a pure function
of token counts: every process derives the same one, and a run that was stopped derives it again.
"""

import bisect
import dataclasses
import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from lalp_jax.data.records import Encoded
from lalp_jax.data.windows import Window, WindowPlan, window_tokens

TOKENS_PER_BATCH = 8192  # per data shard: enough for the matrix units, small beside any memory
SHORT_WINDOW = 512  # windows up to this many tokens are one class; longer ones are divided by length
GRAIN = 32  # lengths of shapes are multiples of this
MAX_SHAPES = 12  # programs to compile
BLOCK = 1024  # prompts packed together: bounds the search, and how far a window can be from its neighbours
FILL = 0.95  # of a slot that windows usually take
SAMPLE = 256  # prompts that a shape is chosen on


@dataclasses.dataclass(frozen=True, order=True)
class Shape:
    """The static shape of a batch on one data shard, hence one compiled program.

    Attributes:
      prompt: P, tokens of a row of prompts.   slots: N.   window: W, tokens of a slot.   groups: G.
    """

    prompt: int
    slots: int
    window: int
    groups: int

    @property
    def tokens(self) -> int:
        """Tokens that a batch of this shape computes."""
        return self.groups * (self.prompt + self.slots * self.window)


class Placed(NamedTuple):
    """A window's place in a group: its slot, its first index there, and its prompt's ordinal in the row."""

    candidate: int
    window: Window
    prompt: int
    slot: int
    offset: int


@dataclasses.dataclass(frozen=True)
class Group:
    """Prompts of one row (each by a candidate that has it), and the windows in its slots."""

    prompts: tuple[int, ...]
    windows: tuple[Placed, ...]


@dataclasses.dataclass(frozen=True)
class Batch:
    """Groups that are computed together; `groups` may fall short of the shape's."""

    index: int
    shape: Shape
    groups: tuple[Group, ...]


@dataclasses.dataclass(frozen=True)
class Plan:
    """The batches of a pool, in order, and their cost.

    Attributes:
      useful_tokens: tokens that the exact computation needs: each prompt once, each window once.
      computed_tokens: tokens that the batches compute, padding and repeated prompts included.
      scored_tokens: values of the head.
    """

    batches: tuple[Batch, ...]
    useful_tokens: int
    computed_tokens: int
    scored_tokens: int

    @property
    def shapes(self) -> tuple[Shape, ...]:
        """The shapes in use: as many programs will be compiled."""
        return tuple(sorted({batch.shape for batch in self.batches}))


class _Item(NamedTuple):
    """A window to be placed. Ordered by length first."""

    tokens: int
    candidate: int
    window: Window


class _Job(NamedTuple):
    """The windows of one length class of one prompt, longest first."""

    prefix: int
    candidate: int
    items: list[_Item]


def plan_pool(
    pool: Sequence[Encoded],
    windows: Sequence[WindowPlan],
    *,
    shards: int = 1,
    tokens_per_batch: int = TOKENS_PER_BATCH,
    attention: float = 0.0,
) -> Plan:
    """Plans all windows of a pool.

    Args:
      windows: what each candidate needs.
      shards: data shards that compute side by side; a batch has `shards` times a shape's groups.
      tokens_per_batch: on each shard. A single longer window still gets a batch.
      attention: FLOPs of attending to one key, as a share of a token's other FLOPs; wide shapes pay it.
    """
    jobs = _jobs(pool, windows)
    batches: list[Batch] = []
    for members in _classes(jobs, tokens_per_batch * shards, attention):
        shape = _choose_shape(members, tokens_per_batch, attention)
        groups = _pack_blocks(members, shape)
        # As many batches as the budget needs, all equally full.
        n_batches = math.ceil(len(groups) / (shape.groups * shards))
        per_batch = math.ceil(len(groups) / (n_batches * shards)) * shards
        shape = dataclasses.replace(shape, groups=per_batch // shards)
        for start in range(0, len(groups), per_batch):
            batches.append(Batch(len(batches), shape, tuple(groups[start : start + per_batch])))
    scored = sum(_scored_tokens(e, w) for e, plan in zip(pool, windows, strict=True) for w in plan.windows)
    prompts = {job.candidate: job.prefix for job in jobs}
    return Plan(
        batches=tuple(batches),
        useful_tokens=sum(prompts.values()) + sum(item.tokens for job in jobs for item in job.items),
        computed_tokens=sum(batch.shape.tokens for batch in batches) * shards,
        scored_tokens=scored,
    )


def _scored_tokens(encoded: Encoded, window: Window) -> int:
    return window_tokens(encoded, window._replace(first=window.scored))


def _jobs(pool: Sequence[Encoded], windows: Sequence[WindowPlan]) -> list[_Job]:
    """One job per prompt, all its windows in it; a window brings the prompt's last token as its first."""
    jobs: dict[str, _Job] = {}
    for index, (encoded, plan) in enumerate(zip(pool, windows, strict=True)):
        if plan.windows:
            empty = _Job(len(encoded.prompt_tokens) - 1, index, [])
            job = jobs.setdefault(encoded.candidate.prompt.id, empty)
            job.items.extend(_Item(1 + window_tokens(encoded, w), index, w) for w in plan.windows)
    return list(jobs.values())


def _classes(jobs: Sequence[_Job], batch_tokens: int, attention: float) -> Iterable[list[_Job]]:
    """Cuts the work by window length and prompt length; each class gets a shape of its own.

    Args:
      batch_tokens: tokens of a batch on all shards, what a class costs at most for its part-empty last one.
    """
    if not jobs:
        return
    # A few prompts far longer than the rest must not widen every row.
    long_prompt = max(SHORT_WINDOW, 4 * float(np.median([job.prefix for job in jobs])))
    kinds = len({job.prefix > long_prompt for job in jobs})
    lengths = np.array([item.tokens for job in jobs for item in job.items])
    long = lengths[lengths > SHORT_WINDOW]
    edges = [SHORT_WINDOW, *_long_edges(long, MAX_SHAPES // kinds - 1, batch_tokens, attention)]
    for low, high in zip([0, *edges[:-1]], edges, strict=True):
        cut = [job._replace(items=[i for i in job.items if low < i.tokens <= high]) for job in jobs]
        for is_long in (False, True):
            members = [job for job in cut if job.items and (job.prefix > long_prompt) == is_long]
            if members:
                yield members


def _long_edges(lengths: np.ndarray, most: int, batch_tokens: int, attention: float) -> list[int]:
    """Upper edges of at most `most` length classes that cost least: the exact optimum.

    A window costs its padded length and the attention over it; a class costs a batch, for its last one is part empty.
    """
    if not len(lengths):
        return []
    grain = max(GRAIN, _round_up(int(lengths.max()) // 256, GRAIN))
    edges, counts = np.unique(-(-lengths // grain) * grain, return_counts=True)
    prices = edges * (1 + attention * edges)
    below = np.concatenate([[0], np.cumsum(counts)])
    # best[c, j]: least cost of the first j lengths in c classes; the last class reaches from `cut` up to j.
    best = np.full((most + 1, len(edges) + 1), np.inf)
    cuts = np.zeros(best.shape, int)
    best[0, 0] = 0
    for c in range(1, most + 1):
        for j in range(1, len(edges) + 1):
            options = best[c - 1, :j] + (below[j] - below[:j]) * prices[j - 1] + batch_tokens
            cuts[c, j] = int(options.argmin())
            best[c, j] = options[cuts[c, j]]
    c, j, chosen = int(best[:, -1].argmin()), len(edges), []
    while j:
        chosen.append(int(edges[j - 1]))
        c, j = c - 1, cuts[c, j]
    return chosen[::-1]


def _choose_shape(jobs: list[_Job], budget: int, attention: float) -> Shape:
    """The shape that packs a sample of the jobs at the least cost; it holds each of them."""
    widest_prompt = max(GRAIN, max(job.prefix for job in jobs))
    widest = max(job.items[0].tokens for job in (_sorted(job) for job in jobs))
    sample = [jobs[i] for i in np.unique(np.linspace(0, len(jobs) - 1, min(SAMPLE, len(jobs))).astype(int))]
    load = sum(item.tokens for job in sample for item in job.items)
    ratio = load / max(1, sum(job.prefix for job in sample))
    best: tuple[float, Shape] | None = None
    for prompt in sorted({_round_up(widest_prompt * f, GRAIN) for f in (1.0, 1.25, 1.5, 2.0)}):
        for window in sorted({_round_up(widest * f, GRAIN) for f in (1.0, 1.25, 1.5, 2.0, 2.5, 3.0)}):
            most = max(1, (budget - prompt) // window)
            # As prompts and windows come along with each other, or so that all work fills one, two or three groups.
            wanted = [int(prompt * ratio / window) + d for d in (-1, 0, 1)]
            wanted += [math.ceil(load / (n * FILL * window)) for n in (1, 2, 3)]
            for slots in sorted({min(most, max(1, n)) for n in wanted}):
                rows = prompt * (1 + attention * prompt)
                cost = rows + slots * window * (1 + attention * (prompt + window))
                shape = Shape(prompt, slots, window, max(1, budget // (prompt + slots * window)))
                total = len(_pack(sample, shape)) * cost
                if best is None or total < best[0]:
                    best = total, shape
    assert best is not None
    return best[1]


def _round_up(value: float, grain: int) -> int:
    return int(-(-value // grain)) * grain


def _pack_blocks(jobs: list[_Job], shape: Shape) -> list[Group]:
    return [g for i in range(0, len(jobs), BLOCK) for g in _pack(jobs[i : i + BLOCK], shape)]


def _sorted(job: _Job) -> _Job:
    return job._replace(items=sorted(job.items, key=lambda i: (-i.tokens, i.candidate, i.window)))


class _OpenGroup:
    """A group that is being filled."""

    def __init__(self, shape: Shape):
        self.prompt_left = shape.prompt
        self.free = [(shape.window, slot) for slot in range(shape.slots)]  # ascending by room
        self.width = shape.window
        self.prompts: list[int] = []
        self.placed: list[Placed] = []

    def try_place(self, items: list[_Item]) -> tuple[list[tuple[int, int]], list[Placed], list[_Item]]:
        """Best fit of windows into the slots: (room afterwards, places, windows that did not fit)."""
        free, placed, left, at = list(self.free), [], [], 0
        while at < len(items):
            widest = free[-1][0]
            if items[at].tokens > widest:  # all as long as this do not fit either: skip them at once
                fitting = bisect.bisect_left(items, -widest, lo=at, key=lambda item: -item.tokens)
                left += items[at:fitting]
                at = fitting
                continue
            item = items[at]
            room, slot = free.pop(bisect.bisect_left(free, (item.tokens, -1)))
            placed.append(Placed(item.candidate, item.window, len(self.prompts), slot, self.width - room))
            bisect.insort(free, (room - item.tokens, slot))
            at += 1
        return free, placed, left

    def add(self, job: _Job) -> list[_Item]:
        """Takes a job's prompt and as many of its windows as fit; returns the others."""
        self.free, placed, left = self.try_place(job.items)
        self.placed += placed
        self.prompts.append(job.candidate)
        self.prompt_left -= job.prefix
        return left

    def close(self) -> Group:
        return Group(tuple(self.prompts), tuple(self.placed))


def _pack(jobs: Sequence[_Job], shape: Shape) -> list[Group]:
    """Vector bin packing: opens a group with the largest job left, then adds the job that fits it best.

    A job that fits no longer may still fill a gap with some of its windows, if they outweigh computing its prompt
    once more.
    """
    waiting = sorted((_sorted(job) for job in jobs), key=lambda j: -_load(j))
    groups = []
    while waiting:
        group = _OpenGroup(shape)
        job = waiting.pop(0)
        left = group.add(job)
        if left:
            waiting.insert(0, job._replace(items=left))
        else:
            while (at := _best_whole(group, waiting, shape)) is not None:
                group.add(waiting.pop(at))
            if (at := _best_part(group, waiting)) is not None:
                waiting[at] = waiting[at]._replace(items=group.add(waiting[at]))
        groups.append(group.close())
    return groups


def _load(job: _Job) -> int:
    return sum(item.tokens for item in job.items)


def _best_whole(group: _OpenGroup, waiting: list[_Job], shape: Shape) -> int | None:
    """The job that fits whole and lies most along the room that is left, in prompts and in slots."""
    room = sum(free for free, _ in group.free)
    best, found = -1.0, None
    for at, job in enumerate(waiting):
        if job.prefix > group.prompt_left or job.items[0].tokens > group.free[-1][0]:
            continue
        load = _load(job)
        match = job.prefix * group.prompt_left / shape.prompt**2 + load * room / (shape.slots * shape.window) ** 2
        if load <= room and match > best and not group.try_place(job.items)[2]:
            best, found = match, at
    return found


def _best_part(group: _OpenGroup, waiting: list[_Job]) -> int | None:
    best, found = 0, None
    for at, job in enumerate(waiting):
        if job.prefix <= group.prompt_left and job.items[-1].tokens <= group.free[-1][0]:
            left = sum(item.tokens for item in group.try_place(job.items)[2])
            gain = _load(job) - left - 2 * job.prefix
            if left and gain > best:
                best, found = gain, at
    return found

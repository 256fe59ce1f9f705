"""The loop: planned batches through the device, values to the store, some batches in flight."""

import collections
import sys
from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import Mesh

from lalp_jax.data import pipeline
from lalp_jax.data.batches import BatchArrays, StepSums, SumKeys, n_sums, sum_keys
from lalp_jax.data.plan import Batch, Plan, Shape
from lalp_jax.data.records import Encoded
from lalp_jax.scoring.local import score_batch
from lalp_jax.scoring.store import PartStore
from lalp_jax.student.hf import Student
from lalp_jax.student.sharding import batch_parts, batch_sharding, replicated

IN_FLIGHT = 3


def score_plan(
    student: Student, plan: Plan, pool: Sequence[Encoded], sums: StepSums, store: PartStore, mesh: Mesh
) -> None:
    """Computes every batch of which a value is missing in `sums`; fills `sums` and `store`.

    A batch is computed whole or not at all, always with the same companions: values do not depend on where
    an earlier run was stopped.
    """
    from tqdm import tqdm

    shards = batch_parts(mesh)
    ids = [encoded.candidate.id for encoded in pool]
    wanted = [batch for batch in plan.batches if not sums.has(sum_keys(batch, shards))]
    rows = result_rows(plan, shards)
    flight: collections.deque[tuple[Batch, SumKeys, jax.Array]] = collections.deque()
    total = sum(batch.shape.tokens for batch in wanted) * shards
    # A log file gets a line now and then, a terminal a live one.
    pace = 0.5 if sys.stderr.isatty() else 20.0
    bar = tqdm(total=total, unit="tok", unit_scale=True, desc="scoring", disable=not wanted, mininterval=pace)
    with bar as progress:

        def land() -> None:
            batch, keys, result = flight.popleft()
            values = np.asarray(result)[keys.shard, keys.row]
            sums.put(keys.candidate, keys.step, keys.ordinary, values)
            store.add(keys, values, ids)
            progress.update(batch.shape.tokens * shards)

        for batch, arrays in pipeline.batches(wanted, pool, shards):
            result = score_batch(
                student.params, _on_device(arrays, mesh), graphdef=student.graphdef, n_sums=rows[batch.shape]
            )
            flight.append((batch, sum_keys(batch, shards), result))
            if len(flight) >= IN_FLIGHT:
                land()
        while flight:
            land()
    store.flush()


def result_rows(plan: Plan, shards: int) -> dict[Shape, int]:
    """M of every shape: the fullest shard of any of its batches, so that a shape is one program."""
    rows: dict[Shape, int] = {}
    for batch in plan.batches:
        rows[batch.shape] = max(rows.get(batch.shape, 0), n_sums(batch, shards))
    return {shape: -(-most // 64) * 64 for shape, most in rows.items()}


def _on_device(arrays: BatchArrays, mesh: Mesh) -> BatchArrays:
    """Leading axes over the mesh's batch axes; the count of targets everywhere."""
    return jax.tree.map(
        lambda x: jax.device_put(x, batch_sharding(mesh) if np.ndim(x) else replicated(mesh)), arrays
    )

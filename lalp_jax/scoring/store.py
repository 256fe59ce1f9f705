"""What a run leaves in ``--out`` while it works, so that another can go on where it stopped."""

import json
import os
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from etils import epath

from lalp_jax.data.batches import StepSums, SumKeys
from lalp_jax.errors import InputError

FLUSH_SECONDS = 15.0
_OUTPUTS = ("manifest.json", "scores.parquet", "steps.parquet", "selected.jsonl")


def write_atomically(path: epath.Path, data: bytes) -> None:
    """The file has its old content or its new one, whenever the process is killed."""
    if str(path).startswith("gs://"):
        path.write_bytes(data)  # an object appears whole, or not at all
        return
    partial = path.with_name(f".{path.name}.partial")
    with open(partial, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def write_parquet(path: epath.Path, table: pa.Table) -> None:
    """`write_atomically` of a table."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    write_atomically(path, sink.getvalue().to_pybytes())


class PartStore:
    """Step sums on disk: small files that are added and never changed.

    A value is found again by the candidate's content-derived id, the step and the kind of pass; `identity` says
    what else it depends on, and a folder holds values of one identity only.
    """

    def __init__(self, out: epath.Path, identity: Mapping[str, Any]):
        """Opens or begins the folder.

        Raises:
          InputError: it holds results of another identity, or of something else.
        """
        self.folder = out / "parts"
        marker = self.folder / "identity.json"
        identity = json.loads(json.dumps(dict(identity)))  # as it will be read again: tuples are lists there
        self.pending: list[tuple[list[str], np.ndarray, np.ndarray, np.ndarray]] = []
        self.flushed = time.monotonic()
        if marker.exists():
            _check_identity(out, json.loads(marker.read_text()), identity)
        elif found := [name for name in _OUTPUTS if (out / name).exists()]:
            raise InputError(
                f"holds {', '.join(found)} but not the parts they were made of",
                where=str(out),
                remedy="give another --out, or empty the folder",
            )
        else:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_atomically(marker, json.dumps(identity, indent=2, sort_keys=True).encode() + b"\n")

    def load(self, sums: StepSums, ids: Sequence[str]) -> None:
        """Puts all stored values of the candidates `ids` into `sums`; others stay on disk."""
        index = {candidate: i for i, candidate in enumerate(ids)}
        for path in self._parts():
            table = pq.read_table(pa.BufferReader(path.read_bytes()))
            codes = table["candidate_id"].combine_chunks()
            local = np.array([index.get(str(name), -1) for name in codes.dictionary.to_pylist()])
            candidate = local[codes.indices.to_numpy()]
            step, ordinary, value = (table[name].to_numpy() for name in ("step", "ordinary", "logprob_sum"))
            ours = candidate >= 0
            sums.put(candidate[ours], step[ours], ordinary[ours], value[ours])

    def add(self, keys: SumKeys, values: np.ndarray, ids: Sequence[str]) -> None:
        """Takes a batch's values; writes when FLUSH_SECONDS have passed."""
        self.pending.append(([ids[i] for i in keys.candidate], keys.step, keys.ordinary, values))
        if time.monotonic() - self.flushed > FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Writes what is pending as a part of its own."""
        self.flushed = time.monotonic()
        if not self.pending:
            return
        names, steps, kinds, values = zip(*self.pending, strict=True)
        table = pa.table({
            "candidate_id": pa.array([n for part in names for n in part]).dictionary_encode(),
            "step": pa.array(np.concatenate(steps).astype(np.int32)),
            "ordinary": pa.array(np.concatenate(kinds)),
            "logprob_sum": pa.array(np.concatenate(values).astype(np.float32)),
        })  # fmt: skip
        taken = [int(path.stem.removeprefix("part-")) for path in self._parts()]
        write_parquet(self.folder / f"part-{max(taken, default=-1) + 1:06d}.parquet", table)
        self.pending = []

    def _parts(self) -> list[epath.Path]:
        return sorted(self.folder.glob("part-*.parquet"))


def _check_identity(out: epath.Path, stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    differing = [key for key in sorted({*stored, *wanted}) if stored.get(key) != wanted.get(key)]
    if differing:
        lines = "; ".join(f"{key} was {stored.get(key)!r}, is {wanted.get(key)!r}" for key in differing)
        raise InputError(
            f"was written by another run ({lines})",
            where=str(out),
            remedy="give another --out; scores of two settings are never mixed",
        )

"""What a run leaves behind: parts that come back bit by bit, and folders that are refused."""

import dataclasses
import json
import math

import numpy as np
import pytest
from etils import epath
from students import VOCAB
from test_student_config import tiny_config
from test_windows import UNLIMITED, encoded_of

from lalp_jax.data.batches import StepSums, SumKeys
from lalp_jax.data.plan import plan_pool
from lalp_jax.data.windows import Context, plan_windows
from lalp_jax.errors import InputError
from lalp_jax.scoring import scorer
from lalp_jax.scoring import store as store_module
from lalp_jax.scoring.scorer import score_plan
from lalp_jax.scoring.store import PartStore, write_atomically
from lalp_jax.student.hf import init_student
from lalp_jax.student.sharding import one_device_mesh

IDENTITY = {"student": "abc", "context": "k=4", "dtype": "float32"}


def pool_of(n=12):
    rng = np.random.default_rng(2)
    return [
        encoded_of(rng.integers(1, 10, 6 + i % 5).tolist(), 5 + i % 3, f"p{i % 3}", f"c{i}", vocab=VOCAB)
        for i in range(n)
    ]


def plans_of(pool):
    return [plan_windows(e, Context(), local=True, ordinary=True, max_positions=UNLIMITED) for e in pool]


def ids_of(pool):
    return [e.candidate.id for e in pool]


def keys_of(entries):
    candidate, step, ordinary = (np.array(column) for column in zip(*entries, strict=True))
    nothing = np.zeros(len(entries), np.int64)
    return SumKeys(nothing, nothing, candidate, step, ordinary.astype(bool))


@pytest.fixture
def out(tmp_path):
    return epath.Path(tmp_path / "out")


def parts(out):
    return sorted(path.name for path in (out / "parts").glob("part-*"))


def test_values_come_back_bit_by_bit(out):
    """Also not-a-number, into another order of candidates, and without those that are no longer there."""
    store, ids = PartStore(out, IDENTITY), ["a", "b", "c"]
    store.add(keys_of([(0, 0, True), (1, 2, False)]), np.float32([-0.1, math.nan]), ids)
    store.add(keys_of([(2, 1, True), (1, 2, True)]), np.float32([-1e-30, -7.25]), ids)
    assert parts(out) == []
    store.flush()
    store.flush()
    assert parts(out) == ["part-000000.parquet"]
    pool = [encoded_of([1] * 4, name=name) for name in ("b", "new", "a")]
    sums = StepSums(pool, plans_of(pool))
    PartStore(out, IDENTITY).load(sums, ids_of(pool))
    known = [(0, 2, False), (0, 2, True), (2, 0, True)]
    assert sums.known.sum() == len(known)
    for key in known:
        assert sums.has(keys_of([key]))
    assert not sums.has(keys_of([*known, (0, 1, True)]))
    assert sums.ordinary(2)[0] == np.float32(-0.1)
    assert sums.ordinary(0)[2] == np.float32(-7.25)
    assert math.isnan(sums.values[0, 2])


def test_another_run_adds_parts_and_overwrites_none(out):
    written = []
    for run in range(3):
        store = PartStore(out, IDENTITY)
        store.add(keys_of([(0, run, True)]), np.float32([-run - 1.0]), ["a"])
        store.flush()
        written.append({path.name: path.read_bytes() for path in (out / "parts").glob("part-*")})
    assert parts(out) == [f"part-{run:06d}.parquet" for run in range(3)]
    assert written[0].items() < written[1].items() < written[2].items()
    (out / "parts" / "part-000001.parquet").unlink()
    store.add(keys_of([(0, 3, True)]), np.float32([-4.0]), ["a"])
    store.flush()
    assert parts(out)[-1] == "part-000003.parquet"
    pool = [encoded_of([1] * 5, name="a")]
    sums = StepSums(pool, plans_of(pool))
    store.load(sums, ["a"])
    np.testing.assert_array_equal(sums.ordinary(0), np.float32([-1, math.nan, -3, -4, math.nan]))


def test_values_are_written_when_it_is_time(out, monkeypatch):
    store = PartStore(out, IDENTITY)
    monkeypatch.setattr(store_module, "FLUSH_SECONDS", -1.0)
    store.add(keys_of([(0, 0, True)]), np.float32([-1.0]), ["a"])
    assert parts(out) == ["part-000000.parquet"]
    assert store.pending == []


@pytest.mark.slow
def test_a_large_part_comes_back(out):
    """More rows than one row group of a parquet file has."""
    n = 2**20 + 100
    store = PartStore(out, IDENTITY)
    index = np.arange(n)
    keys = SumKeys(index, index, index % 3, index // 3, np.ones(n, bool))
    store.add(keys, -index.astype(np.float32), ["a", "b", "c"])
    store.flush()
    pool = [encoded_of([1] * (n // 3 + 1), name=name) for name in "cba"]
    sums = StepSums(pool, plans_of(pool))
    store.load(sums, ids_of(pool))
    assert sums.known[1].sum() == n
    for place, name in enumerate("cba"):
        steps = np.arange("abc".index(name), n, 3)
        np.testing.assert_array_equal(sums.ordinary(place)[: len(steps)], -steps.astype(np.float32))


def test_unfinished_files_are_ignored(out):
    store = PartStore(out, IDENTITY)
    (out / "parts" / ".part-000007.parquet.partial").write_bytes(b"half")
    (out / "parts" / "part-000008.parquet.partial").write_bytes(b"half")
    pool = pool_of(1)
    sums = StepSums(pool, plans_of(pool))
    store.load(sums, ids_of(pool))
    assert not sums.known.any()
    store.add(keys_of([(0, 0, True)]), np.float32([-1.0]), ids_of(pool))
    store.flush()
    assert (out / "parts" / "part-000000.parquet").exists()


def test_a_file_is_replaced_whole(out, monkeypatch):
    out.mkdir()
    write_atomically(out / "file", b"old")

    def fail(*_):
        raise OSError("no space")

    with monkeypatch.context() as patch:
        patch.setattr(store_module.os, "fsync", fail)
        with pytest.raises(OSError, match="no space"):
            write_atomically(out / "file", b"new and longer")
    assert (out / "file").read_bytes() == b"old"
    write_atomically(out / "file", b"new")
    assert (out / "file").read_bytes() == b"new"
    assert [path.name for path in out.iterdir()] == ["file"]


@pytest.mark.parametrize("changed", [{"context": "k=2"}, {"dtype": None}, {"more": 1}])
def test_another_identity_is_refused_by_name(out, changed):
    PartStore(out, IDENTITY)
    [key] = changed
    wanted = {k: v for k, v in {**IDENTITY, **changed}.items() if v is not None}
    with pytest.raises(InputError, match=rf"another run \({key} was ") as caught:
        PartStore(out, wanted)
    assert "remedy" in str(caught.value)
    assert json.loads((out / "parts" / "identity.json").read_text()) == IDENTITY


def test_the_same_identity_is_accepted_whatever_its_containers(out):
    """JSON knows lists alone; a tuple is the same setting."""
    PartStore(out, {"columns": ("a", "b"), "sizes": {"data": 1}})
    PartStore(out, {"sizes": {"data": 1}, "columns": ("a", "b")})


@pytest.mark.parametrize("name", ["manifest.json", "scores.parquet", "selected.jsonl"])
def test_a_folder_of_something_else_is_refused(out, name):
    out.mkdir()
    (out / name).write_text("{}")
    with pytest.raises(InputError, match=name):
        PartStore(out, IDENTITY)
    assert [path.name for path in out.iterdir()] == [name]


class Stopped(Exception):
    """The run is killed."""


@pytest.fixture(scope="module")
def student():
    config = dataclasses.replace(tiny_config(), vocab_size=VOCAB)
    return init_student(config, 0, "float32", one_device_mesh())


def run(student, pool, out, stop_after=None):
    """Scores what is not stored yet; the sums, and the number of batches computed."""
    plans, mesh = plans_of(pool), one_device_mesh()
    plan = plan_pool(pool, plans, tokens_per_batch=128)
    assert len(plan.batches) >= 8
    store, sums, calls = PartStore(out, IDENTITY), StepSums(pool, plans), []
    store.load(sums, ids_of(pool))
    add = store.add

    def counted(*arguments):
        if len(calls) == stop_after:
            raise Stopped
        calls.append(arguments)
        add(*arguments)

    store.add = counted
    if stop_after is None:
        score_plan(student, plan, pool, sums, store, mesh)
    else:
        with pytest.raises(Stopped):
            score_plan(student, plan, pool, sums, store, mesh)
    return sums, len(calls), len(plan.batches)


def test_a_stopped_run_goes_on_to_the_same_bits(student, tmp_path, monkeypatch):
    pool = pool_of()
    whole, computed, n_batches = run(student, pool, epath.Path(tmp_path / "whole"))
    assert computed == n_batches
    assert np.isfinite(whole.values[whole.known]).all()
    monkeypatch.setattr(store_module, "FLUSH_SECONDS", -1.0)
    out = epath.Path(tmp_path / "stopped")
    run(student, pool, out, stop_after=3)
    _, computed, _ = run(student, pool, out, stop_after=2)
    assert computed == 2
    sums, computed, _ = run(student, pool, out)
    assert computed == n_batches - 5
    np.testing.assert_array_equal(sums.values, whole.values)
    np.testing.assert_array_equal(sums.known, whole.known)
    monkeypatch.setattr(scorer, "score_batch", None)
    again, computed, _ = run(student, pool, out)
    assert computed == 0
    np.testing.assert_array_equal(again.values, whole.values)


def test_a_batch_that_lost_a_value_is_computed_again(student, tmp_path, monkeypatch):
    """All of it, with the same companions: the other values do not move."""
    pool, out = pool_of(), epath.Path(tmp_path / "out")
    monkeypatch.setattr(store_module, "FLUSH_SECONDS", -1.0)
    whole, _, _ = run(student, pool, out)
    (out / "parts" / "part-000002.parquet").unlink()
    sums, computed, _ = run(student, pool, out)
    assert computed == 1
    np.testing.assert_array_equal(sums.values, whole.values)

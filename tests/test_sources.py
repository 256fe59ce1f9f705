"""Containers and kinds of source: what is read, and what is said of what cannot be."""

import gzip
import json
import pathlib
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from lalp_jax.data import containers, sources
from lalp_jax.data.containers import BadRows, Row
from lalp_jax.data.sources import open_source
from lalp_jax.errors import InputError

ROWS: list[dict[str, Any]] = [{"id": "a", "n": 1}, {"id": "b\u2028\u0085", "n": None}, {"id": "c 😀", "n": 2}]
TMP = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)


def rows_of(source: pathlib.Path | str, bad: BadRows | None = None) -> list[Row]:
    return list(open_source(str(source)).rows(bad or BadRows()))


def fields_of(source: pathlib.Path | str) -> list[dict]:
    return [row.fields for row in rows_of(source)]


def jsonl(rows: list[dict], ascii_only: bool = False) -> bytes:
    return b"".join(json.dumps(row, ensure_ascii=ascii_only).encode() + b"\n" for row in rows)


def write(path: pathlib.Path, data: bytes | str) -> pathlib.Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


CONTAINERS = {
    "x.jsonl": jsonl(ROWS),
    "escaped.jsonl": jsonl(ROWS, ascii_only=True),
    "bom.jsonl": b"\xef\xbb\xbf" + jsonl(ROWS),
    "crlf.jsonl": jsonl(ROWS).replace(b"\n", b"\r\n"),
    "no_end.jsonl": jsonl(ROWS).rstrip(b"\n"),
    "x.jsonl.gz": gzip.compress(jsonl(ROWS)),
    "members.jsonl.gz": b"".join(gzip.compress(jsonl([row])) for row in ROWS),
    "x.jsonl.zst": zstandard.ZstdCompressor().compress(jsonl(ROWS)),
    "frames.jsonl.zst": b"".join(zstandard.ZstdCompressor().compress(jsonl([row])) for row in ROWS),
    "x.json": json.dumps(ROWS, indent=1).encode(),
    "lines.json": jsonl(ROWS),
    "UPPER.JSONL": jsonl(ROWS),
}


@pytest.mark.parametrize("name", CONTAINERS)
def test_container(tmp_path: pathlib.Path, name: str) -> None:
    assert fields_of(write(tmp_path / name, CONTAINERS[name])) == ROWS


def test_parquet(tmp_path: pathlib.Path) -> None:
    pq.write_table(pa.Table.from_pylist(ROWS * 200), tmp_path / "x.parquet", row_group_size=7)
    rows = rows_of(tmp_path / "x.parquet")
    assert [row.fields for row in rows] == ROWS * 200
    assert rows[9].where == f"{tmp_path}/x.parquet:row 10"


def test_saved_data_sets(tmp_path: pathlib.Path) -> None:
    import datasets

    table = datasets.Dataset.from_list(ROWS)
    table.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"test": table.select([0]), "train": table}).save_to_disk(tmp_path / "splits")
    datasets.DatasetDict({"a": table, "b": table}).save_to_disk(tmp_path / "unclear")
    assert fields_of(tmp_path / "one") == fields_of(tmp_path / "splits") == ROWS
    assert rows_of(tmp_path / "splits")[0].where == f"{tmp_path}/splits/train:row 1"
    with pytest.raises(InputError, match=r"split 'train' is not there[^$]*a, b"):
        rows_of(tmp_path / "unclear")


def test_single_object_is_one_row(tmp_path: pathlib.Path) -> None:
    """A file per prompt: however the object is laid out over lines."""
    for indent in (None, 2):
        rows = rows_of(write(tmp_path / "p.json", json.dumps(ROWS[1], indent=indent)))
        assert [(row.fields, row.place) for row in rows] == [(ROWS[1], "1")]


def test_directory_and_glob_are_sorted(tmp_path: pathlib.Path) -> None:
    for name in ("b.jsonl", "a.json", "sub/c.jsonl", "c.jsonl.gz"):
        data = jsonl([{"from": name}])
        write(tmp_path / name, gzip.compress(data) if name.endswith(".gz") else data)
    write(tmp_path / "README.md", "no data")
    write(tmp_path / ".hidden.jsonl", "no data")
    assert [f["from"] for f in fields_of(tmp_path)] == ["a.json", "b.jsonl", "c.jsonl.gz"]
    assert [f["from"] for f in fields_of(tmp_path / "*.jsonl")] == ["b.jsonl"]
    assert [f["from"] for f in fields_of(tmp_path / "**/*.jsonl")] == ["b.jsonl", "sub/c.jsonl"]
    bracket = write(tmp_path / "x[1].jsonl", jsonl([{"from": "literal"}]))
    assert fields_of(bracket) == [{"from": "literal"}]


class _Bucket:
    """TensorFlow's file system, by which epath reads buckets, on a bucket that is a folder in truth."""

    def __init__(self, folder: pathlib.Path):
        from etils.epath import backend

        self.real, self.folder = backend.tf_backend, str(folder)

    def __getattr__(self, name: str):
        def call(path: object, *args: object):
            found = getattr(self.real, name)(str(path).replace("gs://bucket", self.folder), *args)
            return [p.replace(self.folder, "gs://bucket") for p in found] if name == "glob" else found

        return call


def test_bucket(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from etils.epath import gpath

    write(tmp_path / "dir" / "a.jsonl.gz", gzip.compress(jsonl(ROWS)))
    write(tmp_path / "dir" / "b.jsonl.zst", zstandard.compress(jsonl(ROWS)))
    write(tmp_path / "dir" / "c.json", json.dumps(ROWS))
    write(tmp_path / "dir" / "d.jsonl", jsonl(ROWS))
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "dir" / "e.parquet")
    monkeypatch.setattr(gpath.backend_lib, "tf_backend", _Bucket(tmp_path))
    assert fields_of("gs://bucket/dir/d.jsonl") == ROWS
    assert fields_of("gs://bucket/dir") == fields_of("gs://bucket/dir/*.*") == ROWS * 5
    assert rows_of("gs://bucket/dir")[0].where == "gs://bucket/dir/a.jsonl.gz:1"
    with pytest.raises(InputError, match=r"gs://bucket/none/\*: glob without a match"):
        open_source("gs://bucket/none/*")
    with pytest.raises(InputError, match="not read in a bucket"):
        open_source("gs://bucket/**/*.jsonl")


def test_bucket_that_cannot_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    import tensorflow as tf
    from etils.epath import gpath

    class Unreachable:
        def isdir(self, path: str) -> bool:
            raise tf.errors.PermissionDeniedError(None, None, "403\nmore")

    monkeypatch.setattr(gpath.backend_lib, "tf_backend", Unreachable())
    with pytest.raises(
        InputError, match=r"gs://bucket/x\.jsonl: cannot be read: 403\n  remedy: .*credentials"
    ):
        open_source("gs://bucket/x.jsonl")


def test_relative_path_and_glob(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "a.jsonl", jsonl(ROWS))
    monkeypatch.chdir(tmp_path)
    assert fields_of("a.jsonl") == fields_of("*.jsonl") == ROWS
    assert rows_of("a.jsonl")[0].where == "a.jsonl:1"


def test_physical_line_numbers(tmp_path: pathlib.Path) -> None:
    """Blank lines count; the separators that str.splitlines knows do not."""
    lines = ['{"a": 1}', "", "  \r", '{"a": "x\u2028y\u0085z\x7f"}', '{"a": 3}']
    rows = rows_of(write(tmp_path / "x.jsonl", "\n".join(lines)))
    assert [row.place for row in rows] == ["1", "4", "5"]
    elements = rows_of(write(tmp_path / "x.json", "[{}, {}]"))
    assert [row.where for row in elements] == [f"{tmp_path}/x.json:element {n}" for n in (1, 2)]


MALFORMED = {
    "invalid JSON": b'{"a": 1,}',
    "invalid UTF-8": b'{"a": "\xff"}',
    "lone surrogate": b'{"a": ["\\ud800"]}',
    "not a JSON number": b'{"a": NaN}',
    "nested too deeply": b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "number too long": b'{"a": ' + b"9" * 5000 + b"}",
    "not an object": b'["a"]',
    "duplicate key": b'{"a": {"b": 1, "b": 2}}',
}


@pytest.mark.parametrize("reason", MALFORMED)
def test_malformed_line(tmp_path: pathlib.Path, reason: str) -> None:
    path = write(tmp_path / "x.jsonl", b'{"a": 0}\n\n' + MALFORMED[reason] + b'\n{"a": 2}\n')
    with pytest.raises(InputError) as error:
        rows_of(path)
    assert f"{path}:3: malformed row: {reason}" in str(error.value)
    assert "--on-bad-row skip" in str(error.value)
    bad = BadRows("skip")
    assert [row.place for row in rows_of(path, bad)] == ["1", "4"]
    assert bad.skipped == {f"malformed row: {reason}": 1}


def test_surrogate_pairs_are_text(tmp_path: pathlib.Path) -> None:
    assert fields_of(write(tmp_path / "x.jsonl", b'{"a": "\\ud83d\\ude00\\u0000"}')) == [{"a": "😀\0"}]


def test_torn_last_line(tmp_path: pathlib.Path) -> None:
    path = write(tmp_path / "x.jsonl", jsonl(ROWS)[:-9])
    with pytest.raises(InputError, match=r"x\.jsonl:3: .*perhaps cut off"):
        rows_of(path)


def test_malformed_json_array(tmp_path: pathlib.Path) -> None:
    path = write(tmp_path / "x.json", '[{"a": 1}, 2, {"a": 3}]')
    with pytest.raises(InputError, match=r"x\.json:element 2: malformed row: not an object \(a int\)"):
        rows_of(path)
    bad = BadRows("skip")
    assert len(rows_of(path, bad)) == 2
    assert bad.skipped.total() == 1
    path = write(tmp_path / "y.json", '[{"a": 1},\n{"a" 2}]')
    with pytest.raises(InputError, match=r"y\.json: malformed row: invalid JSON .*line 2, column 6"):
        rows_of(path)


def test_json_array_named_jsonl(tmp_path: pathlib.Path) -> None:
    with pytest.raises(InputError, match=r"must be named \.json"):
        rows_of(write(tmp_path / "x.jsonl", "[{}]"))


def test_line_over_the_limit_is_not_loaded(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bomb: one line of 64 MiB in a few kilobytes, between two good rows."""
    monkeypatch.setattr(containers, "LINE_LIMIT", 1 << 20)
    bomb = b'{"a": "' + b"0" * (1 << 26) + b'"}\n'
    data = b'{"a": 1}\n' + bomb + b'{"a": 2}\n'
    for name, packed in (("x.jsonl.gz", gzip.compress(data)), ("x.jsonl.zst", zstandard.compress(data))):
        assert len(packed) < 100_000
        bad = BadRows("skip")
        assert [row.place for row in rows_of(write(tmp_path / name, packed), bad)] == ["1", "3"]
        assert bad.skipped == {"malformed row: line too long": 1}


@pytest.mark.parametrize("name", ["x.jsonl.gz", "x.jsonl.zst"])
def test_cut_off_compressed_file(tmp_path: pathlib.Path, name: str) -> None:
    rows = [{"a": str(n) * 50} for n in range(2000)]
    pack = gzip.compress if name.endswith("gz") else zstandard.compress
    path = write(tmp_path / name, pack(jsonl(rows))[:-40])
    for policy in ("error", "skip"):
        with pytest.raises(InputError, match="cannot be read") as error:
            rows_of(path, BadRows(policy))
        assert str(path) in str(error.value)


def test_damaged_parquet(tmp_path: pathlib.Path) -> None:
    with pytest.raises(InputError, match=r"x\.parquet: cannot be read: damaged parquet"):
        rows_of(write(tmp_path / "x.parquet", b"PAR1 nothing"))


def test_invalid_text_in_parquet(tmp_path: pathlib.Path) -> None:
    raw = pa.array([b"ok", b"\xff\xfe", b"fine"])
    text = pa.Array.from_buffers(pa.string(), 3, raw.buffers())
    pq.write_table(pa.table({"a": text}), tmp_path / "x.parquet")
    bad = BadRows("skip")
    assert [row.fields["a"] for row in rows_of(tmp_path / "x.parquet", bad)] == ["ok", "fine"]
    assert bad.skipped == {"malformed row: invalid UTF-8": 1}
    with pytest.raises(InputError, match=r"x\.parquet:row 2: malformed row: invalid UTF-8"):
        rows_of(tmp_path / "x.parquet")


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("x.jsonl", b"", "has no rows"),
        ("x.jsonl", b"\n \n", "has no rows"),
        ("x.json", b"[]", "has no rows"),
        ("x.json", b"", "invalid JSON"),
        ("x.jsonl.gz", gzip.compress(b""), "has no rows"),
        ("x.csv", b"a,b", "of a kind that is not read"),
        ("noext", b"{}", "of a kind that is not read"),
    ],
)
def test_file_without_rows(tmp_path: pathlib.Path, name: str, data: bytes, message: str) -> None:
    path = write(tmp_path / name, data)
    with pytest.raises(InputError, match=message) as error:
        rows_of(path)
    assert str(path) in str(error.value)
    assert error.value.remedy


def test_nothing_there(tmp_path: pathlib.Path) -> None:
    for source, message in {
        "missing.jsonl": "no such file or directory",
        "*.jsonl": "glob without a match",
        ".": "directory without a file that is read",
    }.items():
        with pytest.raises(InputError, match=message) as error:
            open_source(str(tmp_path / source))
        assert str(tmp_path) in str(error.value)
        assert error.value.remedy


def test_unreadable_file(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "x.jsonl", jsonl(ROWS))

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(type(sources.epath.Path(path)), "open", refuse)
    with pytest.raises(InputError, match=r"x\.jsonl: cannot be read: .*Permission denied"):
        rows_of(path)


def test_unknown_policy() -> None:
    with pytest.raises(InputError, match="'Skip'"):
        BadRows("Skip")  # type: ignore[arg-type]


def test_rows_are_lazy(tmp_path: pathlib.Path) -> None:
    """The first row is there before the broken tail is looked at."""
    path = write(tmp_path / "x.jsonl", b'{"a": 1}\nbroken\n')
    assert next(iter(open_source(str(path)).rows(BadRows()))).fields == {"a": 1}


def test_sample_spreads_over_files(tmp_path: pathlib.Path) -> None:
    for n in range(4):
        write(tmp_path / f"{n}.jsonl", jsonl([{"file": n, "row": r} for r in range(100)]))
    sample = open_source(str(tmp_path)).sample("error", size=64)
    assert [(row.fields["file"], row.fields["row"]) for row in sample] == [
        (f, r) for f in range(4) for r in range(16)
    ]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


@TMP
@example(
    rows=[{"\u2028": "\u0085\x00\x1c\r\n", "rtl": "שלום \u202e", "emoji": "👩‍🚀"}],
    ascii_only=False,
    end="\r\n",
)
@example(rows=[{"long": "é" * (1 << 20)}], ascii_only=True, end="\n")
@given(
    rows=st.lists(st.dictionaries(st.text(), json_values, max_size=4), min_size=1, max_size=5),
    ascii_only=st.booleans(),
    end=st.sampled_from(["\n", "\r\n", "\n\n \n"]),
)
def test_jsonl_round_trip(tmp_path: pathlib.Path, rows: list[dict], ascii_only: bool, end: str) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes("".join(json.dumps(row, ensure_ascii=ascii_only) + end for row in rows).encode())
    assert fields_of(path) == rows
    path = tmp_path / "x.json"
    path.write_bytes(json.dumps(rows, ensure_ascii=ascii_only).encode())
    assert fields_of(path) == rows


@TMP
@given(lines=st.lists(st.binary(max_size=40).filter(lambda line: b"\n" not in line), min_size=1, max_size=6))
def test_any_bytes_are_counted(tmp_path: pathlib.Path, lines: list[bytes]) -> None:
    """Whatever a line holds, it is a row, a counted bad row, or blank: never a crash, never lost."""
    path, bad = tmp_path / "x.jsonl", BadRows("skip")
    path.write_bytes(b"\n".join([b'{"a": 1}', *lines]))
    blank = sum(not line.strip() for line in lines)
    assert len(rows_of(path, bad)) + bad.skipped.total() + blank == len(lines) + 1


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("hf://owner/name", ("owner/name", None, None, None)),
        ("owner/s1K-1.1", ("owner/s1K-1.1", None, None, None)),
        ("hf://o/n:cfg:train[:5%]@main", None),
        ("hf://o/n:cfg:train@abc123", ("o/n", "cfg", "train", "abc123")),
        ("hf://o/n::test", ("o/n", "", "test", None)),
        ("hf://o/n:cot", ("o/n", "cot", None, None)),
        ("o/n@v1.0", ("o/n", None, None, "v1.0")),
        ("hf://name-alone", None),
        ("../name", None),
        ("a/b/c", None),
    ],
)
def test_hub_id(text: str, expected: tuple | None) -> None:
    match = sources._HUB_ID.fullmatch(text)
    assert (match and match.group("repo", "config", "split", "revision")) == expected


class _Hub:
    """Stands for the hub: one data set with the configs `all` and `cot`, of splits train and test."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        import datasets

        self.asked: list[tuple] = []
        monkeypatch.setattr(datasets, "get_dataset_config_names", lambda repo, revision: ["all", "cot"])
        monkeypatch.setattr(
            datasets, "get_dataset_split_names", lambda repo, config, revision: ["train", "test"]
        )
        monkeypatch.setattr(datasets, "load_dataset", self.load)

    def load(self, repo: str, config: str | None, *, split: str, revision: str | None) -> list[dict]:
        self.asked.append((repo, config, split, revision))
        return ROWS


@pytest.mark.parametrize(
    ("text", "asked"),
    [
        ("owner/name", ("owner/name", None, "train", None)),
        ("hf://o/n:cot", ("o/n", "cot", "train", None)),
        ("hf://o/n:test", ("o/n", None, "test", None)),
        ("hf://o/n:cot:test@abc", ("o/n", "cot", "test", "abc")),
    ],
)
def test_hub_data_set(monkeypatch: pytest.MonkeyPatch, text: str, asked: tuple) -> None:
    hub = _Hub(monkeypatch)
    rows = rows_of(text)
    assert hub.asked == [asked]
    assert [row.fields for row in rows] == ROWS
    assert rows[1].where == f"hf://{asked[0]}:{asked[2]}:row 2"
    assert sources.stem(rows[0].file) == asked[0].partition("/")[2]


def test_hub_split_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    _Hub(monkeypatch)
    with pytest.raises(InputError, match=r"split 'dev' is not there[^$]*train, test"):
        open_source("hf://o/n:dev")


def test_hub_offline() -> None:
    """conftest takes the hub away: the message must name both things that the text could have been."""
    with pytest.raises(InputError, match="neither a local file or directory nor a hub data set") as error:
        open_source("no-such-folder/no-such-set")
    assert error.value.where == "no-such-folder/no-such-set"
    assert "HF_HUB_OFFLINE" in str(error.value)
    with pytest.raises(InputError, match="not a hub id"):
        open_source("hf://name-alone")


def test_stem() -> None:
    for part, name in {
        "dir/qwen-7b.jsonl": "qwen-7b",
        "s1K-1.1.jsonl.gz": "s1K-1.1",
        "gs://bucket/dir/a.parquet": "a",
        "a:b@c.json": "a:b@c",
        "hf://owner/name:train": "name",
        "tfds:mnist:3.0.1:test": "mnist",
        "tfds:gs://b/x/1.0.0:train": "1.0.0",
        "saved/": "saved",
    }.items():
        assert sources.stem(part) == name


@pytest.fixture(scope="module")
def tfds_folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A prepared TFDS data set with every kind of value that teacher data has."""
    import numpy as np
    import tensorflow_datasets as tfds

    text, many = tfds.features.Text, tfds.features.Sequence

    class TinyTeachers(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            message = {"role": text(), "content": text()}
            features = {
                "id": np.int64,
                "question": text(),
                "generations": many(text()),
                "correct": many(np.bool_),
            }
            features |= {"messages": many(message), "steps": many(many(text())), "loss": np.float32}
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples(3), "test": self._generate_examples(1)}

        def _generate_examples(self, count):
            for n in range(count):
                yield n, _tfds_example(n)

    root = tmp_path_factory.mktemp("tfds")
    builder = TinyTeachers(data_dir=root)
    builder.download_and_prepare()
    return pathlib.Path(builder.data_path)


def _tfds_example(n: int) -> dict:
    return {
        "id": n,
        "question": f"q{n} é\u2028",
        "generations": ["a", "b"],
        "correct": [True, False],
        "messages": [{"role": "user", "content": "x"}],
        "steps": [["a"], ["b", "c"]],
        "loss": 0.5,
    }


def _as_read(n: int) -> dict:
    """TFDS stores a list of objects as an object of lists."""
    return _tfds_example(n) | {"messages": {"role": ["user"], "content": ["x"]}}


def test_tfds(tfds_folder: pathlib.Path) -> None:
    by_id = sorted(fields_of(f"tfds:{tfds_folder}"), key=lambda fields: fields["id"])
    assert by_id == [_as_read(n) for n in range(3)]
    assert fields_of(f"tfds:{tfds_folder}:test") == [_as_read(0)]
    assert fields_of(tfds_folder) == fields_of(f"tfds:{tfds_folder}:train")
    assert len(fields_of(f"tfds:{tfds_folder}:train[:2]")) == 2


def test_tfds_errors(tfds_folder: pathlib.Path) -> None:
    with pytest.raises(InputError, match=r"split 'dev' is not there[^$]*train"):
        open_source(f"tfds:{tfds_folder}:dev")
    with pytest.raises(InputError, match=r"tfds:no_such_set: cannot be loaded: .*not found"):
        open_source("tfds:no_such_set")
    with pytest.raises(InputError, match="not a TFDS name"):
        open_source("tfds:")

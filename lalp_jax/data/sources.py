"""Where rows come from: files, directories, globs, and saved, hub and TFDS data sets, read row by row."""

import contextlib
import dataclasses
import functools
import glob
import itertools
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
from etils import epath

from lalp_jax.data.containers import CONTAINERS, BadRows, Malformed, OnBadRow, Row, container
from lalp_jax.errors import InputError, LalpError


@contextlib.contextmanager
def _readable(where: str) -> Iterator[None]:
    """Failures of a disk or bucket as errors for the user; each bucket library has kinds of its own."""
    try:
        yield
    except LalpError:
        raise
    except Exception as error:
        if isinstance(error, OSError) or where.startswith("gs://"):
            remedy = "is it whole, and yours to read? A bucket needs the network and credentials"
            raise InputError(f"cannot be read: {_first_line(error)}", where=where, remedy=remedy) from error
        raise


@dataclasses.dataclass(frozen=True)
class Part:
    """One file, or one split of a data set: its name, and a way to read it from the start."""

    name: str
    reader: Callable[[BadRows], Iterator[Row]]

    def rows(self, bad: BadRows) -> Iterator[Row]:
        """All good rows. Raises: InputError for a part without any row, and for one that cannot be read."""
        before, count = bad.skipped.total(), 0
        with _readable(self.name):
            for row in self.reader(bad):
                count += 1
                yield row
        if not count and bad.skipped.total() == before:
            raise InputError("has no rows", where=self.name, remedy="leave it out, or write it again")


@dataclasses.dataclass(frozen=True)
class Source:
    """What a user named (see `open_source`), opened: its parts in reading order."""

    name: str
    parts: tuple[Part, ...]

    def rows(self, bad: BadRows) -> Iterator[Row]:
        """All good rows of all parts, in order, lazily."""
        return itertools.chain.from_iterable(part.rows(bad) for part in self.parts)

    def sample(self, policy: OnBadRow, size: int = 64) -> list[Row]:
        """The first rows, at least two of a part, spread over the parts where there are several."""
        each = max(2, size // len(self.parts))
        heads = (itertools.islice(part.rows(BadRows(policy)), each) for part in self.parts[: size // 2])
        return list(itertools.chain.from_iterable(heads))


def open_source(source: str) -> Source:
    """Finds what `source` names.

    Args:
      source: a file (``.jsonl``, ``.jsonl.gz``, ``.jsonl.zst``, ``.json``, ``.parquet``), a directory of
        them, a data set saved by ``datasets`` or TFDS, a glob, a ``gs://`` form of these,
        ``tfds:name[:version][:split]``, or a hub id ``[hf://]owner/name[:config][:split][@revision]``.

    Raises:
      InputError: nothing is there, or it is of a kind that is not read.
    """
    if source.startswith("tfds:"):
        return Source(source, (_tfds_part(source),))
    hub = _HUB_ID.fullmatch(source)
    if source.startswith("hf://"):
        if hub is None:
            raise InputError(
                "not a hub id", where=source, remedy="hf://owner/name[:config][:split][@revision]"
            )
        return Source(source, (_hub_part(hub),))
    path = epath.Path(source).expanduser()
    with _readable(source):
        if path.is_dir():
            return Source(source, _directory_parts(path))
        if path.exists():
            return Source(source, (_file_part(path),))
        if glob.has_magic(source):
            return Source(source, tuple(_file_part(p) for p in _matches(path)))
    if hub is not None and container(path) is None:
        return Source(source, (_hub_part(hub),))
    raise InputError(
        "no such file or directory", where=source, remedy="check the path; quote globs for the shell"
    )


def stem(part: str) -> str:
    """The name of a part without folders, container suffix, hub owner and split: fit to name a teacher."""
    if part.startswith(("hf://", "tfds:")):
        part = re.split(r":(?!//)", part.removeprefix("hf://").removeprefix("tfds:"))[0]
    name = part.rstrip("/").rpartition("/")[2]
    return next((name[: -len(suffix)] for suffix in CONTAINERS if name.lower().endswith(suffix)), name)


def _file_part(path: epath.Path) -> Part:
    reader = container(path)
    if path.is_dir() or reader is None:
        kinds = " ".join(CONTAINERS)
        raise InputError(
            "of a kind that is not read", where=str(path), remedy=f"convert it to one of: {kinds}"
        )
    return Part(str(path), functools.partial(reader, path))


def _directory_parts(path: epath.Path) -> tuple[Part, ...]:
    """A saved data set, or all readable files of a directory, by name; hidden files are passed over."""
    if (path / "state.json").exists() or (path / "dataset_dict.json").exists():
        return (_saved_part(path),)
    if (path / "features.json").exists():
        return (_tfds_part(f"tfds:{path}"),)
    files = [p for p in path.iterdir() if container(p) and not p.name.startswith(".") and not p.is_dir()]
    if not files:
        kinds = " ".join(CONTAINERS)
        raise InputError(
            "directory without a file that is read", where=str(path), remedy=f"read are: {kinds}"
        )
    return tuple(_file_part(p) for p in sorted(files, key=str))


def _matches(pattern: epath.Path) -> list[epath.Path]:
    """The files that a glob stands for, by name; hidden files are passed over."""
    if "://" not in str(pattern):
        found = [epath.Path(name) for name in glob.glob(str(pattern), recursive=True)]
    elif "**" in str(pattern):
        raise InputError("** is not read in a bucket", where=str(pattern), remedy="one * for each folder")
    else:
        found = list(pattern.parent.glob(pattern.name))
    files = sorted((path for path in found if not path.is_dir()), key=str)
    if not files:
        raise InputError(
            "glob without a match", where=str(pattern), remedy="check the pattern and its folder"
        )
    return files


_HUB_ID = re.compile(
    r"(?:hf://)?(?P<repo>\w[\w.-]*/\w[\w.-]*)(?::(?P<config>[^:@]*))?(?::(?P<split>[^:@]+))?(?:@(?P<revision>[^:@]+))?"
)
# The version of a TFDS name begins with a digit, a split never does.
_TFDS_NAME = re.compile(r"tfds:(?P<name>(?:gs://)?[^:]+)(?::(?P<version>\d[\w.*]*))?(?::(?P<split>.+))?")


def _one_split(names: Iterable[str], wanted: str | None, where: str) -> str:
    """The split to read: the one asked for, else the only one, else ``train``."""
    names = list(names)
    choice = wanted or (names[0] if len(names) == 1 else "train")
    if choice.partition("[")[0] not in names:
        raise InputError(
            f"split {choice!r} is not there",
            where=where,
            remedy=f"name one of these after a colon: {', '.join(names)}",
        )
    return choice


def _table_part(name: str, table: Iterable[dict[str, Any]]) -> Part:
    def reader(_: BadRows) -> Iterator[Row]:
        return (Row(dict(fields), name, f"row {n}") for n, fields in enumerate(table, 1))

    return Part(name, reader)


def _saved_part(path: epath.Path) -> Part:
    import datasets

    try:
        saved = datasets.load_from_disk(str(path))
    except (OSError, ValueError) as error:
        raise InputError(
            f"saved data set cannot be loaded: {error}", where=str(path), remedy="save it again"
        ) from error
    if isinstance(saved, datasets.DatasetDict):
        split = _one_split(saved, None, str(path))
        return _table_part(f"{path}/{split}", saved[split])
    return _table_part(str(path), saved)


def _hub_part(hub: re.Match[str]) -> Part:
    """A data set of the hub, cached by ``datasets``; code that a repository brings is never run."""
    import datasets

    repo, config, split, revision = hub.group("repo", "config", "split", "revision")
    where = f"hf://{repo}"
    try:
        configs = datasets.get_dataset_config_names(repo, revision=revision)
        if config and not split and config not in configs:
            config, split = None, config  # a single name after the colon may be either
        names = datasets.get_dataset_split_names(repo, config or None, revision=revision)
        split = _one_split(names, split, where)
        table = datasets.load_dataset(repo, config or None, split=split, revision=revision)
    except (OSError, ValueError, RuntimeError) as error:
        raise InputError(
            f"neither a local file or directory nor a hub data set that can be loaded: {_first_line(error)}",
            where=hub.string,
            remedy="check the name, the network and HF_HUB_OFFLINE; a gated set needs `hf auth login`",
        ) from error
    return _table_part(f"{where}:{split}", table)


def _tfds_part(source: str) -> Part:
    """A TFDS data set, by its name or by the folder that holds a prepared one."""
    import tensorflow_datasets as tfds

    match = _TFDS_NAME.fullmatch(source)
    if match is None:
        raise InputError("not a TFDS name", where=source, remedy="tfds:name[/config][:version][:split]")
    name, version, split = match.group("name", "version", "split")
    try:
        if (epath.Path(name) / "features.json").exists():
            builder = tfds.builder_from_directory(name)
        else:
            builder = tfds.builder(f"{name}:{version}" if version else name)
            builder.download_and_prepare()
    except (OSError, ValueError, AssertionError) as error:
        remedy = "check the name; see tensorflow.org/datasets for those there are"
        raise InputError(f"cannot be loaded: {_first_line(error)}", where=source, remedy=remedy) from error
    split = _one_split(builder.info.splits, split, source)

    def reader(bad: BadRows) -> Iterator[Row]:
        config = tfds.ReadConfig(interleave_cycle_length=1)  # rows in the order of the shards
        for number, fields in enumerate(
            tfds.as_numpy(builder.as_dataset(split=split, read_config=config)), 1
        ):
            try:
                row = Row(_plain(fields), source, f"row {number}")
            except UnicodeDecodeError as error:
                bad.add(Malformed("invalid UTF-8", error.reason), f"{source}:row {number}")
            else:
                yield row

    return Part(source, reader)


def _plain(value: Any) -> Any:
    """TFDS values (bytes, arrays, ragged tensors) as what JSON would have given."""
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist())
    if value is None or isinstance(value, str | int | float):
        return value
    return _plain(value.to_list())  # what is left is a ragged tensor


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0]

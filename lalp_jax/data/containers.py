"""What files hold: JSON lines, JSON and parquet as rows, and what becomes of malformed ones."""

import contextlib
import dataclasses
import functools
import io
import itertools
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, Literal, cast, get_args

from etils import epath

from lalp_jax.errors import InputError

OnBadRow = Literal["error", "skip"]

# A compressed file can hold one line of any length; a row beyond this many bytes is refused, not loaded.
LINE_LIMIT = 1 << 28


class Malformed(Exception):
    """A row, or one answer of a row, that cannot be used.

    Args: a short reason, which is counted; details for the message.
    """

    def __init__(self, reason: str, *details: str):
        self.reason, self.details = reason, details
        super().__init__(f"{reason} ({'; '.join(details)})" if details else reason)


class BadRows:
    """What happens to malformed rows: the first one is an `InputError`, or all are counted by reason."""

    def __init__(self, policy: OnBadRow = "error"):
        if policy not in get_args(OnBadRow):
            raise InputError(f"unknown way to treat bad rows: {policy!r}", remedy="choose error or skip")
        self.policy = policy
        self.skipped: Counter[str] = Counter()

    def add(self, problem: Malformed, where: str) -> None:
        """Takes one malformed row. Raises: InputError, naming the place, under the policy ``error``."""
        if self.policy == "error":
            remedy = "mend the row, or leave such rows out and have them counted: --on-bad-row skip"
            raise InputError(f"malformed row: {problem}", where=where, remedy=remedy)
        self.skipped[f"malformed row: {problem.reason}"] += 1


@dataclasses.dataclass(frozen=True, slots=True)
class Row:
    """One row as it was stored, before anyone decides what its columns mean.

    Attributes:
      file: the file or data set it came from.
      place: the physical line of a ``.jsonl`` file, ``element n`` of a JSON array, ``row n`` of a table;
        all from 1.
    """

    fields: dict[str, Any]
    file: str
    place: str

    @property
    def where(self) -> str:
        """``file:place``, for messages."""
        return f"{self.file}:{self.place}"


class _BucketFile(io.RawIOBase):
    """A bucket's file as Python's io knows files: TensorFlow's has no `readline(limit)` and no `closed`."""

    def __init__(self, file: Any):
        self._file = file

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._file.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._file.seek(offset, whence)
        return self.tell()

    def tell(self) -> int:
        return self._file.tell()


@contextlib.contextmanager
def _opened(path: epath.Path) -> Iterator[BinaryIO]:
    with path.open("rb") as file:
        is_plain = isinstance(file, io.BufferedIOBase)
        yield cast(BinaryIO, file if is_plain else io.BufferedReader(_BucketFile(file), 1 << 20))


def _jsonl(path: epath.Path, bad: BadRows, codec: str | None = None) -> Iterator[Row]:
    """Rows of a file of JSON lines; blank lines count in the numbering and are passed over."""
    with _opened(path) as file:
        for number, line in _lines(_decompressed(file, codec)):
            if not line.strip():
                continue
            try:
                row = Row(_json_object(line), str(path), str(number))
            except Malformed as problem:
                end = () if line.endswith(b"\n") else ("the last line, perhaps cut off",)
                bad.add(Malformed(problem.reason, *problem.details, *end), f"{path}:{number}")
            else:
                yield row


def _decompressed(file: BinaryIO, codec: str | None) -> BinaryIO:
    """The bytes as a stream: nothing is unpacked before it is asked for, and a cut-off file is an OSError."""
    if codec is None:
        return file
    import pyarrow as pa

    return io.BufferedReader(pa.CompressedInputStream(file, codec), 1 << 20)


def _lines(stream: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """Physical lines from 1, split at ``\\n`` alone; of a line over the limit only the head is kept."""
    for number in itertools.count(1):
        line = stream.readline(LINE_LIMIT + 1)
        if not line:
            return
        tail = line
        while len(line) > LINE_LIMIT and tail and not tail.endswith(b"\n"):
            tail = stream.readline(1 << 20)
        # Editors on Windows put a byte order mark before the first line.
        yield number, line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line


def _json(path: epath.Path, bad: BadRows) -> Iterator[Row]:
    """Rows of a JSON array, or the single object of a file per prompt; JSON lines under this suffix too."""
    data = path.read_bytes().removeprefix(b"\xef\xbb\xbf")
    if _is_json_object(data.lstrip().partition(b"\n")[0]):
        yield from _jsonl(path, bad)
        return
    try:
        value = _json_value(data)
    except Malformed as problem:
        bad.add(problem, str(path))
        return
    if not isinstance(value, list):
        value, places = [value], iter(["1"])
    else:
        places = (f"element {n}" for n in itertools.count(1))
    for item, place in zip(value, places, strict=False):
        if isinstance(item, dict):
            yield Row(item, str(path), place)
        else:
            bad.add(Malformed("not an object", f"a {type(item).__name__}"), f"{path}:{place}")


def _parquet(path: epath.Path, bad: BadRows) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    with _opened(path) as file:
        try:
            for batch in pq.ParquetFile(file).iter_batches(256):
                for index in range(batch.num_rows):
                    number += 1
                    try:
                        # Row by row: one string of invalid UTF-8 must not take its neighbours along.
                        yield Row(batch.slice(index, 1).to_pylist()[0], str(path), f"row {number}")
                    except UnicodeDecodeError as error:
                        bad.add(Malformed("invalid UTF-8", str(error)), f"{path}:row {number}")
        except pa.ArrowException as error:
            raise OSError(f"damaged parquet: {error}") from error


CONTAINERS: dict[str, Callable[[epath.Path, BadRows], Iterator[Row]]] = {
    ".jsonl": _jsonl,
    ".jsonl.gz": functools.partial(_jsonl, codec="gzip"),
    ".jsonl.zst": functools.partial(_jsonl, codec="zstd"),
    ".json": _json,
    ".parquet": _parquet,
}


def container(path: epath.Path) -> Callable[[epath.Path, BadRows], Iterator[Row]] | None:
    return next((reader for suffix, reader in CONTAINERS.items() if path.name.lower().endswith(suffix)), None)


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        twice = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise Malformed("duplicate key", repr(twice))
    return fields


def _no_constant(name: str) -> None:
    raise Malformed("not a JSON number", name)


_DECODER = json.JSONDecoder(object_pairs_hook=_unique_keys, parse_constant=_no_constant)
_SURROGATE_ESCAPE = re.compile(rb"\\u[dD][89a-fA-F]")


def _json_value(data: bytes) -> Any:
    """A JSON document whose every string can be encoded again. Raises: Malformed."""
    try:
        value = _DECODER.decode(data.decode())
        if _SURROGATE_ESCAPE.search(data):
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeDecodeError as error:
        raise Malformed("invalid UTF-8", f"{error.reason} at byte {error.start}") from error
    except UnicodeEncodeError as error:
        raise Malformed("lone surrogate", "half of a UTF-16 pair in a string") from error
    except json.JSONDecodeError as error:
        line = f"line {error.lineno}, " if error.lineno > 1 else ""
        raise Malformed("invalid JSON", f"{error.msg}, {line}column {error.colno}") from error
    except RecursionError as error:
        raise Malformed("nested too deeply") from error
    except ValueError as error:  # an integer of thousands of digits
        raise Malformed("number too long", str(error)) from error
    return value


def _json_object(line: bytes) -> dict[str, Any]:
    if len(line) > LINE_LIMIT:
        raise Malformed("line too long", f"over {LINE_LIMIT:,} bytes")
    if not isinstance(value := _json_value(line), dict):
        hint = ("a file that is one JSON array must be named .json",) if isinstance(value, list) else ()
        raise Malformed("not an object", f"a {type(value).__name__}", *hint)
    return value


def _is_json_object(line: bytes) -> bool:
    try:
        return isinstance(_json_value(line), dict)
    except Malformed:
        return False

"""The settings of every command: one data class each, with the one default and the help of each setting.

A command line, a ``--config`` file and a test all make the same data class. Nothing heavy is imported here, so
that ``--help`` answers at once.
"""

import argparse
import dataclasses
import types
import typing
from collections.abc import Sequence
from typing import Any, Literal, TypeVar

from lalp_jax.errors import InputError


def _setting(default: Any, help: str, **more: Any) -> Any:
    if isinstance(default, list):
        return dataclasses.field(default_factory=lambda: list(default), metadata={"help": help, **more})
    return dataclasses.field(default=default, metadata={"help": help, **more})


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScoreOptions:
    """Settings of scoring."""

    student: str | None = _setting(None, "student: a folder in HF format or a hub id", metavar="DIR_OR_HUB_ID")
    teachers: list[str] = _setting(
        [], "each teacher's answers; SOURCE is a file, glob, folder, gs:// path, hub id or tfds:name",
        metavar="[NAME=]SOURCE",
    )  # fmt: skip
    candidates: str | None = _setting(None, "one source with all teachers in it", metavar="SOURCE")
    out: str | None = _setting(None, "folder for the results; default runs/mini without --student", metavar="DIR")
    seed: int = _setting(0, "seed of everything that is drawn")
    dtype: Literal["float32", "bfloat16"] = _setting("float32", "type of weights and arithmetic")
    mesh: str | None = _setting(None, "devices along each axis, as data=2,fsdp=4,tensor=1; default: all on data")
    limit: int | None = _setting(None, "only the first N prompts", metavar="N")
    dry_run: bool = _setting(False, "print mapping, one example, plan and cost; load no weights")
    k: int | None = _setting(None, "context: the K steps before a step; default 4", metavar="K")
    window_fraction: float | None = _setting(
        None, "context: this fraction of the steps before a step, instead of --k", metavar="F"
    )
    segmenter: str = _setting("sentence", "sentence, line, paragraph, tokens:N or given")
    signals: str = _setting("lalp,galp", "signals to compute, separated by commas")
    system: str | None = _setting(None, "system message of prompts that bring none", metavar="TEXT")
    map: list[str] = _setting(
        [], "read this column as that field: response=solution; an empty column: do not read it",
        metavar="FIELD=COLUMN",
    )  # fmt: skip
    on_bad_row: Literal["error", "skip"] = _setting("error", "what a malformed row is: an error, or counted")
    tokens_per_batch: int = _setting(8192, "tokens that each data shard computes at once", metavar="N")

    def __post_init__(self) -> None:
        for name in ("limit", "tokens_per_batch"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise InputError(f"{value} is less than 1", where=_flag(name))


@dataclasses.dataclass(frozen=True, kw_only=True)
class SelectOptions(ScoreOptions):
    """Settings of selection: those of scoring, and which answers to keep."""

    signal: str = _setting("lalp", "the signal that selects")
    keep: int = _setting(1, "answers to keep per prompt", metavar="N")
    by: Literal["prompt", "teacher"] = _setting(
        "prompt", "keep the best answers of each prompt, or those of the best teacher"
    )
    require_correct: bool = _setting(False, "keep only answers whose final result is right")
    grade_workers: int = _setting(2, "processes that grade answers", metavar="N")
    grade_seconds: float = _setting(10.0, "time for grading one answer", metavar="SECONDS")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.keep < 1:
            raise InputError(f"keep is {self.keep}", where="--keep", remedy="keep at least 1 answer per prompt")
        if self.grade_workers < 1 or self.grade_seconds <= 0:
            raise InputError("grading needs a process and some time", where="--grade-workers, --grade-seconds")


Options = TypeVar("Options")


def parse(options: type[Options], argv: Sequence[str] | None, *, program: str, about: str) -> Options:
    """Settings from a command line; flags win over ``--config``, which wins over defaults.

    Raises:
      InputError: the file names a setting that does not exist, or gives it a value of another kind.
    """
    parser = argparse.ArgumentParser(prog=program, description=about)
    parser.add_argument("--config", metavar="RUN.YAML", help="file of settings, named as the flags; flags win")
    kinds = typing.get_type_hints(options)
    for field in dataclasses.fields(options):  # type: ignore[arg-type]
        _add(parser, field, kinds[field.name])
    given = vars(parser.parse_args(argv))
    stored = _read_config(given.pop("config", None), kinds)
    return options(**{**stored, **given})


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _add(parser: argparse.ArgumentParser, field: dataclasses.Field, kind: Any) -> None:
    """One flag; what is not given leaves no trace, so that the file and the data class can fill it."""
    details = dict(field.metadata)
    known = field.default not in (None, dataclasses.MISSING, False)
    text = f"{details.pop('help')} (default: {field.default})" if known else details.pop("help")
    common = {"dest": field.name, "default": argparse.SUPPRESS, "help": text.replace("%", "%%"), **details}
    if kind is bool:
        parser.add_argument(_flag(field.name), action=argparse.BooleanOptionalAction, **common)
    elif typing.get_origin(kind) is list:
        parser.add_argument(_flag(field.name), nargs="+", type=str, **common)
    elif typing.get_origin(kind) is Literal:
        parser.add_argument(_flag(field.name), choices=typing.get_args(kind), **common)
    else:
        parser.add_argument(_flag(field.name), type=_plain(kind), **common)


def _plain(kind: Any) -> type:
    """`int` of ``int | None``."""
    if isinstance(kind, types.UnionType):
        return next(part for part in typing.get_args(kind) if part is not type(None))
    return kind


def _read_config(path: str | None, kinds: dict[str, Any]) -> dict[str, Any]:
    if path is None:
        return {}
    import yaml

    try:
        with open(path, encoding="utf-8") as file:
            stored = yaml.safe_load(file) or {}
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"cannot be read ({error})", where=path, remedy="give a YAML file of settings") from error
    if not isinstance(stored, dict):
        raise InputError("is not a mapping of settings", where=path, remedy="write lines like `k: 4`")
    settings = {str(name).replace("-", "_"): value for name, value in stored.items()}
    for name, value in settings.items():
        if name not in kinds:
            raise InputError(f"no setting {name!r}", where=path, remedy=f"one of {', '.join(kinds)}")
        settings[name] = _checked(value, kinds[name], f"{path}: {name}")
    return settings


def _checked(value: Any, kind: Any, where: str) -> Any:
    """A value of a file, if it is of the setting's kind."""
    if typing.get_origin(kind) is list:
        fits = isinstance(value, list) and all(isinstance(item, str) for item in value)
    elif typing.get_origin(kind) is Literal:
        fits = value in typing.get_args(kind)
    elif value is None:
        fits = isinstance(kind, types.UnionType)
    elif _plain(kind) is float:
        fits = isinstance(value, int | float) and not isinstance(value, bool)
    else:
        fits = type(value) is _plain(kind)
    if not fits:
        raise InputError(f"{value!r} does not fit", where=where, remedy=f"it is {kind}")
    return value

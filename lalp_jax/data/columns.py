"""What columns are called in the wild, and which of a source's columns holds which field."""

import dataclasses
import functools
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from lalp_jax.data.containers import Row
from lalp_jax.data.values import clean, is_conversation, is_id, is_truth
from lalp_jax.errors import InputError


def _each(names: str) -> tuple[tuple[str, ...], ...]:
    """One tier per name: an order of preference, never an ambiguity."""
    return tuple((name,) for name in names.split())


_CONVERSATIONS = ("messages", "conversations", "conversation")
_RESPONSES = (
    "response", "output", "completion", "generation", "generated_solution", "teacher_output", "predict",
    "attempt",
)  # fmt: skip

# For each field the columns that may hold it, in tiers: the first tier with a column decides, and two columns
# of a tier that differ are an ambiguity. `solution` and `answer` are gold in some data sets and the response
# in others (LIMO, GSM8K): they are the response only where nothing better is there.
COLUMNS: Mapping[str, tuple[tuple[str, ...], ...]] = {
    "id": _each("prompt_id problem_id question_id uuid unique_id custom_id id"),
    "prompt": (
        ("prompt", "problem", "question", "instruction", "query"),
        ("input",),
        _CONVERSATIONS,
        ("body",),
    ),
    "response": (
        ("generations", "responses", "generated_responses", "completions", "distilled_answers"),
        _RESPONSES,
        _CONVERSATIONS,
        ("solution", "answer"),
    ),
    "thinking": _each(
        "reasoning_content thinking think_content thinking_trajectory thinking_trajectories think reasoning"
    ),
    "answer": _each("expected_answer gold_answer ground_truth reference_answer answer label solution output"),
    "correct": _each("is_correct correct correctness correctness_math_verify symbolic_correct"),
    "teacher": _each("teacher model model_name model_names generator generation_model"),
    "steps": _each("steps sentence_groups"),
    "system": _each("system system_prompt"),
}
FIELDS = tuple(COLUMNS)

# One column for each teacher: the teacher's name, followed by one of these.
_WIDE: Mapping[str, tuple[str, ...]] = {
    "response": ("_attempt", "_response"),
    "thinking": ("_thinking_trajectory", "_thinking", "_reasoning"),
    "correct": ("_is_correct", "_correct"),
}


def _is_prompt(value: Any) -> bool:
    return (
        isinstance(value, str) or is_conversation(value) or (isinstance(value, dict) and "messages" in value)
    )


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_thinking(value: Any) -> bool:
    # `reasoning` may be a switch (Nemotron) instead of a text.
    return isinstance(value, str) and value not in ("on", "off")


def _or_list_of(fits: Callable[[Any], bool], value: Any) -> bool:
    return all(item is None or fits(item) for item in value) if isinstance(value, list) else fits(value)


# A column that does not hold what the field needs is another thing of that name: `correct: "B"`, `steps: 5`.
_FITS: Mapping[str, Callable[[Any], bool]] = {
    "id": is_id,
    "prompt": _is_prompt,
    "response": lambda value: isinstance(value, str | list | dict),
    "thinking": functools.partial(_or_list_of, _is_thinking),
    "answer": lambda value: not isinstance(value, bool),
    "correct": functools.partial(_or_list_of, is_truth),
    "teacher": functools.partial(_or_list_of, _is_text),
    "steps": lambda value: isinstance(value, list),
    "system": _is_text,
}


def mostly(fits: Callable[[Any], bool], values: Sequence[Any]) -> bool:
    """Whether more than half fit: a few bad rows must not hide what a column is."""
    return 2 * sum(map(fits, values)) > len(values)


@dataclasses.dataclass(frozen=True)
class Columns:
    """The columns of a source's first rows.

    Attributes:
      files: the file of each row.
      rows: the rows.
      chosen: the user's word, field to column; an empty column means that the field is not to be read.
    """

    files: Sequence[str]
    rows: Sequence[Mapping[str, Any]]
    chosen: Mapping[str, str]

    @classmethod
    def of(cls, rows: Sequence[Row], column_map: Mapping[str, str]) -> "Columns":
        """The columns of some rows; of `column_map` only what these rows have is kept."""
        fields = [row.fields for row in rows]
        chosen = {k: v for k, v in column_map.items() if not v or any(v in row for row in fields)}
        return cls([row.file for row in rows], fields, chosen)

    @property
    def where(self) -> str | None:
        """The first file, for messages."""
        return next(iter(self.files), None)

    @functools.cached_property
    def names(self) -> list[str]:
        """All column names, in order of appearance."""
        return list(dict.fromkeys(name for row in self.rows for name in row))

    def values(self, name: str) -> list[Any]:
        """The values of a column that are not missing."""
        return [value for row in self.rows if (value := clean(row.get(name))) is not None]

    def pick(self, field: str, taken: Collection[str | None] = ()) -> str | None:
        """The column of a field: the user's, else the first that is known to hold it and does.

        Raises:
          InputError: several columns can hold it, and differ.
        """
        if field in self.chosen:
            return self.chosen[field] or None
        for tier in COLUMNS[field]:
            found = [name for name in tier if name not in taken and self._fits(name, field)]
            if any(row.get(name) != row.get(found[0]) for name in found[1:] for row in self.rows):
                raise self.ambiguous(field, found)
            if found:
                return found[0]
        return None

    def wide(self) -> dict[str, dict[str, str]]:
        """Where two teachers or more have columns of their own: teacher, then field, to column."""
        teachers: dict[str, dict[str, str]] = {}
        for name in self.names:
            suffix = next((s for s in _WIDE["response"] if name.endswith(s) and name != s), None)
            if suffix and mostly(_is_text, self.values(name)):
                teachers[name.removesuffix(suffix)] = {"response": name}
        for teacher, own in teachers.items():
            for field in ("thinking", "correct"):
                names = (teacher + suffix for suffix in _WIDE[field])
                if column := next((name for name in names if self._fits(name, field)), None):
                    own[field] = column
        return teachers if len(teachers) > 1 else {}

    def ambiguous(self, field: str, found: Sequence[str]) -> InputError:
        """Several columns can be `field`."""
        ways = " or ".join(f"--map {field}={name}" for name in found)
        return InputError(
            f"several columns can be the {field}: {', '.join(found)}", where=self.where, remedy=ways
        )

    def missing(self, field: str) -> InputError:
        """No column can be `field`."""
        what = f"no column is known to hold the {field}; the columns are: {', '.join(self.names)}"
        return InputError(what, where=self.where, remedy=f"name it: --map {field}=COLUMN")

    def _fits(self, name: str, field: str) -> bool:
        values = self.values(name)
        # A response may be missing in all of the first rows, and its column is still the response.
        return mostly(_FITS[field], values) or (field == "response" and name in self.names and not values)

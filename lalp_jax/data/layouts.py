"""How a source lays out its prompts and answers: recognised from its first rows, then applied to each row."""

import contextlib
import dataclasses
import re
import reprlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lalp_jax.data import values
from lalp_jax.data.columns import COLUMNS, FIELDS, Columns, mostly
from lalp_jax.data.containers import Malformed
from lalp_jax.data.records import Turn
from lalp_jax.data.sources import stem

Fields = Mapping[str, Any]

# In an object of a list of answers, these hold its text too.
_ELEMENT_RESPONSE = (*COLUMNS["response"][1], "content", "value", "text", "answer", "solution")
_WIDE, _PLAIN = (
    "columns per teacher",
    "one answer per row",
)  # the shape without a response column; the usual one
# Fields of a row, and those that each of its answers may have for itself.
_ROW_FIELDS = ("id", "answer", "system")
_ANSWER_FIELDS = ("thinking", "correct", "teacher", "steps")
# Files that hold one run or one shard of a teacher's answers.
_RUN_FILE = re.compile(r"output-rs\d+|output|generated_predictions|.*-\d{5}-of-\d{5}")


@dataclasses.dataclass(frozen=True, slots=True)
class Question:
    """The prompt of a row. `turns` is empty where another row with the same id holds them."""

    id: str | None
    turns: tuple[Turn, ...]
    gold: str | None


@dataclasses.dataclass(frozen=True, slots=True)
class Answer:
    """One answer of a row. `teacher` is None where the file names the teacher."""

    teacher: str | None
    response: str
    correct: bool | None
    steps: tuple[str, ...] | None


@dataclasses.dataclass(frozen=True)
class Layout:
    """How the rows of one source are read.

    Attributes:
      shape: how a row holds its answers: a key of `_SHAPES`, or `_WIDE`.
      columns: the column of each field that was found.
      inner: where an answer is an object or a message, the key of each field in it.
      wide: where each teacher has columns of its own, the column of each field of each teacher.
      dropped: fields that the user wants not to be read.
      by_folder: whether the folder names a nameless teacher, and not the file.
    """

    source: str
    shape: str
    columns: Mapping[str, str]
    inner: Mapping[str, str]
    wide: Mapping[str, Mapping[str, str]]
    dropped: frozenset[str]
    by_folder: bool

    def question(self, fields: Fields, system: str | None = None) -> Question:
        """The prompt of a row, opened by its own system message, else by `system`. Raises: Malformed."""
        key, gold = values.as_id(self._value(fields, "id")), values.as_gold(self._value(fields, "answer"))
        if (value := self._value(fields, "prompt")) is None and key is not None:
            return Question(key, (), gold)
        turns = self._with_system(self._turns(value, fields), fields, system)
        if not any(turn.role == "user" and turn.content.strip() for turn in turns):
            raise Malformed("empty prompt", f"column {self.columns.get('prompt')} holds no user message")
        return Question(key, turns, gold)

    def answers(self, fields: Fields) -> list[dict[str, Any]]:
        """The answers of a row, for `answer` to read; none only if it is a request. Raises: Malformed."""
        if self.wide:
            rows = self.wide.items()
            return [
                {"teacher": name} | {f: fields.get(column) for f, column in own.items()} for name, own in rows
            ]
        value = self._value(fields, "response")
        if value is None and fields.get("body") is not None and self.columns.get("prompt") == "body":
            return []
        parts = _SHAPES[self.shape].elements(value)
        if self.inner:
            if not all(isinstance(part, dict) for part in parts):
                raise Malformed("not an object", f"an answer in column {self.columns['response']}")
            parts = [{field: part.get(key) for field, key in self.inner.items()} for part in parts]
        else:
            parts = [{"response": part} for part in parts]
        return [self._shared(fields, index, len(parts)) | part for index, part in enumerate(parts)] or [{}]

    def answer(self, part: Fields) -> Answer:
        """Reads one of `answers`; an absent or blank response becomes "". Raises: Malformed."""
        part = {field: values.clean(value) for field, value in part.items()}
        response = values.as_text(part.get("response"), "response")
        thinking = values.as_text(part.get("thinking"), "thinking")
        if thinking.strip() and "</think>" not in response:
            response = f"<think>\n{thinking}\n</think>\n\n{response}"
        if not response.strip():
            return Answer(None, "", None, None)
        teacher = part.get("teacher")
        if "teacher" in part and not (isinstance(teacher, str) and teacher.strip()):
            raise Malformed("no teacher", f"its column holds {reprlib.repr(teacher)}")
        correct, steps = values.as_truth(part.get("correct")), values.as_steps(part.get("steps"), response)
        return Answer(teacher, response, correct, steps)

    def teacher_path(self, part: str) -> str:
        """What names a teacher whom neither user nor rows name: the file, or its folder."""
        folder = part.rpartition("/")[0]
        return folder if folder and self.by_folder else part

    def describe(self) -> str:
        """One line: the source, the shape of its rows, and which column is read as what."""
        found = {field: label for field in FIELDS if (label := self._label(field))}
        found.setdefault("teacher", "NAME=, else the name of the " + ("folder" if self.by_folder else "file"))
        return f"{self.source}: {self.shape}; " + ", ".join(f"{k} ← {v}" for k, v in found.items())

    def _label(self, field: str) -> str | None:
        if self.wide and field in ("response", "thinking", "correct"):
            return " | ".join(own[field] for own in self.wide.values() if field in own) or None
        if self.wide and field == "teacher":
            return " | ".join(self.wide)
        if field in self.inner:
            return f"{self.columns['response']}{_SHAPES[self.shape].path}.{self.inner[field]}"
        column = self.columns.get(field)
        return "instruction + input" if field == "prompt" and "input" in self.columns else column

    def _value(self, fields: Fields, field: str) -> Any:
        return values.clean(fields.get(self.columns[field])) if field in self.columns else None

    def _shared(self, fields: Fields, index: int, count: int) -> dict[str, Any]:
        """What the row says of its answer number `index`: parallel lists are taken apart."""
        part: dict[str, Any] = {}
        for field in _ANSWER_FIELDS:
            if field not in self.columns:
                continue
            value = self._value(fields, field)
            if _SHAPES[self.shape].many and isinstance(value, list):
                if len(value) != count:
                    lengths = f"{self.columns['response']}: {count}, {self.columns[field]}: {len(value)}"
                    raise Malformed("parallel lists differ in length", lengths)
                value = value[index]
            part[field] = value
        return part

    def _turns(self, value: Any, fields: Fields) -> tuple[Turn, ...]:
        """The conversation before the answer."""
        if isinstance(value, str):
            more = values.as_text(self._value(fields, "input"), "input")
            return (Turn("user", f"{value}\n{more}" if more else value),)
        turns = tuple(values.as_turn(message) for message in values.as_messages(value))
        return turns[:-1] if turns and turns[-1].role == "assistant" else turns

    def _with_system(self, turns: tuple[Turn, ...], fields: Fields, system: str | None) -> tuple[Turn, ...]:
        if "system" in self.dropped:
            turns = tuple(turn for turn in turns if turn.role != "system")
        if turns and turns[0].role == "system":
            return turns
        own = values.as_text(self._value(fields, "system"), "system") or system
        return (Turn("system", own), *turns) if own else turns


def recognise(source: str, columns: Columns) -> Layout:
    """Decides from the first rows of a source how all of them are read.

    Raises:
      InputError: no column can be the response, or several can.
    """
    response, wide = _response(columns)
    samples = [value for value in columns.values(response) if value] if response else []
    shape = next((name for name, shape in _SHAPES.items() if mostly(shape.fits, samples)), _PLAIN)
    shape = _WIDE if wide else shape
    found = {"response": response, "prompt": _prompt(columns, response, shape, samples)}
    for field in _ROW_FIELDS if wide else _ROW_FIELDS + _ANSWER_FIELDS:
        found[field] = columns.pick(field, tuple(found.values()))
    if found["prompt"] == "instruction" and "input" in columns.names:
        found["input"] = "input"
    return Layout(
        source=source,
        shape=shape,
        columns={field: column for field, column in found.items() if column is not None},
        inner={} if wide else _inner(columns, shape, samples),
        wide=wide,
        dropped=frozenset(field for field, column in columns.chosen.items() if not column),
        by_folder=_by_folder(columns.files, shape),
    )


def _by_folder(files: Sequence[str], shape: str) -> bool:
    """Whether files are parts of one teacher's answers (runs, shards, single prompts), or all named alike."""
    counts, stems = Counter(files), {stem(file) for file in files}
    alone = len(counts) > 1 and set(counts.values()) == {1}
    single = alone and (shape == "list of objects" or all(file.endswith(".json") for file in counts))
    alike = len(counts) > 1 and len(stems) == 1
    return single or alike or all(_RUN_FILE.fullmatch(name) for name in stems)


def _response(columns: Columns) -> tuple[str | None, dict[str, dict[str, str]]]:
    """The response column, or the columns of each teacher."""
    response, wide = columns.pick("response"), columns.wide()
    if columns.chosen.get("response"):
        return response, {}
    if wide and response is not None and any(response in tier for tier in COLUMNS["response"][:2]):
        raise columns.ambiguous("response", [response, *(own["response"] for own in wide.values())])
    if response is None and not wide:
        raise columns.missing("response")
    return (None, wide) if wide else (response, {})


def _inner(columns: Columns, shape: str, samples: list[Any]) -> dict[str, str]:
    """Where answers are objects or messages: the key of each field in them."""
    if not _SHAPES[shape].keyed:
        return {}
    items: list[Any] = []
    for value in samples:
        with contextlib.suppress(Malformed):  # met again, and reported, when its row is read
            items += _SHAPES[shape].elements(value)
    unread = {field: "" for field, column in columns.chosen.items() if not column}
    keys = Columns(columns.files, [item for item in items if isinstance(item, dict)], unread)
    text = next((name for name in _ELEMENT_RESPONSE if name in keys.names), None)
    if text is None:
        raise keys.missing("response")
    found = {field: keys.pick(field, (text,)) for field in _ANSWER_FIELDS}
    return {"response": text} | {field: key for field, key in found.items() if key is not None}


def _prompt(columns: Columns, response: str | None, shape: str, samples: list[Any]) -> str | None:
    """The prompt column: that of the response, where it is a whole conversation."""
    conversations = filter(values.is_conversation, samples if shape == "conversation" else ())
    roles = {values.role_of(message) for conversation in conversations for message in conversation}
    if "prompt" not in columns.chosen and "user" in roles:
        return response
    return columns.pick("prompt", (response,))


def _last_message(value: Any) -> list[Any]:
    last = values.as_messages(value)[-1]
    if values.as_turn(last).role != "assistant":
        raise Malformed("conversation does not end with an answer")
    return [last]


def _choices(value: Any) -> list[Any]:
    """The messages of an API response (OpenAI's, and vLLM's after it), each with the model's name."""
    body = value.get("body", value) if isinstance(value, dict) else None
    choices = body.get("choices") if isinstance(body, dict) else None
    if not isinstance(body, dict) or not _is_list_of_objects(choices) or choices is None:
        return []  # a failed request
    messages = (choice.get("message", choice) for choice in choices)
    return [{"model": body.get("model")} | (item if isinstance(item, dict) else {}) for item in messages]


@dataclasses.dataclass(frozen=True)
class _Shape:
    """How a response column holds answers.

    Attributes:
      fits: whether a value that is not empty is of this shape.
      elements: the answers in one value.
      many: whether there may be several, so that lists in other columns run in parallel.
      keyed: whether an answer is an object with keys of its own.
      path: how to an answer from the column, for messages.
    """

    fits: Callable[[Any], bool]
    elements: Callable[[Any], list[Any]]
    many: bool = False
    keyed: bool = False
    path: str = ""


def _list(value: Any) -> list[Any]:
    if value is not None and not isinstance(value, list):
        raise Malformed("not a list of answers", f"a {type(value).__name__}")
    return value or []


def _is_list_of_objects(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, dict) for item in value)


# The first that fits most values is taken, else `_PLAIN`.
_SHAPES: Mapping[str, _Shape] = {
    "conversation": _Shape(values.is_conversation, _last_message, keyed=True, path="[last]"),
    "list of objects": _Shape(_is_list_of_objects, _list, many=True, keyed=True, path="[]"),
    "list of answers": _Shape(lambda value: isinstance(value, list), _list, many=True, path="[]"),
    "API batch": _Shape(
        lambda value: isinstance(value, dict), _choices, many=True, keyed=True, path=".body.choices[].message"
    ),
    _PLAIN: _Shape(lambda value: isinstance(value, str), lambda value: [value]),
}

"""What one stored value can be, and how it is read: text, id, truth, gold answer, conversation, steps."""

import json
import math
import reprlib
from collections.abc import Mapping
from typing import Any

from lalp_jax.data.containers import Malformed
from lalp_jax.data.records import Role, Turn

_ROLES: dict[str, Role] = {
    "system": "system", "developer": "system", "user": "user", "human": "user",
    "assistant": "assistant", "gpt": "assistant", "model": "assistant", "chatgpt": "assistant",
}  # fmt: skip
_MISSING = frozenset({"", "n/a"})


def clean(value: Any) -> Any:
    """A stored value with NaN as None, and a struct of lists as the list of structs that it stands for."""
    if isinstance(value, float) and math.isnan(value):
        return None
    if not (isinstance(value, dict) and value and all(isinstance(item, list) for item in value.values())):
        return value
    lengths = {len(item) for item in value.values()}
    rows = zip(*value.values(), strict=True) if len(lengths) == 1 else None
    return value if rows is None else [dict(zip(value, row, strict=True)) for row in rows]


def is_id(value: Any) -> bool:
    """Text or a whole number, which a table with missing values stores as a float."""
    whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    return (whole and not isinstance(value, bool)) or (isinstance(value, str) and bool(value.strip()))


def is_truth(value: Any) -> bool:
    """True, False, 0 or 1."""
    return isinstance(value, bool | int | float) and value in (0, 1)


def is_conversation(value: Any) -> bool:
    """A list of messages, in the form of OpenAI (role, content) or of ShareGPT (from, value)."""
    if not isinstance(value, list) or not value:
        return False
    return all(isinstance(item, dict) and ("role" in item or "from" in item) for item in value)


def as_id(value: Any) -> str | None:
    """The id as text; None for what is none."""
    if not is_id(value):
        return None
    return str(int(value) if isinstance(value, float) else value)


def as_text(value: Any, field: str) -> str:
    """A text, a list that holds a single one, or the text parts of a message; "" for what is missing."""
    if value is None:
        return ""
    if isinstance(value, list) and all(isinstance(x, dict) and x.get("type") == "text" for x in value):
        value = "".join(str(item.get("text", "")) for item in value)
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if not isinstance(value, str):
        raise Malformed(f"{field} is not text", f"a {type(value).__name__}")
    return value


def as_messages(value: Any) -> list[dict[str, Any]]:
    """The messages of a conversation, or of a chat request."""
    messages = clean(value.get("messages")) if isinstance(value, dict) else value
    if not isinstance(messages, list) or not is_conversation(messages):
        raise Malformed("not a conversation", reprlib.repr(value))
    return messages


def role_of(message: Mapping[str, Any]) -> Role | None:
    """Who speaks, in any of the known spellings."""
    return _ROLES.get(str(message.get("role", message.get("from"))).lower())


def as_turn(message: Mapping[str, Any]) -> Turn:
    """One message. Its thinking is left out: templates drop that of earlier turns."""
    if (role := role_of(message)) is None:
        raise Malformed("unknown role", reprlib.repr(message.get("role", message.get("from"))))
    return Turn(role, as_text(message.get("content", message.get("value")), "message"))


def as_gold(value: Any) -> str | None:
    """The gold answer as text: a number without a needless ``.0``, a list of one as its element."""
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if value is None or (isinstance(value, str) and value.strip().lower() in _MISSING):
        return None
    return value.strip() if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def as_truth(value: Any) -> bool | None:
    """True or False, from 0 and 1 too; None for what is missing."""
    if value is not None and not is_truth(value):
        raise Malformed("correct is neither true nor false", reprlib.repr(value))
    return None if value is None else bool(value)


def as_steps(value: Any, response: str) -> tuple[str, ...] | None:
    """Given steps, or groups of sentences: put together they must be the response, to the character."""
    if value is None:
        return None
    groups = (
        [[item] if isinstance(item, str) else item for item in value] if isinstance(value, list) else [value]
    )
    if not all(isinstance(group, list) and all(isinstance(item, str) for item in group) for group in groups):
        raise Malformed("steps are not a list of texts, or of lists of texts", reprlib.repr(value))
    steps = tuple("".join(group) for group in groups)
    if (text := "".join(steps)) != response:
        pairs = enumerate(zip(text, response, strict=False))
        at = next((i for i, (a, b) in pairs if a != b), min(len(text), len(response)))
        parting = f"from character {at}: steps {text[at : at + 30]!r}, response {response[at : at + 30]!r}"
        raise Malformed("steps do not tile the response", parting)
    return steps

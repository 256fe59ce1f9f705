"""The task: chains of arithmetic in words, each with one exact answer.

Ann has seven apples. She buys five more, gives away three, and then doubles what she has. How many …?
"""

import dataclasses
import hashlib
import random
from collections.abc import Iterator
from typing import Literal

Kind = Literal["add", "subtract", "multiply", "divide"]
Split = Literal["train", "pool", "heldout"]

LIMIT = 60  # no number on the way exceeds it, so that a tiny student sees every sum often enough
OPERANDS = (2, 12)  # what is added or taken, both ends included
MIN_OPERATIONS, MAX_OPERATIONS = 3, 8
# Of ten chains eight train the student from scratch, one goes to the teachers, one measures the student.
_SPLITS: tuple[Split, ...] = ("heldout", "pool", *("train",) * 8)

_UNITS = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
)  # fmt: skip
_TENS = ("", "", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")

_PEOPLE = (
    ("Ann", "she"), ("Ben", "he"), ("Clara", "she"), ("David", "he"), ("Emma", "she"), ("Frank", "he"),
    ("Grace", "she"), ("Hugo", "he"), ("Iris", "she"), ("Jack", "he"), ("Kate", "she"), ("Leo", "he"),
)  # fmt: skip
_THINGS = ("apples", "pears", "coins", "cards", "books", "shells", "stamps", "pencils", "marbles", "stones")
_OPENINGS = (
    "{name} has {n} {things}.",
    "{name} starts with {n} {things}.",
    "At first {name} has {n} {things}.",
    "In the morning {name} counts {n} {things}.",
)
_CHANGES: dict[tuple[Kind, int], tuple[str, ...]] = {
    ("add", 0): ("buys {n} more", "finds {n} more", "gets {n} from a friend", "wins {n}", "picks up {n}"),
    ("subtract", 0): ("gives away {n}", "loses {n}", "sells {n}", "drops {n}", "hands {n} to a friend"),
    ("multiply", 2): ("doubles what {she} has", "ends up with twice as many"),
    ("multiply", 3): ("triples what {she} has", "ends up with three times as many"),
    ("divide", 2): ("gives half of them to a friend", "keeps only half of them"),
    ("divide", 3): ("keeps only a third of them", "is left with one third of them"),
}
_ENDINGS = (
    "How many {things} does {name} have now?",
    "How many {things} does {name} have in the end?",
    "How many {things} are left?",
    "What is the number of {things} now?",
)


@dataclasses.dataclass(frozen=True, slots=True)
class Operation:
    """One change of the running number; `number` is the operand."""

    kind: Kind
    number: int

    def apply(self, value: int) -> int:
        """The number after the change; division rounds down, though in a problem it is always exact."""
        match self.kind:
            case "add":
                return value + self.number
            case "subtract":
                return value - self.number
            case "multiply":
                return value * self.number
            case "divide":
                return value // self.number


@dataclasses.dataclass(frozen=True, slots=True)
class Problem:
    """A question in words, and the chain that it tells of.

    Attributes:
      id: a hash of start and operations; problems that differ in wording alone share it.
      name, pronoun, things: who owns what; the pronoun is "she" or "he", the things are in the plural.
      results: the number after each operation; the last is the answer.
    """

    id: str
    name: str
    pronoun: str
    things: str
    start: int
    operations: tuple[Operation, ...]
    results: tuple[int, ...]
    question: str

    @property
    def answer(self) -> int:
        """The exact answer."""
        return self.results[-1]

    @property
    def split(self) -> Split:
        """Decided by the chain alone, so that no rewording of a held-out chain is ever trained on."""
        return _SPLITS[int(self.id, 16) % len(_SPLITS)]


def words(number: int) -> str:
    """0 … 99 in English words: ``words(23) == "twenty-three"``."""
    if number < 20:
        return _UNITS[number]
    tens, unit = divmod(number, 10)
    return f"{_TENS[tens]}-{_UNITS[unit]}" if unit else _TENS[tens]


def problem(rng: random.Random) -> Problem:
    """Draws one problem, of any split."""
    start = rng.randint(3, 30)
    operations, results = _chain(rng, start)
    name, pronoun = rng.choice(_PEOPLE)
    things = rng.choice(_THINGS)
    question = " ".join(
        (
            rng.choice(_OPENINGS).format(name=name, n=words(start), things=things),
            *_sentences(rng, pronoun, operations),
            rng.choice(_ENDINGS).format(name=name, things=things),
        )
    )
    chain = f"{start}:" + ",".join(f"{operation.kind}{operation.number}" for operation in operations)
    identity = hashlib.sha256(chain.encode()).hexdigest()[:16]
    return Problem(identity, name, pronoun, things, start, operations, results, question)


def problems(split: Split, seed: int) -> Iterator[Problem]:
    """An endless stream of problems of one split, no chain twice; the same for the same seed."""
    rng = random.Random(f"{split}:{seed}")
    seen: set[str] = set()
    while True:
        drawn = problem(rng)
        if drawn.split == split and drawn.id not in seen:
            seen.add(drawn.id)
            yield drawn


def _chain(rng: random.Random, start: int) -> tuple[tuple[Operation, ...], tuple[int, ...]]:
    """3 to 8 operations, and the number after each."""
    operations: list[Operation] = []
    results: list[int] = []
    value = start
    for _ in range(rng.randint(MIN_OPERATIONS, MAX_OPERATIONS)):
        operations.append(_operation(rng, value))
        value = operations[-1].apply(value)
        results.append(value)
    return tuple(operations), tuple(results)


def _operation(rng: random.Random, value: int) -> Operation:
    """An operation that keeps the number within 1 … LIMIT and every division exact."""
    choices = []
    if value + OPERANDS[0] <= LIMIT:
        choices += ["add"] * 3
    if value > OPERANDS[0]:
        choices += ["subtract"] * 3
    choices += [f"multiply{n}" for n in (2, 3) if value * n <= LIMIT]
    choices += [f"divide{n}" for n in (2, 3) if value % n == 0]
    match rng.choice(choices):
        case "add":
            return Operation("add", rng.randint(OPERANDS[0], min(OPERANDS[1], LIMIT - value)))
        case "subtract":
            return Operation("subtract", rng.randint(OPERANDS[0], min(OPERANDS[1], value - 1)))
        case "multiply2" | "multiply3" as drawn:
            return Operation("multiply", int(drawn[-1]))
        case drawn:
            return Operation("divide", int(drawn[-1]))


def _sentences(rng: random.Random, pronoun: str, operations: tuple[Operation, ...]) -> list[str]:
    """The operations in words, one to three of them in a sentence."""
    changes = []
    for operation in operations:
        fixed = operation.number if operation.kind in ("multiply", "divide") else 0
        change = rng.choice(_CHANGES[operation.kind, fixed])
        changes.append(change.format(n=words(operation.number), she=pronoun))
    sentences: list[str] = []
    while changes:
        size = rng.randint(1, 3)
        group, changes = changes[:size], changes[size:]
        opening = rng.choice(("", "Then ", "After that ", "Later ")) if sentences else ""
        told = ", ".join(group[:-1]) + ", and then " + group[-1] if len(group) > 1 else group[0]
        subject = f"{opening}{pronoun}"
        sentences.append(f"{subject[0].upper()}{subject[1:]} {told}.")
    return sentences

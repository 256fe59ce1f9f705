"""Six scripted teachers for the mini task. They differ as real ones do, and on purpose:

    terse      one line per operation, the bare equation and no words
    stepwise   one short sentence per operation; always right
    skipper    merges two or three operations into one sentence and shows only where they lead
    restater   repeats the whole problem first, then before each operation tells again where we stand: long
    checker    takes every step twice: computes it, then undoes it to verify; long
    erratic    one short sentence per operation, but four answers in ten contain one slip, which propagates

All but the erratic one are always right. Every answer ends with "The answer is N.".
"""

import random
from collections.abc import Callable

from lalp_jax.mini.task import Operation, Problem, words

SLIP_RATE = 0.4
_SIGNS = {"add": "+", "subtract": "-", "multiply": "*", "divide": "/"}
_INVERSES = {"add": "-", "subtract": "+", "multiply": "/", "divide": "*"}
_SPOKEN = {"add": "plus", "subtract": "minus", "multiply": "times", "divide": "divided by"}


def answer(teacher: str, problem: Problem, seed: int) -> str:
    """What a teacher of TEACHERS answers to a problem; the same for the same arguments."""
    rng = random.Random(f"{teacher}:{seed}:{problem.id}:{problem.question}")
    return TEACHERS[teacher](problem, rng)


def stated_answer(response: str) -> int | None:
    """The N of the last "The answer is N." of a response; None if it has none."""
    _, found, rest = response.rpartition("The answer is ")
    number = rest.partition(".")[0]
    return int(number) if found and number.isascii() and number.isdigit() else None


def _steps(problem: Problem) -> list[tuple[int, Operation, int]]:
    """(number before, operation, number after) of each operation."""
    before = (problem.start, *problem.results[:-1])
    return list(zip(before, problem.operations, problem.results, strict=True))


def _equation(before: int, operation: Operation, after: int) -> str:
    return f"{before} {_SIGNS[operation.kind]} {operation.number} = {after}"


def _terse(problem: Problem, rng: random.Random) -> str:
    lines = [_equation(*step) for step in _steps(problem)]
    return "\n".join([*lines, f"The answer is {problem.answer}."])


def _stepwise(problem: Problem, rng: random.Random) -> str:
    she, things = problem.pronoun, problem.things
    opening = rng.choice(("{name} starts with {n} {things}.", "First there are {n} {things}."))
    sentences = [opening.format(name=problem.name, n=problem.start, things=things)]
    for step in _steps(problem):
        told = rng.choice(("Now {she} has {e}.", "Then {e}.", "So {she} has {e} {things}.", "That is {e}."))
        sentences.append(told.format(she=she, things=things, e=_equation(*step)))
    return " ".join([*sentences, f"The answer is {problem.answer}."])


def _skipper(problem: Problem, rng: random.Random) -> str:
    sentences, value, done = [], problem.start, 0
    while done < len(problem.operations):
        size = min(rng.randint(2, 3), len(problem.operations) - done)
        done += size
        after = problem.results[done - 1]
        told = rng.choice(("From {a} the next {k} lead to {b}.", "Taking {k} at once, {a} becomes {b}."))
        changes = "change" if size == 1 else f"{words(size)} changes"
        sentences.append(told.format(a=value, b=after, k=changes))
        value = after
    return " ".join([*sentences, f"The answer is {problem.answer}."])


def _restater(problem: Problem, rng: random.Random) -> str:
    name, things, total = problem.name, problem.things, words(len(problem.operations))
    sentences = [
        f"Let us read the problem again. {problem.question}",
        f"We are asked for the number of {things}.",
    ]
    for done, (before, operation, after) in enumerate(_steps(problem)):
        result = rng.choice(("This gives {n} {things}.", "So the new number of {things} is {n}."))
        sentences += [
            f"We have made {words(done)} of the {total} changes, and {name} has {before} {things} here.",
            f"The next change is {before} {_SPOKEN[operation.kind]} {operation.number}.",
            result.format(n=after, things=things),
        ]
    sentences.append(f"All {total} changes are made, so {name} has {problem.answer} {things}.")
    return " ".join([*sentences, f"The answer is {problem.answer}."])


def _checker(problem: Problem, rng: random.Random) -> str:
    sentences = [f"I will check every step, starting from {problem.start}."]
    for before, operation, after in _steps(problem):
        check = rng.choice(("Check: {u}, which is right.", "Let me verify: {u}, good.", "Wait, {u}, yes."))
        undone = f"{after} {_INVERSES[operation.kind]} {operation.number} = {before}"
        sentences += [f"{_equation(before, operation, after)}.", check.format(u=undone)]
    return " ".join([*sentences, "Every step is verified.", f"The answer is {problem.answer}."])


def _erratic(problem: Problem, rng: random.Random) -> str:
    slip = rng.randrange(len(problem.operations)) if rng.random() < SLIP_RATE else None
    sentences, value = [f"Okay, {problem.start} {problem.things}."], problem.start
    for number, operation in enumerate(problem.operations):
        after = operation.apply(value)
        if number == slip:
            after += rng.choice((1, 2, 10))  # upwards, so that no later subtraction goes below zero
        told = rng.choice(("{a} {s} {b} makes {c}.", "Next {a} {s} {b} is {c}.", "Now {a} {s} {b}, so {c}."))
        sentences.append(told.format(a=value, s=_SPOKEN[operation.kind], b=operation.number, c=after))
        value = after
    return " ".join([*sentences, f"The answer is {value}."])


TEACHERS: dict[str, Callable[[Problem, random.Random], str]] = {
    "terse": _terse,
    "stepwise": _stepwise,
    "skipper": _skipper,
    "restater": _restater,
    "checker": _checker,
    "erratic": _erratic,
}

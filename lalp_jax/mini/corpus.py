"""What the tiny student is trained on: a fixed mixture that holds no teacher's answer.

    plain   a problem of the train split in the student's own style: "Begin with 7. Add 5 to get 12. …"
    loose   the same problems phrased anew in every sentence, with stray remarks between
    facts   questions without a story: runs of unconnected sums, "What is 7 plus 5, two times nine?"

The loose share and the facts stand in for what a real student read before it was tuned: they bring the words
and the arithmetic signs that answers may use, though no teacher's manner.
"""

import random
from collections.abc import Iterator

from lalp_jax.mini.task import LIMIT, OPERANDS, Operation, Problem, problem, words

_SHARES = {"plain": 0.6, "loose": 0.25, "facts": 0.15}
_PLAIN = {
    "add": "Add {b} to get {c}.",
    "subtract": "Take {b} to get {c}.",
    "multiply": "Multiply by {b} to get {c}.",
    "divide": "Divide by {b} to get {c}.",
}
_SIGNS = {
    "add": ("+", "plus"),
    "subtract": ("-", "minus"),
    "multiply": ("*", "times"),
    "divide": ("/", "divided by"),
}
_LOOSE = (
    "{a} {s} {b} = {c}{end}",
    "{a} {s} {b} is {c}{end}",
    "{lead} {a} {s} {b} {verb} {c}{end}",
    "{lead} {name} has {c} {things}{end}",
    "{lead} {she} has {a} {s} {b} = {c} {things}{end}",
    "{lead} we have {a} {things} and {name} has {c}{end}",
    "{lead} {b} changes {a} to {c}{end}",
    "{c} {things}, {remark}{end}",
)
_LEADS = (
    "Now",
    "Then",
    "Next",
    "So",
    "First",
    "Here",
    "At this point",
    "Again",
    "After this",
    "Okay,",
    "That is",
)
_VERBS = ("makes", "gives", "leads to", "becomes", "is", "equals", "so")
_REMARKS = (
    "which is right", "good", "yes", "let us check", "wait", "let me verify", "this is the next step",
    "we are asked for the number", "all changes are made", "taking one change at once",
    "I read the problem again",
)  # fmt: skip


def text(rng: random.Random) -> tuple[str, str]:
    """Draws one (question, answer) of the mixture."""
    kind = rng.choices(list(_SHARES), list(_SHARES.values()))[0]
    if kind == "facts":
        return _facts(rng)
    drawn = problem(rng)
    while drawn.split != "train":
        drawn = problem(rng)
    return drawn.question, plain(drawn) if kind == "plain" else _loose(drawn, rng)


def texts(seed: int) -> Iterator[tuple[str, str]]:
    """An endless stream of the mixture; the same for the same seed."""
    rng = random.Random(f"corpus:{seed}")
    while True:
        yield text(rng)


def plain(solved: Problem) -> str:
    """The student's own style: one short sentence per operation that names only what it leads to."""
    sentences = [f"Begin with {solved.start}."]
    for operation, after in zip(solved.operations, solved.results, strict=True):
        sentences.append(_PLAIN[operation.kind].format(b=operation.number, c=after))
    return " ".join([*sentences, f"The answer is {solved.answer}."])


def _loose(solved: Problem, rng: random.Random) -> str:
    sentences, before = [], solved.start
    for operation, after in zip(solved.operations, solved.results, strict=True):
        told = rng.choice(_LOOSE).format(
            a=before, b=operation.number, c=after,
            name=solved.name, she=solved.pronoun, things=solved.things, s=rng.choice(_SIGNS[operation.kind]),
            lead=rng.choice(_LEADS), verb=rng.choice(_VERBS), remark=rng.choice(_REMARKS),
            end=rng.choice((".", ".", ",", "")),
        )  # fmt: skip
        sentences.append(told)
        if rng.random() < 0.3:
            remark = rng.choice(_REMARKS)
            sentences.append(f"{remark[0].upper()}{remark[1:]}{rng.choice('.:,')}")
        before = after
    return rng.choice((" ", " ", "\n")).join([*sentences, f"The answer is {solved.answer}."])


def _facts(rng: random.Random) -> tuple[str, str]:
    """Four to ten unconnected sums, asked in words or digits and answered one by one."""
    asked, told = [], []
    for _ in range(rng.randint(4, 10)):
        before, operation = _sum(rng)
        sign = rng.choice(_SIGNS[operation.kind])
        if rng.random() < 0.5:
            asked.append(f"{words(before)} {sign} {words(operation.number)}")
        else:
            asked.append(f"{before} {sign} {operation.number}")
        told.append(f"{before} {sign} {operation.number} {rng.choice(('=', 'is'))} {operation.apply(before)}")
    return f"What is {', '.join(asked)}?", rng.choice((". ", ", ", "\n")).join(told) + "."


def _sum(rng: random.Random) -> tuple[int, Operation]:
    """A number and an operation on it, result within 0 … LIMIT, divisions exact."""
    number, other = rng.randint(0, LIMIT), rng.randint(*OPERANDS)
    match rng.choice(("add", "subtract", "multiply", "divide")):
        case "add":
            return min(number, LIMIT - other), Operation("add", other)
        case "subtract":
            return max(number, other), Operation("subtract", other)
        case "multiply":
            return number // 3, Operation("multiply", rng.choice((2, 3)))
        case _:
            divisor = rng.choice((2, 3))
            return number // divisor * divisor, Operation("divide", divisor)

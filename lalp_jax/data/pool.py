"""All teachers' answers as one pool: prompts matched across sources, every row accounted for."""

import dataclasses
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

from lalp_jax.data import records
from lalp_jax.data.columns import FIELDS, Columns
from lalp_jax.data.containers import BadRows, Malformed, OnBadRow, Row
from lalp_jax.data.layouts import Answer, Layout, Question, recognise
from lalp_jax.data.records import Candidate, Pool, Prompt, Turn
from lalp_jax.data.sources import Source, open_source, stem
from lalp_jax.errors import InputError

EMPTY_RESPONSE = "empty response"
BEYOND_LIMIT = "beyond the limit"


def read_pool(
    sources: Sequence[tuple[str | None, str]] | str,
    *,
    column_map: Mapping[str, str] | None = None,
    on_bad_row: OnBadRow = "error",
    limit: int | None = None,
    system: str | None = None,
) -> Pool:
    """Reads every answer of every teacher.

    Prompts are the same where their ids are, if all sources have ids, else where their normalised texts are.

    Args:
      sources: pairs of a teacher's name (None: the data names the teachers, else the file does) and a source
        (see `open_source`); or one source that holds all teachers.
      column_map: field (a key of `COLUMNS`, such as response) to column, for sources that have it;
        an empty column means that the field is not to be read.
      on_bad_row: whether a malformed row is an error, or counted.
      limit: only the first so many prompts; answers to others are counted.
      system: system message of the prompts that bring none.

    Raises:
      InputError: naming the place and the remedy.
    """
    column_map = column_map or {}
    named = [(None, sources)] if isinstance(sources, str) else list(sources)
    opened = [(name, open_source(source)) for name, source in named]
    heads = [_head(source, on_bad_row, column_map) for _, source in opened]
    _check_map(column_map, heads)
    layouts = [recognise(source.name, head) for (_, source), head in zip(opened, heads, strict=True)]
    by_id = all("id" in layout.columns for layout in layouts)
    has_prompt = ["prompt" in layout.columns for layout in layouts]
    for head, known in zip(heads, has_prompt, strict=True):
        if not known and not (by_id and any(has_prompt)):
            raise head.missing("prompt")
    reading = _Reading(BadRows(on_bad_row), by_id, limit, system)
    for (name, source), layout in zip(opened, layouts, strict=True):
        reading.read(name, source, layout)
    lines = [layout.describe() for layout in layouts]
    lines.append(f"prompts are matched by {'id' if by_id else 'their text (not all sources have an id)'}")
    return reading.pool(tuple(lines))


def _head(source: Source, policy: OnBadRow, column_map: Mapping[str, str]) -> Columns:
    if not (rows := source.sample(policy)):
        raise InputError("every row is malformed", where=source.name, remedy="see why: --on-bad-row error")
    return Columns.of(rows, column_map)


def _check_map(column_map: Mapping[str, str], heads: Sequence[Columns]) -> None:
    names = list(dict.fromkeys(name for head in heads for name in head.names))
    for field, column in column_map.items():
        if field not in FIELDS:
            raise InputError(f"{field!r} is not a field", where="--map", remedy=f"one of {', '.join(FIELDS)}")
        if column and column not in names:
            remedy = f"one of {', '.join(names)}"
            raise InputError(f"no source has the column {column!r}", where=f"--map {field}", remedy=remedy)


@dataclasses.dataclass(frozen=True, slots=True)
class _Entry:
    """An answer whose prompt may be yet to come."""

    key: str
    teacher: str
    response: str
    correct: bool | None
    steps: tuple[str, ...] | None
    where: str

    def candidate(self, prompt: Prompt, repeat: int) -> Candidate:
        """The candidate, as the answer number `repeat` of those alike."""
        identity = records.candidate_id(
            prompt.id, prompt.turns, self.teacher, self.response, self.steps, repeat
        )
        return Candidate(identity, prompt, self.teacher, self.response, self.correct, self.steps, self.where)


@dataclasses.dataclass
class _Reading:
    """What was read so far: answers in input order, prompts and gold answers by key, each with its place."""

    bad: BadRows
    by_id: bool
    limit: int | None
    system: str | None
    entries: list[_Entry] = dataclasses.field(default_factory=list)
    turns: dict[str, tuple[tuple[Turn, ...], str]] = dataclasses.field(default_factory=dict)
    golds: dict[str, tuple[str, str]] = dataclasses.field(default_factory=dict)
    kept: dict[str, None] = dataclasses.field(default_factory=dict)
    covered: dict[str, dict[str, None]] = dataclasses.field(default_factory=lambda: defaultdict(dict))
    paths: dict[str, str] = dataclasses.field(default_factory=dict)
    skipped: Counter[str] = dataclasses.field(default_factory=Counter)

    def read(self, name: str | None, source: Source, layout: Layout) -> None:
        """Takes all rows of a source, which the user may have given to a teacher `name`."""
        named: set[str] = set()
        for row in source.rows(self.bad):
            try:
                question = layout.question(row.fields, self.system)
                parts = layout.answers(row.fields)
                key = self._key(question)
            except Malformed as problem:
                self.bad.add(problem, row.where)
                continue
            self._ask(key, question, row.where)
            for part in parts:
                try:
                    answer = layout.answer(part)
                except Malformed as problem:
                    self.bad.add(problem, row.where)
                    continue
                if name is not None and answer.teacher is not None:
                    named.add(answer.teacher)
                    _check_one_teacher(name, named, row)
                teacher = name or answer.teacher or self._named_by(layout.teacher_path(row.file))
                self._take(key, teacher, answer, row.where)

    def pool(self, mapping: tuple[str, ...]) -> Pool:
        """Everything read, as candidates."""
        self._check_shared()
        prompts = {
            key: Prompt(key, self.turns[key][0], self.golds[key][0] if key in self.golds else None)
            for key in self.kept
            if key in self.turns
        }
        repeats: Counter[_Entry] = Counter()
        candidates = []
        for entry in self.entries:
            if (prompt := prompts.get(entry.key)) is None:
                self.bad.add(
                    Malformed("no prompt", f"no row holds that of the id {entry.key!r}"), entry.where
                )
                continue
            alike = dataclasses.replace(entry, correct=None, where="")
            candidates.append(entry.candidate(prompt, repeats[alike]))
            repeats[alike] += 1
        return Pool(tuple(candidates), self.skipped + self.bad.skipped, mapping)

    def _named_by(self, path: str) -> str:
        """The teacher whom a file or folder names; two that give the same name are not taken for one."""
        teacher = stem(path)
        if (first := self.paths.setdefault(teacher, path)) != path:
            remedy = "name each: --teachers NAME=SOURCE"
            raise InputError(
                f"the teacher's name {teacher!r} is that of {first} too", where=path, remedy=remedy
            )
        return teacher

    def _key(self, question: Question) -> str:
        if not self.by_id:
            return records.prompt_hash(question.turns)
        if question.id is None:
            raise Malformed("no id", "the prompts of all sources are matched by id")
        return question.id

    def _ask(self, key: str, question: Question, where: str) -> None:
        """Takes the prompt of a row: an id stands for one prompt, and a prompt has one gold answer."""
        if question.turns:
            turns, first = self.turns.setdefault(key, (question.turns, where))
            if turns != question.turns and records.prompt_hash(turns) != records.prompt_hash(question.turns):
                raise InputError(
                    f"the id {key!r} has another prompt here than at {first}",
                    where=where,
                    remedy="give each prompt its own id, or match prompts by their text: --map id= "
                    "(where only the system messages differ: --map system=)",
                )
        if question.gold is not None:
            gold, first = self.golds.setdefault(key, (question.gold, where))
            if gold != question.gold:
                raise InputError(
                    f"the gold answer {question.gold[:80]!r} is {gold[:80]!r} at {first}, same prompt",
                    where=where,
                    remedy="mend one of them, name the right column: --map answer=COLUMN, "
                    "or read none: --map answer=",
                )

    def _take(self, key: str, teacher: str, answer: Answer, where: str) -> None:
        """Takes one answer, or counts it as skipped."""
        if not answer.response:
            self.skipped[EMPTY_RESPONSE] += 1
            return
        self.covered[teacher][key] = None
        if key not in self.kept and self.limit is not None and len(self.kept) >= self.limit:
            self.skipped[BEYOND_LIMIT] += 1
            return
        self.kept[key] = None
        self.entries.append(_Entry(key, teacher, answer.response, answer.correct, answer.steps, where))

    def _check_shared(self) -> None:
        """Each of several teachers must share a prompt with another, else prompts were not matched."""
        teachers = Counter(key for keys in self.covered.values() for key in keys)
        for teacher, keys in self.covered.items():
            if len(self.covered) < 2 or any(teachers[key] > 1 for key in keys):
                continue
            counts = "; ".join(f"{t}: {len(k)}, such as {self._example(k)}" for t, k in self.covered.items())
            raise InputError(
                f"teacher {teacher!r} shares no prompt with another teacher (prompts of {counts})",
                remedy="name the column of the id that they share: --map id=COLUMN, "
                "or match prompts by their text: --map id=",
            )

    def _example(self, keys: Mapping[str, None]) -> str:
        key = next(iter(keys))
        return f"id {key!r}" if self.by_id else repr(self.turns[key][0][-1].content[:60])


def _check_one_teacher(name: str, named: set[str], row: Row) -> None:
    if len(named) > 1:
        raise InputError(
            f"the source of teacher {name!r} names several teachers: {', '.join(sorted(named))}",
            where=row.where,
            remedy="give the source without NAME=, or do not read their names: --map teacher=",
        )


@dataclasses.dataclass(frozen=True)
class Coverage:
    """How many prompts each teacher answered.

    Attributes:
      prompts: number of prompts with an answer of the teacher, by teacher, in order of appearance.
      shared: number of prompts that all teachers answered.
      total: number of prompts that any of them answered.
    """

    prompts: dict[str, int]
    shared: int
    total: int

    @classmethod
    def of(cls, pool: Pool) -> "Coverage":
        """Counts the candidates' prompts."""
        answered: dict[str, set[str]] = defaultdict(set)
        for candidate in pool.candidates:
            answered[candidate.teacher].add(candidate.prompt.id)
        sets = list(answered.values())
        shared, total = (set.intersection(*sets), set.union(*sets)) if sets else (set(), set())
        return cls({teacher: len(ids) for teacher, ids in answered.items()}, len(shared), len(total))

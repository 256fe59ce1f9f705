"""`lalp select`: scores what is not scored yet, then picks what the student should learn from."""

import dataclasses
import datetime
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from lalp_jax.commands.options import SelectOptions, parse
from lalp_jax.errors import InputError

if TYPE_CHECKING:
    from lalp_jax.commands.work import Work
    from lalp_jax.data.records import Pool
    from lalp_jax.scoring.results import ScoredAnswer
    from lalp_jax.selection.responses import ScoredCandidate, Selected
    from lalp_jax.selection.teachers import TeacherRanking

ABOUT = (
    "Select, by the student's own scores, the best answer to each prompt or the best teacher. "
    "Without arguments: the embedded example."
)
SHOWN_ANSWERS = 20


def main(argv: Sequence[str] | None = None) -> None:
    """Reads the command line and runs."""
    run(parse(SelectOptions, argv, program="lalp select", about=ABOUT))


def run(options: SelectOptions) -> None:
    """Scores and selects; leaves the files of `score`, `selected.jsonl`, `teachers.json` and `report.html`."""
    from lalp_jax.commands import manifest, preview, tables
    from lalp_jax.commands.work import prepare, score
    from lalp_jax.scoring.signals import signals_of
    from lalp_jax.scoring.store import write_atomically
    from lalp_jax.selection.responses import to_jsonl

    if options.signal not in (names := [signal.name for signal in signals_of(options.signals)]):
        raise InputError(
            f"{options.signal!r} is not computed", where="--signal", remedy=f"one of --signals: {', '.join(names)}"
        )
    work = prepare(options, lambda pool: graded(pool, options) if options.require_correct else pool)
    print(preview.mapping_text(work), preview.example_text(work), preview.plan_text(work), sep="\n")
    if options.dry_run:
        print(preview.cost_text(work))
        return
    answers = score(work)
    rows = tables.scored_candidates(answers)
    # With --require-correct teachers are compared, as answers are, by their correct answers alone.
    eligible = [row for row in rows if row.candidate.correct is True or not options.require_correct]
    if not eligible:
        raise InputError("no answer is correct", where="--require-correct", remedy="check the gold answers")
    ranked = tables.ranking(work, eligible)
    selected = select(eligible, ranked, work, options)
    # Nothing can fail from here on: until now the results of an earlier run are as they were.
    manifest.withdraw(work)
    tables.write_scores(work, answers)
    write_atomically(work.out / "selected.jsonl", to_jsonl(selected, signal=options.signal))
    write_atomically(work.out / "teachers.json", ranked.to_json())
    write_atomically(work.out / "report.html", report(work, answers, rows, selected, ranked).encode())
    manifest.write(work, "select", answers, {"selection": selection_facts(selected, ranked, options)})
    print(tables.closing(work, rows, selected, ranked))


def graded(pool: "Pool", options: SelectOptions) -> "Pool":
    """The pool with `correct` filled in where the input has a gold answer and no verdict of its own.

    Raises:
      InputError: neither a verdict nor a gold answer is known of any answer.
    """
    from lalp_jax.data.grade import grade

    asked = [
        (candidate, candidate.prompt.answer)
        for candidate in pool.candidates
        if candidate.correct is None and candidate.prompt.answer is not None
    ]
    if not asked and all(candidate.correct is None for candidate in pool.candidates):
        raise InputError(
            "the input has neither gold answers nor a column that says which answers are correct",
            where="--require-correct",
            remedy="name the column: --map answer=COLUMN, or --map correct=COLUMN",
        )
    verdicts = grade(
        [(candidate.response, gold) for candidate, gold in asked],
        workers=options.grade_workers,
        timeout_s=options.grade_seconds,
    )
    found = {candidate.id: v.correct for (candidate, _), v in zip(asked, verdicts, strict=True)}
    if reasons := Counter(v.reason for v in verdicts if v.correct is None):
        print("answers that could not be graded:", ", ".join(f"{n} ({why})" for why, n in reasons.items()))
    return dataclasses.replace(
        pool,
        candidates=tuple(dataclasses.replace(c, correct=found.get(c.id, c.correct)) for c in pool.candidates),
    )


def select(
    rows: "Sequence[ScoredCandidate]", ranked: "TeacherRanking", work: "Work", options: SelectOptions
) -> "list[Selected]":
    """The selection that the settings ask for."""
    from lalp_jax.selection.responses import select_responses, select_teacher

    higher = {signal.name: signal.higher_is_better for signal in work.signals}[options.signal]
    if options.by == "prompt":
        return select_responses(
            rows, signal=options.signal, higher_is_better=higher, keep=options.keep,
            require_correct=options.require_correct,
        )  # fmt: skip
    ranking = ranked.by(options.signal)
    if ranking.best is None:
        raise InputError(
            f"no best teacher: {ranking.reason}", where="--by teacher", remedy="give prompts that all teachers answered"
        )
    return select_teacher(
        rows, teacher=ranking.best, signal=options.signal, higher_is_better=higher, keep=options.keep,
        require_correct=options.require_correct,
    )  # fmt: skip


def report(
    work: "Work",
    answers: "Sequence[ScoredAnswer]",
    rows: "Sequence[ScoredCandidate]",
    selected: "Sequence[Selected]",
    ranked: "TeacherRanking",
) -> str:
    """The page `report.html`."""
    from lalp_jax.selection.report import ReportData, ShownAnswer, render_report

    options = work.options
    assert isinstance(options, SelectOptions)
    by_id = {answer.encoded.candidate.id: answer for answer in answers}
    shown = tuple(
        ShownAnswer(item, _tinted(by_id[item.row.candidate.id])) for item in selected[:SHOWN_ANSWERS]
    )
    accounting = work.accounting(list(answers))
    return render_report(
        ReportData(
            student="/".join(work.student_dir.parts[-2:]),
            date=datetime.date.today().isoformat(),
            signal=options.signal,
            rows=tuple(rows),
            selected=tuple(selected),
            ranking=ranked,
            shown=shown,
            settings=(
                ("Context", work.context.name), ("Segmenter", work.segmenter.name), ("Type", options.dtype),
                ("Selected by", options.by), ("Kept", str(options.keep)),
                ("Only correct answers", "yes" if options.require_correct else "no"),
            ),
            accounting=(
                ("rows", accounting["rows"]), ("scored", accounting["scored"]),
                *((f"skipped: {reason}", count) for reason, count in accounting["skipped"].items()),
            ),
        )
    )  # fmt: skip


def _tinted(answer: "ScoredAnswer") -> tuple[tuple[str, float | None], ...]:
    """Steps of an answer with their local log-prob per token, where known."""
    encoded, table = answer.encoded, answer.steps
    means = [float(total) / int(count) for total, count in zip(table.local, table.n_tokens, strict=True)]
    texts = [
        encoded.candidate.response[a:b] for a, b in zip(encoded.char_starts, encoded.char_ends, strict=True)
    ]
    return tuple((text, mean if mean == mean else None) for text, mean in zip(texts, means, strict=True))


def selection_facts(
    selected: "Sequence[Selected]", ranked: "TeacherRanking", options: SelectOptions
) -> dict[str, object]:
    """What the manifest says of the selection."""
    shares = Counter(item.row.candidate.teacher for item in selected)
    return {
        "signal": options.signal,
        "selected": len(selected),
        "by_teacher": dict(sorted(shares.items())),
        "best_teacher": ranked.by(options.signal).best,
        "teachers_compared_on": "correct answers" if options.require_correct else "all scored answers",
    }

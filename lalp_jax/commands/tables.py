"""Results on their way out: the parquet files, and the rows that selection works on."""

from collections.abc import Sequence

from lalp_jax.commands.work import Work
from lalp_jax.scoring.results import ScoredAnswer, scores_table, steps_table
from lalp_jax.scoring.store import write_parquet
from lalp_jax.selection.responses import ScoredCandidate, Selected
from lalp_jax.selection.summary import summary_table
from lalp_jax.selection.teachers import TeacherRanking, rank_teachers


def write_scores(work: Work, answers: Sequence[ScoredAnswer]) -> None:
    """Writes `scores.parquet` and `steps.parquet`."""
    write_parquet(work.out / "scores.parquet", scores_table(answers, work.signals))
    write_parquet(work.out / "steps.parquet", steps_table(answers))


def scored_candidates(answers: Sequence[ScoredAnswer]) -> list[ScoredCandidate]:
    """The answers as selection sees them."""
    return [ScoredCandidate(a.encoded.candidate, len(a.encoded.tokens), a.scores) for a in answers]


def ranking(work: Work, rows: Sequence[ScoredCandidate]) -> TeacherRanking:
    """The teachers by every signal that was computed."""
    return rank_teachers(rows, {signal.name: signal.higher_is_better for signal in work.signals})


def closing(
    work: Work, rows: Sequence[ScoredCandidate], selected: Sequence[Selected], ranked: TeacherRanking
) -> str:
    """The closing table and where the files lie."""
    table = summary_table(ranked, selected, signals=[signal.name for signal in work.signals])
    n_missing = sum(all(value is None for value in row.scores.values()) for row in rows)
    left_out = work.skipped.total() + n_missing
    accounted = f"{len(rows) + work.skipped.total():,} rows = {len(rows) - n_missing:,} scored + {left_out:,} skipped"
    files = sorted(path.name for path in work.out.iterdir() if path.is_file() and not path.name.startswith("."))
    return f"\n{table}\n{accounted}\nresults in {work.out}: {', '.join(files)}"

"""`lalp score`: scores every answer of a pool."""

from collections.abc import Sequence

from lalp_jax.commands.options import ScoreOptions, parse

ABOUT = "Score several teachers' answers with a student. Without arguments: the embedded example."


def main(argv: Sequence[str] | None = None) -> None:
    """Reads the command line and runs."""
    run(parse(ScoreOptions, argv, program="lalp score", about=ABOUT))


def run(options: ScoreOptions) -> None:
    """Scores; leaves `scores.parquet`, `steps.parquet` and `manifest.json` in ``--out``."""
    from lalp_jax.commands import manifest, preview, tables
    from lalp_jax.commands.work import prepare, score

    work = prepare(options)
    print(preview.mapping_text(work), preview.example_text(work), preview.plan_text(work), sep="\n")
    if options.dry_run:
        print(preview.cost_text(work))
        return
    answers = score(work)
    manifest.withdraw(work)
    tables.write_scores(work, answers)
    manifest.write(work, "score", answers, {})
    rows = tables.scored_candidates(answers)
    print(tables.closing(work, rows, [], tables.ranking(work, rows)))

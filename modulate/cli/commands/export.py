"""``modulate export``: write the predictions of runs as one table."""

from pathlib import Path
from typing import Annotated

import typer

from modulate.errors import RecipeError, near_matches


def export(
    folder: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="Folders of evaluated runs.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="File to write.")],
    form: Annotated[
        str | None,
        typer.Option(
            "--format",
            help="jsonl, csv or parquet; by default what the file's name ends in.",
        ),
    ] = None,
    split: Annotated[
        str, typer.Option(help="Split that was evaluated: test, train, val or all.")
    ] = "test",
    condition: Annotated[
        list[str] | None,
        typer.Option(help="Condition to export, such as signal; may be repeated. Default: all."),
    ] = None,
    questions: Annotated[
        bool,
        typer.Option(
            "--questions",
            help="Add the questions, options and answers in words, which needs the runs' data.",
        ),
    ] = False,
) -> None:
    """Write the answers of runs as one table: a row for each run, condition and sample.

    Columns: run, recipe, seed, trained_with and split; id, task, group, condition, answer,
    prediction, correct, logits, active_steps, error, text, answers, token_f1, bleu and rouge_l as
    in predictions.jsonl; with --questions also question, options, right_answer, given_answer, files
    and source.
    """
    from modulate.evaluation.export import FORMATS, export_rows, write_rows
    from modulate.runs.run import Run

    chosen = form or out.suffix.removeprefix(".").lower()
    formats = {name: name for name in FORMATS.values()}
    if chosen not in formats:
        raise RecipeError(
            f"{out}: unknown format {chosen!r}; name one with --format."
            f" {near_matches(chosen, formats)}"
        )
    rows = []
    for path in folder:
        run = Run.open(path)
        samples = run.recipe.data.build("dataset").samples(split) if questions else None
        rows += export_rows(run, split, condition or (), samples)
    write_rows(rows, out, formats[chosen])
    conditions = len({row["condition"] for row in rows})
    typer.echo(f"{out}: {len(rows):,} rows of {len(folder)} runs, {conditions} conditions.")

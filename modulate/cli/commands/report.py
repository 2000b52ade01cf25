"""``modulate report``: tables, tests, figures and samples of finished runs, as one page."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from modulate.cli.arguments import DEFAULT_CACHE, Cache, Trust

if TYPE_CHECKING:
    from modulate.report.html import Html
    from modulate.report.runs import Recorded


def report(
    folder: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN...",
            help=(
                "Folders of evaluated runs. Seeds of one recipe are pooled; companions are found"
                " among them."
            ),
        ),
    ],
    out: Annotated[
        Path, typer.Option(help="Folder to write index.html, report.md and the LaTeX tables to.")
    ] = Path("report"),
    gallery: Annotated[
        int,
        typer.Option(
            min=0,
            help=(
                "Samples to show of the first run trained with its signal; needs its data and host."
                " 0: none."
            ),
        ),
    ] = 6,
    base: Annotated[
        str | None,
        typer.Option(
            help=(
                "Run that ablations start from; by default the one that most others differ from in"
                " one axis."
            )
        ),
    ] = None,
    split: Annotated[
        str, typer.Option(help="Split whose predictions are reported: train, val or test.")
    ] = "test",
    cache: Cache = DEFAULT_CACHE,
    trust: Trust = False,
) -> None:
    """Report on finished runs: accuracies with exact counts, intervals and paired tests, controls,
    ablations, curves, samples.
    """
    from dataclasses import replace

    from modulate.report.page import report_of, write_report
    from modulate.report.runs import read

    runs = [read(path, split) for path in folder]
    found = report_of(runs, base)
    if gallery:
        found = replace(found, gallery=tuple(_gallery(runs, gallery, split, cache, trust)))
    paths = write_report(found, out)
    for own in found.figures:
        for companion, _ in own.companions:
            if companion.missing:
                typer.echo(f"{own.entry.name}: {companion.missing}")
    typer.echo(
        f"{len(runs)} runs, {len(found.figures)} recipes, {len(paths)} files. Page:"
        f" {out / 'index.html'}"
    )


def _gallery(runs: "list[Recorded]", n: int, split: str, cache: Path, trust: bool) -> "list[Html]":
    """Return the gallery of the first run trained with its signal.

    What cannot be shown is an error that says how to do without.
    """
    from modulate.errors import ComponentError, ModulateError, RecipeError
    from modulate.inference.pipeline import Pipeline
    from modulate.report.gallery import gallery
    from modulate.report.pictures import section

    first = next((run for run in runs if run.recipe.training.condition == "signal"), None)
    if first is None:
        raise RecipeError(
            "A gallery needs a run that was trained with its signal, and none was given; add one,"
            " or leave the gallery out with --gallery 0."
        )
    try:
        return section(
            gallery(first, Pipeline(first.recipe, cache, trust_remote_code=trust), n, split)
        )
    except ComponentError:
        raise
    except ModulateError as error:
        raise type(error)(
            f"The gallery of {first.run.folder} cannot be made: {error} The page can do without:"
            " --gallery 0."
        ) from error

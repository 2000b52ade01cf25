"""``modulate report``: write one page on finished runs."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from modulate.cli.arguments import DEFAULT_CACHE, Cache, Trust

if TYPE_CHECKING:
    from modulate.report.html import Html
    from modulate.report.runs import EvaluatedRun


def report(
    folder: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN...",
            help=(
                "Folders of evaluated runs. Seeds of one recipe are pooled; include the companion"
                " runs (gaze-free, LoRA only)."
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
                "Samples to show from the first run trained with its signal, which needs its data"
                " and host; 0 for none."
            ),
        ),
    ] = 6,
    base: Annotated[
        str | None,
        typer.Option(
            help=(
                "Name of the run that ablations start from; by default the one from which most"
                " others differ in one axis."
            )
        ),
    ] = None,
    split: Annotated[str, typer.Option(help="Split to report on: train, val or test.")] = "test",
    cache: Cache = DEFAULT_CACHE,
    trust: Trust = False,
) -> None:
    """Write a report on finished runs.

    One page with accuracies and exact counts, intervals, paired tests, controls, ablations,
    training curves and samples.
    """
    from dataclasses import replace

    from modulate.report.page import build_report, write_report
    from modulate.report.runs import read_run

    runs = [read_run(path, split) for path in folder]
    page = build_report(runs, base)
    if gallery:
        page = replace(page, gallery=tuple(_gallery(runs, gallery, split, cache, trust)))
    paths = write_report(page, out)
    for result in page.results:
        for companion, _ in result.companions:
            if companion.missing:
                typer.echo(f"{result.group.name}: {companion.missing}")
    typer.echo(
        f"{len(runs)} runs, {len(page.results)} recipes, {len(paths)} files. Page:"
        f" {out / 'index.html'}"
    )


def _gallery(
    runs: "list[EvaluatedRun]", count: int, split: str, cache: Path, trust: bool
) -> "list[Html]":
    """Return the gallery of the first run trained with its signal.

    Errors say how to write the page without a gallery.
    """
    from modulate.errors import ComponentError, ModulateError, RecipeError
    from modulate.inference.pipeline import Pipeline
    from modulate.report.gallery import build_gallery
    from modulate.report.pictures import gallery_section

    first = next((run for run in runs if run.recipe.training.condition == "signal"), None)
    if first is None:
        raise RecipeError(
            "A gallery needs a run that was trained with its signal, and none is given. Add one, or"
            " leave out the gallery with --gallery 0."
        )
    try:
        return gallery_section(
            build_gallery(
                first, Pipeline(first.recipe, cache, trust_remote_code=trust), count, split
            )
        )
    except ComponentError:
        raise
    except ModulateError as error:
        raise type(error)(
            f"The gallery of {first.run.folder} cannot be made: {error} To write the page without"
            " a gallery, add --gallery 0."
        ) from error

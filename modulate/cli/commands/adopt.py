"""``modulate adopt``: weights from elsewhere as a run."""

from pathlib import Path
from typing import Annotated

import typer

from modulate.cli.arguments import Overrides, Recipe


def adopt(
    weights: Annotated[
        str,
        typer.Argument(
            help=(
                "Folder of a modulation, as save_pretrained or `modulate convert` writes it, or a"
                " hub repository."
            )
        ),
    ],
    recipe: Recipe,
    overrides: Overrides = None,
    runs: Annotated[
        Path,
        typer.Option(
            help="Folder of the runs; this one goes into a sub-folder by the recipe's name."
        ),
    ] = Path("runs"),
) -> None:
    """Make a finished run of weights trained elsewhere, so that `modulate eval` and `modulate
    report` take them like any other. Refuses weights that do not fit.
    """
    from modulate.config.recipe import load_recipe
    from modulate.runs.import_weights import adopt as adopting

    run = adopting(load_recipe(recipe, overrides or ()), weights, runs)
    typer.echo(f"{run.folder} is a run of {weights}. Next: modulate eval {run.folder}")

"""``modulate adopt``: turn weights trained elsewhere into a run."""

from pathlib import Path
from typing import Annotated

import typer

from modulate.cli.arguments import Overrides, Recipe


def adopt(
    weights: Annotated[
        str,
        typer.Argument(
            help=(
                "Folder of a modulation, as written by save_pretrained or `modulate convert`, or a"
                " Hub repository."
            )
        ),
    ],
    recipe: Recipe,
    overrides: Overrides = None,
    runs: Annotated[
        Path,
        typer.Option(help="Folder of all runs; this run gets a subfolder named after the recipe."),
    ] = Path("runs"),
) -> None:
    """Turn weights trained elsewhere into a finished run.

    `modulate eval` and `modulate report` then treat it like any other run. Weights that do not fit
    the recipe are refused.
    """
    from modulate.config.recipe import load_recipe
    from modulate.runs.import_weights import adopt as adopting

    run = adopting(load_recipe(recipe, overrides or ()), weights, runs)
    typer.echo(
        f"{run.folder} is now a run with the weights of {weights}. Next: modulate eval {run.folder}"
    )

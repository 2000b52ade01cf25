"""``modulate recipe …``: about recipes as such."""

from typing import Annotated

import typer

from modulate.cli.output import echo_json

recipe = typer.Typer(name="recipe", help="About recipes as such.", no_args_is_help=True)


@recipe.callback()
def _group() -> None:
    """Keep ``schema`` a sub-command although it is the only one."""


@recipe.command("schema")
def schema(
    sweeps: Annotated[bool, typer.Option("--sweeps", help="That of sweep files instead.")] = False,
) -> None:
    """Print the JSON Schema of recipes, for editors.

    Components' own parameters are checked when a recipe is read.
    """
    from modulate.config.recipe import schema as of_recipes
    from modulate.sweeps.sweep import Sweep

    echo_json(Sweep.model_json_schema() if sweeps else of_recipes())

"""``modulate recipe``: the recipe format."""

from typing import Annotated

import typer

from modulate.cli.output import echo_json

recipe = typer.Typer(name="recipe", help="The recipe format.", no_args_is_help=True)


@recipe.callback()
def _group() -> None:
    """Keep ``schema`` a subcommand: typer would drop the level of a group with one command."""


@recipe.command("schema")
def schema(
    sweeps: Annotated[bool, typer.Option("--sweeps", help="Print that of sweeps instead.")] = False,
) -> None:
    """Print the JSON Schema of recipes, for editors.

    It does not cover the parameters of components; those are checked when a recipe is loaded.
    """
    from modulate.config.recipe_schema import schema as recipe_schema
    from modulate.sweeps.sweep import Sweep

    echo_json(Sweep.model_json_schema() if sweeps else recipe_schema())

"""``modulate recipe …``: about recipes as such."""

import json

import typer

recipe = typer.Typer(name="recipe", help="About recipes as such.", no_args_is_help=True)


@recipe.callback()
def _group() -> None:
    """Keep ``schema`` a sub-command although it is the only one."""


@recipe.command("schema")
def schema() -> None:
    """Print the JSON Schema of recipes, for editors. Components' own parameters are checked when a recipe is read."""
    from modulate.recipe import schema as of_recipes

    typer.echo(json.dumps(of_recipes(), indent=2, ensure_ascii=False))

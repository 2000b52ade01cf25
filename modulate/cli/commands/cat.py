"""``modulate cat``: the text of a recipe or a sweep."""

from typing import Annotated

import typer

from modulate.cli.arguments import Overrides, Recipe
from modulate.errors import RecipeError


def cat(
    recipe: Recipe,
    overrides: Overrides = None,
    resolved: Annotated[
        bool,
        typer.Option(
            help="Validate it and write out every default and override; comments are lost."
        ),
    ] = False,
) -> None:
    """Print a recipe or a sweep as its file has it."""
    from modulate.config import recipe as recipes

    if resolved:
        typer.echo(recipes.dump(recipes.load_recipe(recipe, overrides or ())), nl=False)
        return
    if overrides:
        raise RecipeError(
            f"The file itself knows no overrides, got {overrides[0]!r}; add --resolved to see the"
            " recipe with them."
        )
    typer.echo(recipes.find(recipe, recipes.shipped_paths(), "recipe").read_bytes(), nl=False)

"""``modulate cat``: print a recipe or a sweep."""

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
            help="Validate it and print every key with defaults and overrides, without comments."
        ),
    ] = False,
) -> None:
    """Print a recipe or a sweep, by default exactly as in its file."""
    from modulate.config import recipe as recipes

    if resolved:
        typer.echo(recipes.dump(recipes.load_recipe(recipe, overrides or ())), nl=False)
        return
    if overrides:
        raise RecipeError(
            f"Without --resolved the file is printed unchanged, so the override {overrides[0]!r}"
            " would have no effect; add --resolved to see the recipe with it."
        )
    typer.echo(recipes.find(recipe, recipes.shipped_paths(), "recipe").read_bytes(), nl=False)

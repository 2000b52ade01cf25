"""``modulate cp``: copy a shipped recipe or sweep to start from."""

from pathlib import Path
from typing import Annotated

import typer

from modulate.cli.arguments import Recipe
from modulate.errors import RecipeError


def cp(
    recipe: Recipe,
    destination: Annotated[
        Path, typer.Argument(metavar="DEST", help="File to write, or an existing folder.")
    ],
    force: Annotated[bool, typer.Option(help="Replace an existing file.")] = False,
) -> None:
    """Copy a recipe or a sweep to change it."""
    from modulate.config.recipe import find, shipped_paths
    from modulate.utils.atomic_files import write_text

    source = find(recipe, shipped_paths(), "recipe")
    target = destination / source.name if destination.is_dir() else destination
    if target.exists() and not force:
        raise RecipeError(f"{target} exists; name another file, or add --force to replace it.")
    text = source.read_text(encoding="utf-8")
    write_text(target, text)
    typer.echo(str(target))

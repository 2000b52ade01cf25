"""``modulate ls``, ``cat``, ``cp``: list, print and copy the shipped recipes and sweeps."""

from pathlib import Path
from typing import Annotated

import typer

from modulate.cli.arguments import AsJson, Overrides, Recipe
from modulate.cli.output import echo_json
from modulate.errors import RecipeError


def ls(as_json: AsJson = False) -> None:
    """List the shipped recipes and, after them, the sweeps."""
    from modulate.config.recipe import recipe_paths, sweep_paths

    found = [
        (kind, *item)
        for kind, paths in (("recipe", recipe_paths()), ("sweep", sweep_paths()))
        for item in paths.items()
    ]
    rows = [
        {
            "name": name,
            "kind": kind,
            "about": _first_comment(path.read_text(encoding="utf-8")),
            "path": str(path),
        }
        for kind, name, path in found
    ]
    if as_json:
        echo_json(rows)
        return
    width = max((len(row["name"]) for row in rows), default=0)
    for row in rows:
        typer.echo(f"{row['name']:<{width}}  {row['about']}".rstrip())


def _first_comment(text: str) -> str:
    """Return the first line of a recipe's header comment."""
    line = text.partition("\n")[0]
    return line.lstrip("# ").strip() if line.startswith("#") else ""


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

"""``modulate ls``: the recipes that ship."""

import json

import typer

from modulate.cli.arguments import AsJson


def ls(as_json: AsJson = False) -> None:
    """List the shipped recipes."""
    from modulate.recipe import recipe_paths

    rows = [{"name": name, "about": _first_comment(path.read_text()), "path": str(path)} for name, path in recipe_paths().items()]
    if as_json:
        typer.echo(json.dumps(rows, indent=2, ensure_ascii=False))
        return
    width = max((len(row["name"]) for row in rows), default=0)
    for row in rows:
        typer.echo(f"{row['name']:<{width}}  {row['about']}".rstrip())


def _first_comment(text: str) -> str:
    """Return the first line of a recipe's header comment."""
    line = text.partition("\n")[0]
    return line.lstrip("# ").strip() if line.startswith("#") else ""

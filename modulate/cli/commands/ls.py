"""``modulate ls``: list the shipped recipes and sweeps."""

import typer

from modulate.cli.arguments import AsJson
from modulate.cli.output import echo_json


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

"""Arguments and options shared by several commands."""

from pathlib import Path
from typing import Annotated

import typer

Recipe = Annotated[
    str, typer.Argument(help="Name of a shipped recipe (`modulate ls`) or a YAML file.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[KEY=VALUE]...",
        help="Changes to the recipe, such as seed=1 or training.stages.0.epochs=2.",
    ),
]
Cache = Annotated[Path, typer.Option(help="Folder of the feature cache.")]
Trust = Annotated[
    bool,
    typer.Option(
        "--trust-remote-code",
        help=(
            "Allow a recipe with trust_remote_code to run the Python files in the host's"
            " repository. Read them first."
        ),
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]

DEFAULT_CACHE = Path("data/cache")

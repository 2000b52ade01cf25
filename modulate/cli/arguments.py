"""Arguments and options that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

Recipe = Annotated[
    str, typer.Argument(help="Name of a shipped recipe (`modulate ls`) or a YAML file.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[KEY=VALUE]...", help="Changes to the recipe: key.sub=value, list items by index."
    ),
]
Cache = Annotated[Path, typer.Option(help="Folder of the cache of frame features.")]
Trust = Annotated[
    bool,
    typer.Option(
        "--trust-remote-code",
        help=(
            "Run Python files that come with the host's model, if the recipe says"
            " trust_remote_code: only after reading them."
        ),
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]

DEFAULT_CACHE = Path("data/cache")

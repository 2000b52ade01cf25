"""StreamGaze (arXiv 2512.01707), and every data set with the same layout on disk.

Importing this package imports no torch.
"""

from typing import TYPE_CHECKING

from modulate.hookspecs import Register, hookimpl

if TYPE_CHECKING:
    import typer


@hookimpl
def register_datasets(register: Register) -> None:
    """Register the benchmark's reader."""
    register("streamgaze", "modulate_streamgaze.dataset:StreamGaze")


@hookimpl
def register_commands(cli: "typer.Typer") -> None:
    """Add ``modulate data …``."""
    from modulate_streamgaze.commands import data

    cli.add_typer(data)

"""The tabletop world: a generator of real videos, scanpaths and questions, and the small host that
was trained on them.
"""

from typing import TYPE_CHECKING

from modulate.hookspecs import Register, hookimpl

if TYPE_CHECKING:
    import typer


@hookimpl
def register_datasets(register: Register) -> None:
    """Register the world as a data set that makes itself."""
    register("tabletop", "modulate_tabletop.dataset:Tabletop")


@hookimpl
def register_inputs(register: Register) -> None:
    """Register the oracle: the mark that the host was taught."""
    register("tabletop_mark", "modulate_tabletop.mark:TaughtMark")


@hookimpl
def register_commands(cli: "typer.Typer") -> None:
    """Add ``modulate tabletop …``."""
    from modulate_tabletop.commands import tabletop

    cli.add_typer(tabletop)

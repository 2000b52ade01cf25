"""The tabletop world: generated videos, scanpaths and questions, and a small host for them."""

from typing import TYPE_CHECKING

from modulate.hookspecs import Register, hookimpl

if TYPE_CHECKING:
    import typer


@hookimpl
def register_datasets(register: Register) -> None:
    """Register the data set, which generates its world on first use."""
    register("tabletop", "modulate_tabletop.dataset:Tabletop")


@hookimpl
def register_inputs(register: Register) -> None:
    """Register the oracle: the mark that the small host was trained on."""
    register("tabletop_mark", "modulate_tabletop.mark:TaughtMark")


@hookimpl
def register_commands(cli: "typer.Typer") -> None:
    """Add ``modulate tabletop …``."""
    from modulate_tabletop.commands import tabletop

    cli.add_typer(tabletop)

"""``modulate plugins`` and ``modulate new``: list the installed plugins, and begin another one."""

from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from modulate.cli.arguments import AsJson
from modulate.cli.output import echo_json

if TYPE_CHECKING:
    from modulate.plugins import Registry
    from modulate.utils.entry_points import PluginInfo


def new(
    kind: Annotated[
        str,
        typer.Argument(
            metavar="KIND",
            help="signal, encoder, backbone, modulator, dataset, input or host.",
        ),
    ],
    name: Annotated[
        str, typer.Argument(help="Name that recipes will use: small letters, digits, underscores.")
    ],
    into: Annotated[Path, typer.Option(help="Folder for the new package's folder.")] = Path(),
) -> None:
    """Write the package of a new plugin: a component that works, its tests, its pyproject.toml.

    The tests run the contract suite of its kind. Nothing that exists is overwritten.
    """
    from modulate.cli.new_package import write_package

    folder = write_package(kind, name, into)
    typer.echo(str(folder))
    typer.echo(
        f"Next: pip install --editable {folder}, python -m pytest {folder}, modulate plugins",
        err=True,
    )


def plugins(
    as_json: AsJson = False,
    load: Annotated[
        bool,
        typer.Option(
            "--load",
            help="Import every component too, which takes seconds, and report those that fail.",
        ),
    ] = False,
) -> None:
    """List plugins, what they provide, and why some are broken.

    Shows the distribution and file of each plugin, and which ones MODULATE_PLUGINS switches off. A
    note warns where the name of a plugin, distribution or module is also that of another one.
    """
    from modulate.plugins import registry

    known = registry()
    if load:
        _load_all(known)
    infos = sorted(
        [*known.plugins.values(), *known.off.values(), *known.missing.values()],
        key=lambda info: info.name,
    )
    if as_json:
        echo_json([_as_row(info) for info in infos])
        return
    for info in infos:
        _show(info)
    if not infos:
        typer.echo("No plugin is installed.")


def _load_all(known: "Registry") -> None:
    """Import every component; note those that fail as errors of their plugins."""
    from modulate.errors import PluginError

    for component in known.components.values():
        try:
            component.load()
        except PluginError as error:
            info = known.plugins[component.plugin]
            info.error = f"{info.error} {error}".strip()


def _as_row(info: "PluginInfo") -> dict[str, Any]:
    provides = [{"kind": kind, "name": name} for kind, name in info.provides]
    return asdict(info) | {"source": info.source, "provides": provides}


def _show(info: "PluginInfo") -> None:
    from modulate.plugins import VARIABLE

    title = "  ".join(part for part in (info.name, info.version, info.source) if part)
    typer.secho(title, bold=True)
    if info.location:
        typer.echo(f"  from: {info.location}")
    for kind, group in groupby(sorted(info.provides), key=lambda item: item[0]):
        typer.echo(f"  {kind.replace('_', ' ')}: {', '.join(name for _, name in group)}")
    if info.off:
        typer.echo(f"  off: {VARIABLE} does not name it")
    for note in info.notes:
        typer.secho(f"  note: {note}", fg=typer.colors.YELLOW)
    if info.error:
        typer.secho(f"  broken: {info.error}", fg=typer.colors.RED)

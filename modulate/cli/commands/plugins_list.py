"""``modulate plugins``: list installed plugins, what they provide, and why some are broken."""

from dataclasses import asdict
from itertools import groupby
from typing import TYPE_CHECKING, Any

import typer

from modulate.cli.arguments import AsJson
from modulate.cli.output import echo_json

if TYPE_CHECKING:
    from modulate.plugins import PluginInfo


def plugins(as_json: AsJson = False) -> None:
    """List plugins, what they provide, and why some are broken.

    Shows the distribution and file of each plugin, and which ones MODULATE_PLUGINS switches off. A
    note warns where the name of a plugin, distribution or module is also that of another one.
    """
    from modulate.plugins import registry

    known = registry()
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

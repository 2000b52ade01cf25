"""``modulate plugins``: what is installed, what it provides, what is broken and why."""

from dataclasses import asdict
from itertools import groupby

import typer

from modulate.cli.arguments import AsJson
from modulate.cli.output import echo_json


def plugins(as_json: AsJson = False) -> None:
    """List plugins: which distribution and file each comes from, what it provides, why broken ones
    are broken, which MODULATE_PLUGINS switches off.

    Notes say where one bears another's name: that of a plugin that ships, of a distribution, of a
    module.
    """
    from modulate.plugins import VARIABLE, PluginInfo, registry

    known = registry()
    found = sorted(
        [*known.plugins.values(), *known.off.values(), *known.missing.values()],
        key=lambda p: p.name,
    )
    if as_json:
        rows = [
            asdict(p)
            | {
                "source": p.source,
                "provides": [{"kind": kind, "name": name} for kind, name in p.provides],
            }
            for p in found
        ]
        echo_json(rows)
        return

    def show(plugin: PluginInfo) -> None:
        typer.secho(
            "  ".join(part for part in (plugin.name, plugin.version, plugin.source) if part),
            bold=True,
        )
        if plugin.location:
            typer.echo(f"  from: {plugin.location}")
        for kind, group in groupby(sorted(plugin.provides), key=lambda item: item[0]):
            typer.echo(f"  {kind.replace('_', ' ')}: {', '.join(name for _, name in group)}")
        if plugin.off:
            typer.echo(f"  off: {VARIABLE} does not name it")
        for note in plugin.notes:
            typer.secho(f"  note: {note}", fg=typer.colors.YELLOW)
        if plugin.error:
            typer.secho(f"  broken: {plugin.error}", fg=typer.colors.RED)

    for plugin in found:
        show(plugin)
    if not found:
        typer.echo("No plugin is installed.")

"""``modulate plugins``: what is installed, what it provides, what is broken and why."""

import json
from dataclasses import asdict
from itertools import groupby

import typer

from modulate.cli.arguments import AsJson


def plugins(as_json: AsJson = False) -> None:
    """List plugins: where they come from, what they provide, and why broken ones are broken."""
    from modulate.plugins import PluginInfo, registry

    found = sorted(registry().plugins.values(), key=lambda p: p.name)
    if as_json:
        rows = [asdict(p) | {"provides": [{"kind": kind, "name": name} for kind, name in p.provides]} for p in found]
        typer.echo(json.dumps(rows, indent=2, ensure_ascii=False))
        return

    def show(plugin: PluginInfo) -> None:
        typer.secho(f"{plugin.name}  {plugin.version}  {plugin.source}", bold=True)
        for kind, group in groupby(sorted(plugin.provides), key=lambda item: item[0]):
            typer.echo(f"  {kind.replace('_', ' ')}: {', '.join(name for _, name in group)}")
        if plugin.error:
            typer.secho(f"  broken: {plugin.error}", fg=typer.colors.RED)

    for plugin in found:
        show(plugin)
    if not found:
        typer.echo("No plugin is installed or selected (MODULATE_PLUGINS limits them).")

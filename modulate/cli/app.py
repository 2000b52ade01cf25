"""The typer application: the built-in commands, then those of plugins."""

import sys
from collections import Counter
from typing import Any

import typer

from modulate import plugins
from modulate.errors import PluginError

HELP = "Let a frozen multimodal LLM listen to a side signal such as eye gaze."


def build(registry: plugins.Registry | None = None) -> typer.Typer:
    """Return the application with the commands of every plugin in ``registry``.

    ``registry`` is this process's by default. A plugin's group of the name of one of modulate's,
    such as ``data``, adds its commands to that one. A plugin whose commands cannot be added, or
    clash with existing ones, is marked as broken and adds none of them.
    """
    registry = registry or plugins.registry()
    app = typer.Typer(
        name="modulate",
        help=HELP,
        epilog=_epilog(registry),
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
    )
    _add_builtin(app)
    shared = {
        _name_of(group): group.typer_instance
        for group in app.registered_groups
        if group.typer_instance is not None
    }
    for name in list(registry.plugins):
        _add_plugin(app, registry, name, shared)
    return app


def _epilog(registry: plugins.Registry) -> str | None:
    """Return what the help says about plugins that are switched off or missing."""
    notes = [info.error for info in registry.missing.values()]
    if registry.off:
        notes.insert(0, f"Switched off by {plugins.VARIABLE}: {', '.join(registry.off)}.")
    return " ".join(notes) or None


def _add_builtin(app: typer.Typer) -> None:
    from modulate.cli.commands import (
        adopt,
        ask,
        bench,
        check,
        data,
        evaluate,
        export,
        features,
        hosts,
        plugin_packages,
        recipe,
        report,
        shipped,
        sweep,
        train,
    )

    # The order of the help: what a user runs, in the order of a project, then listings.
    for name, command in (
        ("features", features.features),
        ("train", train.train),
        ("eval", evaluate.evaluate),
        ("adopt", adopt.adopt),
        ("sweep", sweep.sweep),
        ("check", check.check),
        ("bench", bench.bench),
        ("ask", ask.ask),
        ("report", report.report),
        ("export", export.export),
        ("new", plugin_packages.new),
        ("plugins", plugin_packages.plugins),
        ("hosts", hosts.hosts),
        ("ls", shipped.ls),
        ("cat", shipped.cat),
        ("cp", shipped.cp),
    ):
        app.command(name)(command)
    app.add_typer(data.group())
    app.add_typer(recipe.recipe)


def _add_plugin(
    app: typer.Typer, registry: plugins.Registry, name: str, shared: dict[str, typer.Typer]
) -> None:
    """Add one plugin's commands: all of them, or none if anything fails.

    ``shared``: the groups, by name, to which plugins may add commands.
    """
    plugin = registry.manager.get_plugin(name)
    if plugin is None:
        return
    commands = list(app.registered_commands)
    groups = list(app.registered_groups)
    callbacks = [command.callback for command in commands]
    others = [known for known in registry.manager.get_plugins() if known is not plugin]
    try:
        with registry.protect_others(name):
            registry.manager.subset_hook_caller("register_commands", remove_plugins=others)(cli=app)
        _refuse_changes(app, name, commands, groups, callbacks)
        joining = _take_out(app, len(groups), shared)
        _refuse_clashes(app, name)
        _join(joining, name)
    # SystemExit: a plugin that calls exit() must not end every other command.
    except (Exception, SystemExit) as error:
        app.registered_commands[:] = commands
        app.registered_groups[:] = groups
        for command, callback in zip(commands, callbacks, strict=True):
            command.callback = callback
        info = registry.plugins[name]
        info.error = f"{type(error).__name__}: {error}"
        print(
            f"Warning: the commands of plugin {name!r} are left out. {info.error}", file=sys.stderr
        )


def _refuse_changes(
    app: typer.Typer, name: str, commands: list[Any], groups: list[Any], callbacks: list[Any]
) -> None:
    """Raise :class:`PluginError` if a plugin changed commands registered before it."""
    unchanged = (
        app.registered_commands[: len(commands)] == commands
        and app.registered_groups[: len(groups)] == groups
        and [command.callback for command in commands] == callbacks
    )
    if not unchanged:
        raise PluginError(f"the plugin {name!r} changed commands that are not its own.")


def _take_out(
    app: typer.Typer, first: int, shared: dict[str, typer.Typer]
) -> list[tuple[typer.Typer, typer.Typer]]:
    """Remove the groups from the ``first``-th on that have the name of a shared one.

    Returns (shared group, plugin's group) of each.
    """
    new = app.registered_groups[first:]
    joining = [group for group in new if _name_of(group) in shared]
    app.registered_groups[first:] = [group for group in new if group not in joining]
    return [
        (shared[_name_of(group)], group.typer_instance) for group in joining if group.typer_instance
    ]


def _join(joining: list[tuple[typer.Typer, typer.Typer]], name: str) -> None:
    """Add the commands of a plugin's groups to the shared ones; all of them, or none.

    Raises :class:`PluginError` for a command that is there already.
    """
    for group, added in joining:
        clashes = sorted({*_commands(group)} & {*_commands(added)})
        if clashes:
            raise PluginError(
                f"command '{group.info.name} {clashes[0]}' of plugin {name!r} clashes with one that"
                " exists; rename it."
            )
    for group, added in joining:
        group.registered_commands += added.registered_commands
        group.registered_groups += added.registered_groups


def _refuse_clashes(app: typer.Typer, name: str) -> None:
    """Raise :class:`PluginError` if two commands or groups have the same name."""
    counts = Counter(_names(app))
    clashes = sorted(command for command, count in counts.items() if count > 1)
    if clashes:
        raise PluginError(
            f"command {clashes[0]!r} of plugin {name!r} clashes with one that exists; rename it."
        )


def _names(app: typer.Typer) -> list[str]:
    """Return the names of all commands and groups of ``app``."""
    names = _commands(app)
    for group in app.registered_groups:
        inner = group.typer_instance.info.name if group.typer_instance else None
        names += [name for name in (group.name, inner) if isinstance(name, str)]
    return names


def _commands(app: typer.Typer) -> list[str]:
    names = []
    for command in app.registered_commands:
        # As typer names a command that was registered without a name.
        derived = command.callback.__name__.replace("_", "-") if command.callback else ""
        names.append(command.name or derived)
    return names


def _name_of(group: Any) -> str:
    """Return the name of a registered group: its own, or its application's."""
    inner = group.typer_instance.info.name if group.typer_instance else None
    return next((name for name in (group.name, inner) if isinstance(name, str)), "")

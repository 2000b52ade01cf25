"""The command line; heavy modules are imported when a command runs."""

import sys
import traceback
from collections.abc import Sequence

import typer

from modulate import plugins
from modulate.cli import output
from modulate.errors import ComponentError, Interrupted, ModulateError, PluginError, StorageError
from modulate.utils.library_warnings import show_library_warnings

HELP = "Let a frozen multimodal LLM listen to a side signal such as eye gaze."


def build(registry: plugins.Registry | None = None) -> typer.Typer:
    """Return the application: our commands, then those of every plugin in ``registry`` (by default
    this process's).

    A plugin whose commands cannot be added, or clash with others, is marked as broken with its
    reason and adds none.
    """
    from modulate.cli.commands import (
        adopt,
        ask,
        bench,
        cat,
        check,
        cp,
        evaluate,
        features,
        hosts,
        ls,
        plugins_list,
        recipe,
        report,
        sweep,
        train,
    )

    registry = registry or plugins.registry()
    note = (
        [f"Switched off by {plugins.VARIABLE}: {', '.join(registry.off)}."] if registry.off else []
    )
    epilog = " ".join([*note, *(info.error for info in registry.missing.values())]) or None
    app = typer.Typer(
        name="modulate",
        help=HELP,
        epilog=epilog,
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
    )
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
        ("plugins", plugins_list.plugins),
        ("hosts", hosts.hosts),
        ("ls", ls.ls),
        ("cat", cat.cat),
        ("cp", cp.cp),
    ):
        app.command(name)(command)
    app.add_typer(recipe.recipe)
    for name in list(registry.plugins):
        _extend(app, registry, name)
    return app


def _extend(app: typer.Typer, registry: plugins.Registry, name: str) -> None:
    """Add one plugin's commands: all, or none when that fails."""
    plugin = registry.manager.get_plugin(name)
    info = registry.plugins[name]
    if plugin is None:
        return
    commands = list(app.registered_commands)
    groups = list(app.registered_groups)
    callbacks = [c.callback for c in app.registered_commands]
    others = [p for p in registry.manager.get_plugins() if p is not plugin]
    try:
        with registry.others_stay(name):
            registry.manager.subset_hook_caller("register_commands", remove_plugins=others)(cli=app)
        kept = (
            app.registered_commands[: len(commands)],
            app.registered_groups[: len(groups)],
            [c.callback for c in commands],
        )
        if kept != (commands, groups, callbacks):
            raise PluginError(f"the plugin {name!r} changed commands that are not its own.")
        names = _names(app)
        clash = sorted({n for n in names if names.count(n) > 1})
        if clash:
            raise PluginError(
                f"command {clash[0]!r} of plugin {name!r} clashes with one that exists; rename it."
            )
    except (Exception, SystemExit) as error:
        app.registered_commands[:], app.registered_groups[:] = commands, groups
        for command, callback in zip(commands, callbacks, strict=True):
            command.callback = callback
        info.error = f"{type(error).__name__}: {error}"
        print(
            f"Warning: the commands of plugin {name!r} are left out. {info.error}", file=sys.stderr
        )


def _names(app: typer.Typer) -> list[str]:
    """Return the names of all commands and groups of ``app``."""
    commands = [
        c.name or (c.callback.__name__.replace("_", "-") if c.callback else "")
        for c in app.registered_commands
    ]
    groups = [
        name
        for g in app.registered_groups
        for name in (g.name, g.typer_instance and g.typer_instance.info.name)
        if isinstance(name, str)
    ]
    return commands + groups


def main(args: Sequence[str] | None = None) -> None:
    """Run the command line.

    Errors that modulate raises on purpose are printed without a traceback, with exit code 1; all
    others keep theirs.

    So does a component's own failure: it is a defect, and the traceback is what its author needs. A
    run that was asked to stop by a signal, and has saved, ends with 128 and the signal's number;
    one whose output cannot be written, with 1 and a line that says so. Warnings are lines on
    stderr, without the line of source that they come from.
    """
    try:
        with output.checked():
            _run(args)
    # of standard output, at the end; standard error is as it was, and may be broken too
    except StorageError as error:
        with output.checked():
            print(f"Error: {error}", file=sys.stderr)
            raise SystemExit(1) from None


def _run(args: Sequence[str] | None) -> None:
    try:
        with show_library_warnings(every=True):
            build()(args=list(args) if args is not None else None)
    except ComponentError as error:
        traceback.print_exception(error)
        raise SystemExit(1) from None
    except Interrupted as error:
        print(error, file=sys.stderr)
        raise SystemExit(error.code) from None
    except ModulateError as error:
        print(f"Error: {error}", file=sys.stderr)
        raise SystemExit(1) from None

"""The application: starts without torch, takes plugins' commands, prints errors plainly."""

import subprocess
import sys
import types

import pytest
import typer
from typer.testing import CliRunner

from modulate import cli, plugins
from modulate.hookspecs import hookimpl

# --- start


@pytest.mark.parametrize(
    "args",
    [
        ["--help"],
        ["ls"],
        ["ls", "--json"],
        ["plugins"],
        ["cat", "gazeqwen_tiny"],
        ["train", "--help"],
        ["features", "--help"],
        ["sweep", "--help"],
        ["recipe", "schema"],
    ],
)
def test_light_commands_import_no_torch(args):
    code = (
        "import sys, modulate.cli\n"
        f"try: modulate.cli.main({args!r})\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        "heavy = {'torch', 'transformers', 'numpy', 'av', 'rich.progress'} & sys.modules.keys()\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and done.stdout, done.stderr


def test_help_names_every_command_and_those_of_plugins():
    result = CliRunner().invoke(cli.build(), ["--help"])
    assert result.exit_code == 0
    for name in (
        "features",
        "train",
        "eval",
        "sweep",
        "check",
        "ask",
        "plugins",
        "ls",
        "cat",
        "cp",
        "recipe",
        "tabletop",
    ):
        assert f"  {name} " in result.output


def with_command(name, group=None):
    """A registry with a plugin that adds one command, or a group with one command."""
    module = types.ModuleType("made_up")

    @hookimpl
    def register_commands(cli):
        target = cli if group is None else typer.Typer(name=group)
        target.command(name)(lambda: print("hello from a plugin"))
        if group is not None:
            cli.add_typer(target)

    module.register_commands = register_commands
    registry = plugins.Registry([])
    registry.add("extra", module)
    return registry


def test_a_plugin_adds_a_command():
    result = CliRunner().invoke(cli.build(with_command("wave")), ["wave"])
    assert result.output == "hello from a plugin\n"


def test_a_plugin_command_that_clashes_is_left_out_with_a_warning(capsys):
    registry = with_command("train")
    assert "hello" not in CliRunner().invoke(cli.build(registry), ["train", "--help"]).output
    assert (
        registry.plugins["extra"].error
        == "PluginError: command 'train' of plugin 'extra' clashes with one that exists; rename it."
    )
    assert "Warning: the commands of plugin 'extra' are left out." in capsys.readouterr().err


def test_a_plugin_adds_commands_to_a_group_of_modulate(capsys):
    joined = CliRunner().invoke(cli.build(with_command("wave", group="data")), ["data", "wave"])
    assert joined.output == "hello from a plugin\n"
    registry = with_command("check", group="data")
    app = cli.build(registry)
    assert "hello" not in CliRunner().invoke(app, ["data", "check", "--help"]).output
    assert registry.plugins["extra"].error == (
        "PluginError: command 'data check' of plugin 'extra' clashes with one that exists; rename"
        " it."
    )


def test_the_groups_of_plugins_are_their_own():
    registry = with_command("wave", group="tricks")
    other = with_command("jump", group="tricks")
    registry.add("other", other.manager.get_plugin("extra"))
    cli.build(registry)
    assert "command 'tricks' of plugin 'other' clashes" in registry.plugins["other"].error


# --- errors


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (
            ["train", "gazeqwen_tny"],
            (
                "No recipe 'gazeqwen_tny': neither a file nor a shipped recipe. Did you mean"
                " 'gazeqwen_tiny'"
            ),
        ),
        (
            ["check", "gazeqwen_tiny", "modulator.name=gaze_resample"],
            "Unknown modulator 'gaze_resample'. Did you mean 'gaze_resampler'?",
        ),
        (
            ["train", "gazeqwen_tiny", "training.batchsize=1"],
            "training.batchsize: unknown key. Did you mean 'batch_size'?",
        ),
        (["train", "gazeqwen_tiny", "seed"], "Override 'seed' is not of the form key.sub=value."),
        (["eval", "no_such_folder"], "no_such_folder is not a run: recipe.yaml is missing."),
    ],
)
def test_errors_are_one_message_without_traceback(args, message, modulate, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _out, err = modulate(*args)
    assert code == 1 and err.startswith("Error: ") and message in err and "Traceback" not in err
    assert not list(tmp_path.iterdir())


def test_other_exceptions_keep_their_traceback(monkeypatch):
    def fail():
        raise RuntimeError("a bug")

    monkeypatch.setattr("modulate.config.recipe.recipe_paths", fail)
    with pytest.raises(RuntimeError, match="a bug"):
        cli.main(["ls"])

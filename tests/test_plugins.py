"""Finding plugins: broken ones are kept with their reason, clashes and misspelt hooks are errors,
names are resolved with help.
"""

import json
import os
import re
import subprocess
import sys
import tomllib
import types
from importlib.metadata import EntryPoint

import pytest

from modulate import plugins
from modulate.errors import PluginError
from modulate.hookspecs import hookimpl
from modulate.utils import entry_points as installed
from tests.paths import ROOT


class Dot:
    """A component."""


def plugin(hook="register_signal_encoders", name="dot", target=Dot):
    def implementation(register):
        register(name, target)

    module = types.ModuleType("made_up")
    setattr(module, hook, hookimpl(implementation))
    return module


def points(**values):
    return [EntryPoint(name, value, plugins.GROUP) for name, value in values.items()]


@pytest.fixture
def registry():
    return plugins.Registry([])


def test_every_shipped_plugin_loads():
    found = plugins.registry().plugins
    assert {"gaze", "hosts", "streamgaze", "tabletop", "vjepa", "dinov2"} <= found.keys()
    assert not [p for p in found.values() if p.error]


def test_every_registered_component_can_be_imported():
    for kind, name in plugins.registry().components:
        assert isinstance(plugins.get(kind, name), type)


def test_a_broken_plugin_is_listed_with_its_reason_while_others_work(monkeypatch):
    monkeypatch.setitem(sys.modules, "works_well", plugin())
    registry = plugins.Registry(points(absent="no_such_module_anywhere", works="works_well"))
    assert (
        registry.plugins["absent"].error
        == "ModuleNotFoundError: No module named 'no_such_module_anywhere'"
    )
    assert registry.plugins["works"].provides == [("signal_encoder", "dot")]
    assert registry.get("signal_encoder", "dot") is Dot


def test_using_what_a_broken_plugin_may_have_provided_repeats_its_reason():
    registry = plugins.Registry(points(absent="no_such_module_anywhere"))
    with pytest.raises(
        PluginError,
        match=(
            r"Unknown modulator 'x'\. Known: none\..*Broken plugins.*absent \(ModuleNotFoundError:"
            r" No module named"
        ),
    ):
        registry.get("modulator", "x")


def test_an_unknown_name_gets_similar_names():
    with pytest.raises(
        PluginError,
        match=(
            r"Unknown modulator 'gaze_resample'\. Did you mean 'gaze_resampler'\?.*`modulate"
            r" plugins` lists them"
        ),
    ):
        plugins.get("modulator", "gaze_resample")


def test_a_name_clash_is_an_error_and_leaves_no_trace(registry):
    registry.add("first", plugin())
    with pytest.raises(
        PluginError,
        match=(
            r"signal_encoder 'dot' of plugin 'second' clashes with the one of plugin 'first';"
            r" rename one of them\."
        ),
    ):
        registry.add("second", plugin())
    assert registry.plugins.keys() == {"first"} and registry.get("signal_encoder", "dot") is Dot


def test_a_repeated_name_in_one_plugin_is_an_error(registry):
    module = types.ModuleType("twice")

    @hookimpl
    def register_modulators(register):
        register("dot", Dot)
        register("dot", Dot)

    module.register_modulators = register_modulators
    with pytest.raises(
        PluginError,
        match="modulator 'dot' of plugin 'twice' clashes with the one of plugin 'twice'",
    ):
        registry.add("twice", module)


def test_one_name_for_two_kinds_is_no_clash(registry):
    registry.add("first", plugin())
    registry.add("second", plugin("register_modulators"))
    assert registry.get("modulator", "dot") is Dot


def test_a_misspelled_hook_is_an_error_and_leaves_no_trace(registry):
    with pytest.raises(Exception, match="unknown hook 'register_signal_encoder'"):
        registry.add("odd", plugin("register_signal_encoder"))
    registry.add("odd", plugin())
    assert registry.names("signal_encoder") == ["dot"]


def test_a_target_that_cannot_be_imported_names_plugin_and_target(registry):
    registry.add("lazy", plugin(target="no_such_module_anywhere:Dot"))
    with pytest.raises(
        PluginError,
        match=(
            r"signal_encoder 'dot' of plugin 'lazy' cannot be loaded from"
            r" 'no_such_module_anywhere:Dot': ModuleNotFoundError"
        ),
    ):
        registry.get("signal_encoder", "dot")


def test_a_removed_plugin_is_forgotten(registry):
    registry.add("first", plugin())
    registry.remove("first")
    assert not registry.components and not registry.plugins
    registry.add("first", plugin())


def limited(value, monkeypatch):
    monkeypatch.setenv("MODULATE_PLUGINS", value)
    return plugins.registry.__wrapped__()


@pytest.mark.parametrize(
    ("value", "names"),
    [
        ("gaze", {"gaze"}),
        ("gaze, hosts", {"gaze", "hosts"}),
        (",gaze,", {"gaze"}),
        ("", set()),
        (" ", set()),
        ("none", set()),
        (" none ", set()),
    ],
)
def test_the_environment_limits_what_is_loaded(value, names, monkeypatch):
    everything = plugins.registry().plugins.keys()
    registry = limited(value, monkeypatch)
    assert (
        registry.plugins.keys() == names
        and registry.off.keys() == everything - names
        and not registry.missing
    )
    assert all(info.off and info.location and not info.provides for info in registry.off.values())


def test_without_the_variable_all_are_loaded(monkeypatch):
    monkeypatch.delenv("MODULATE_PLUGINS", raising=False)
    registry = plugins.registry.__wrapped__()
    assert not registry.off and not registry.missing and len(registry.plugins) > 5


def test_a_misspelled_name_in_the_variable_is_an_error_for_every_component(monkeypatch):
    registry = limited("gaze,hoss", monkeypatch)
    assert registry.plugins.keys() == {"gaze"} and registry.missing.keys() == {"hoss"}
    for ask in (
        lambda: registry.get("modulator", "gaze_resampler"),
        lambda: registry.names("host"),
    ):
        with pytest.raises(
            PluginError,
            match=(
                r"MODULATE_PLUGINS names 'hoss', and no such plugin is installed\. Did you mean"
                r" 'hosts'\?"
            ),
        ):
            ask()


def test_an_unknown_component_names_the_plugins_that_are_switched_off(monkeypatch):
    with pytest.raises(
        PluginError,
        match=r"Unknown host 'qwen2_5_vl'.* Switched off by MODULATE_PLUGINS: basics, .*hosts",
    ):
        limited("gaze", monkeypatch).get("host", "qwen2_5_vl")


def test_a_plugin_that_is_switched_off_is_located_but_not_run(tmp_path, monkeypatch):
    inner = tmp_path / "quiet_package" / "inner.py"
    inner.parent.mkdir()
    (inner.parent / "__init__.py").write_text("raise SystemExit('this must not run')\n")
    inner.touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    registry = plugins.Registry(
        points(quiet="quiet_package.inner", absent="no_such_module_anywhere"), wanted=[]
    )
    assert (
        registry.off["quiet"].location == str(inner.parent / "__init__.py")
        and registry.off["absent"].location == ""
    )
    assert "quiet_package" not in sys.modules
    assert (
        plugins.Registry(points(quiet="quiet_package.inner")).plugins["quiet"].error
        == "SystemExit: this must not run"
    )


def test_every_plugin_has_its_origin():
    info = plugins.registry().plugins["gaze"]
    assert (info.distribution, info.module, info.source) == (
        "modulate",
        "modulate_gaze",
        "modulate (modulate_gaze)",
    )
    assert info.version and info.location == sys.modules["modulate_gaze"].__file__


def test_a_second_entry_point_of_a_taken_name_is_listed_and_does_not_affect_the_first():
    from importlib.metadata import EntryPoint

    from modulate.plugins import Registry

    points = [
        EntryPoint("gaze", value, "modulate") for value in ("modulate_gaze", "modulate_hosts")
    ]
    registry = Registry(points)
    assert not registry.plugins["gaze"].error and registry.names("modulator") == ["gaze_resampler"]
    second = next(p for name, p in registry.plugins.items() if name != "gaze")
    assert (
        second.error == "the entry point name 'gaze' is taken by ? (modulate_gaze); rename one"
        and not second.provides
    )
    assert len(Registry([points[0], points[0]]).plugins) == 1


# --- one in the place of another

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def test_the_shipped_plugins_are_those_of_the_project_file():
    assert {name: f"modulate_{name}" for name in installed.OURS} == PROJECT["entry-points"][
        "modulate"
    ]
    assert PROJECT["name"] == installed.DISTRIBUTION


def install(site, name, version, points, code="", folder=None):
    """Put a distribution into ``site`` as an installer does: its metadata, and a module for each
    entry point that has none.
    """
    info = site / f"{folder or name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (info / "entry_points.txt").write_text(
        "[modulate]\n" + "".join(f"{key} = {value}\n" for key, value in points.items())
    )
    for module in points.values():
        if not module.startswith("modulate_"):
            (site / f"{module}.py").write_text(
                f"from modulate.hookspecs import hookimpl\nclass Evil: ...\n{code}\n"
            )


TAKES = "@hookimpl\ndef register_modulators(register):\n    register('gaze_resampler', Evil)\n"
"""A hook that registers another's name."""


def listed(site, *args):
    """What `modulate plugins` says in a process that has ``site`` in front of its path: by name,
    and as text.
    """
    environment = os.environ | {"PYTHONPATH": str(site)}
    environment.pop("MODULATE_PLUGINS", None)
    done = [
        subprocess.run(
            [sys.executable, "-m", "modulate", "plugins", *more],
            env=environment,
            cwd=site,
            capture_output=True,
            text=True,
            timeout=60,
        )
        for more in (["--json"], [])
    ]
    assert [d.returncode for d in done] == [0, 0], done[0].stderr
    return {row["name"]: row for row in json.loads(done[0].stdout)}, done[1].stdout


def as_they_ship(rows):
    """The plugins that ship are there, each with all that it provides."""
    own = {
        name: info.provides
        for name, info in plugins.registry().plugins.items()
        if name in installed.OURS
    }
    assert {name: [(p["kind"], p["name"]) for p in rows[name]["provides"]] for name in own} == own
    assert not [name for name in own if rows[name]["error"]]
    return True


def test_shipped_plugins_have_no_notes(tmp_path):
    rows, text = listed(tmp_path)
    assert (
        as_they_ship(rows)
        and not [row for row in rows.values() if row["notes"]]
        and "note:" not in text
    )


@pytest.mark.parametrize(
    ("name", "folder"), [("modulate", None), ("Modulate", None), ("modulate", "something_else")]
)
@pytest.mark.parametrize("version", ["0.1.0", "9.9"])
def test_another_distribution_called_modulate_is_listed_and_replaces_nothing(
    tmp_path, name, version, folder
):
    install(tmp_path, name, version, {"gaze": "evil_gaze", "more": "evil_more"}, TAKES, folder)
    rows, text = listed(tmp_path)
    assert as_they_ship(rows)
    assert all("distributions are called" in " ".join(rows[own]["notes"]) for own in installed.OURS)
    assert str(tmp_path) in text and re.search(
        r"  note: \d distributions are called 'modulate': ", text
    )
    for plugin, module in (("gaze", "evil_gaze"), ("more", "evil_more")):
        row = rows[f"{plugin} of {name} ({module})"]
        assert (
            row["error"]
            == f"not loaded: an earlier distribution is called {name!r} as well; rename one"
            and not row["provides"]
        )
        assert any(
            "its distribution calls itself 'modulate', but the plugin does not ship with"
            in note
            for note in row["notes"]
        )


def test_two_distributions_with_one_name_are_noted(tmp_path):
    for version, module in (("1.0", "first_one"), ("2.0", "second_one")):
        install(tmp_path, "modulate-extra", version, {"extra": module})
    rows, _ = listed(tmp_path)
    mine = {name: row for name, row in rows.items() if row["distribution"] == "modulate-extra"}
    assert len(mine) == 2 and sum(bool(row["error"]) for row in mine.values()) == 1
    assert all(
        "2 distributions are called 'modulate-extra': " in " ".join(row["notes"])
        for row in mine.values()
    )


def test_an_entry_point_with_the_name_of_a_shipped_plugin_is_listed_and_not_run(tmp_path):
    install(
        tmp_path, "aardvark", "1.0", {"gaze": "evil_gaze"}, "raise SystemExit('this must not run')"
    )
    rows, text = listed(tmp_path)
    row = rows["gaze of aardvark (evil_gaze)"]
    assert (
        as_they_ship(rows)
        and row["error"]
        == "the entry point name 'gaze' is taken by modulate (modulate_gaze); rename one"
    )
    assert row["notes"] == [
        "it has the name of a plugin that ships with modulate, but is another one: the shipped"
        " plugin is modulate_gaze"
    ]
    assert "  note: it has the name of a plugin that ships" in text


def test_names_of_shipped_plugins_cannot_be_taken_by_plugins_that_sort_before_them(tmp_path):
    install(
        tmp_path, "aardvark", "1.0", {"aaa": "evil_aaa"}, TAKES
    )  # in front of `gaze` in the alphabet
    rows, _ = listed(tmp_path)
    assert as_they_ship(rows)
    assert (
        rows["aaa"]["error"]
        == "PluginError: modulator 'gaze_resampler' of plugin 'aaa' clashes with the one of plugin"
        " 'gaze'; rename one of them."
    )


def test_a_shipped_module_from_elsewhere_is_noted(tmp_path):
    (tmp_path / "modulate_hand.py").write_text("")
    rows, text = listed(tmp_path)
    assert (
        rows["hand"]["location"] == str(tmp_path / "modulate_hand.py")
        and len(rows["hand"]["notes"]) == 1
    )
    assert re.search(
        r"note: the module modulate_hand that ships with modulate lies beside .*; this one has its"
        r" name, and is run in its place",
        text,
    )


def test_a_plugin_that_is_switched_off_is_noted_too(tmp_path, monkeypatch):
    install(tmp_path, "aardvark", "1.0", {"gaze": "evil_gaze"})
    monkeypatch.syspath_prepend(str(tmp_path))
    registry = limited("none", monkeypatch)
    assert {"gaze", "gaze of aardvark (evil_gaze)"} <= registry.off.keys() and registry.off[
        "gaze of aardvark (evil_gaze)"
    ].notes


REACHES = """
@hookimpl
def register_backbones(register):
    cells = dict(zip(register.__code__.co_freevars, register.__closure__))
    registry = cells["self"].cell_contents
"""


@pytest.mark.parametrize(
    ("line", "told"),
    [
        (
            (
                "registry.components['signal_encoder', 'dot'] ="
                " registry.components['signal_encoder', 'dot'].__class__('signal_encoder', 'dot',"
                " Evil, 'first')"
            ),
            "signal_encoder 'dot'",
        ),
        (
            (
                "registry.components['modulator', 'more'] = None or"
                " registry.components['signal_encoder', 'dot']"
            ),
            "modulator 'more'",
        ),
        ("del registry.components['signal_encoder', 'dot']", "signal_encoder 'dot'"),
        ("registry.manager.unregister(name='first')", "plugin 'first'"),
        ("registry.components.clear(); raise ValueError('and fails')", "signal_encoder 'dot'"),
    ],
)
def test_changes_of_a_hook_to_names_of_others_are_undone_and_reported(registry, line, told):
    registry.add("first", plugin())
    module = types.ModuleType("reaching")
    exec(
        compile(
            f"from modulate.hookspecs import hookimpl\nclass Evil: ...\n{REACHES}    {line}\n",
            "reaching",
            "exec",
        ),
        module.__dict__,
    )
    before = dict(registry.components)
    with pytest.raises(
        PluginError,
        match=(
            re.escape(told)
            if "raise" not in line
            else "failed in its hook register_backbones: ValueError: and fails"
        ),
    ):
        registry.add("second", module)
    assert (
        registry.components == before
        and registry.get("signal_encoder", "dot") is Dot
        and registry.plugins.keys() == {"first"}
    )
    assert dict(registry.manager.list_name_plugin()).keys() == {"first"}


@pytest.mark.parametrize(
    "line",
    [
        "cli.registered_commands[0].callback = print",
        "del cli.registered_commands[0]",
        "cli.registered_groups.clear()",
        "cli.registered_commands.reverse()",
    ],
)
def test_a_plugin_cannot_replace_commands_of_others(line, registry, capsys):
    from typer.testing import CliRunner

    from modulate import cli

    module = types.ModuleType("commanding")
    exec(
        compile(
            "from modulate.hookspecs import hookimpl\n@hookimpl\ndef register_commands(cli):\n   "
            f" {line}\n",
            "commanding",
            "exec",
        ),
        module.__dict__,
    )
    registry.add("second", module)
    app = cli.build(registry)
    assert (
        registry.plugins["second"].error
        == "PluginError: the plugin 'second' changed commands that are not its own."
    )
    before = [(c.name, c.callback) for c in cli.build(plugins.Registry([])).registered_commands]
    assert [(c.name, c.callback) for c in app.registered_commands] == before
    assert (
        "are left out" in capsys.readouterr().err
        and CliRunner().invoke(app, ["recipe", "--help"]).exit_code == 0
    )

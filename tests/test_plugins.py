"""Plugins: broken ones are listed with their reason, clashes are errors, unknown names get help."""

import re
import sys
import types
from importlib.metadata import EntryPoint

import pytest

from modulate import plugins
from modulate.errors import PluginError
from modulate.hookspecs import hookimpl


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
    assert registry.plugins.keys() == names
    assert registry.off.keys() == everything - names
    assert not registry.missing
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
    assert registry.off["quiet"].location == str(inner.parent / "__init__.py")
    assert registry.off["absent"].location == ""
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
    second = next(plugin for name, plugin in registry.plugins.items() if name != "gaze")
    assert second.error == "the entry point name 'gaze' is taken by ? (modulate_gaze); rename one"
    assert not second.provides
    assert len(Registry([points[0], points[0]]).plugins) == 1


# --- changes to what others registered

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
    assert registry.components == before
    assert registry.get("signal_encoder", "dot") is Dot
    assert registry.plugins.keys() == {"first"}
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
    before = [
        (command.name, command.callback)
        for command in cli.build(plugins.Registry([])).registered_commands
    ]
    assert [(command.name, command.callback) for command in app.registered_commands] == before
    assert "are left out" in capsys.readouterr().err
    assert CliRunner().invoke(app, ["recipe", "--help"]).exit_code == 0


# --- clashes, and components that cannot be imported


def installed(folder, name, code, version="1.0"):
    """A distribution in ``folder`` with one plugin, as pip would leave it."""
    (folder / f"{name}.py").write_text("from modulate.hookspecs import hookimpl\n" + code)
    metadata = folder / f"{name}-{version}.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (metadata / "entry_points.txt").write_text(f"[modulate]\n{name} = {name}\n")


def registering(hook, *names, target="no_such_module_anywhere:Dot"):
    lines = [f"    register({name!r}, {target!r})\n" for name in names]
    return f"@hookimpl\ndef {hook}(register):\n" + "".join(lines)


@pytest.fixture
def process(tmp_path, monkeypatch):
    """The registry of a process in which more packages are installed; call it once they are."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delenv("MODULATE_PLUGINS", raising=False)
    yield plugins.registry.__wrapped__
    for path in tmp_path.glob("*.py"):
        sys.modules.pop(path.stem, None)


@pytest.mark.parametrize(
    ("hook", "kind", "taken"),
    [
        ("register_signals", "signal", "gaze"),
        ("register_signal_encoders", "signal_encoder", "coord_pe"),
        ("register_modulators", "modulator", "film"),
        ("register_backbones", "backbone", "dinov2"),
        ("register_datasets", "dataset", "tabletop"),
        ("register_inputs", "input", "gaze_text"),
        ("register_hosts", "host", "qwen2_vl"),
    ],
)
def test_a_newcomer_that_takes_a_shipped_name_is_left_out_and_the_shipped_one_stays(
    hook, kind, taken, tmp_path, process
):
    installed(tmp_path, "aaa_first", registering(hook, "own", taken))
    registry = process()
    newcomer = registry.plugins["aaa_first"]
    assert not newcomer.provides and (kind, "own") not in registry.components
    assert newcomer.clashes == [(kind, taken)]
    assert newcomer.error.startswith(
        f"PluginError: {kind} {taken!r} of plugin 'aaa_first' clashes with the one of plugin"
    )
    assert newcomer.error.endswith(
        "rename one of them. 'aaa_first' came later and registers nothing."
    )
    shipped = registry.components[kind, taken].plugin
    assert not registry.plugins[shipped].error
    with pytest.warns(
        UserWarning,
        match=f"is the one of plugin '{shipped}'. That of 'aaa_first' has the same name",
    ):
        assert registry.get(kind, taken).__module__.startswith(f"modulate_{shipped}")


@pytest.mark.parametrize(
    ("code", "remedy"),
    [
        ("import no_such_library", "Install the package that has the module 'no_such_library'."),
        ("class Other: ...", "Correct the name in the plugin's register_backbones, which must be"),
        ("1 / 0", "Mend that module, or install another version of the plugin."),
    ],
)
def test_a_component_that_cannot_be_imported_stops_only_those_who_ask_for_it(
    code, remedy, tmp_path, process
):
    (tmp_path / "its_module.py").write_text(code)
    installed(
        tmp_path, "broken_part", registering("register_backbones", "own", target="its_module:Own")
    )
    registry = process()
    assert not registry.plugins["broken_part"].error
    with pytest.raises(
        PluginError, match="backbone 'own' of plugin 'broken_part' cannot be loaded"
    ) as caught:
        registry.get("backbone", "own")
    assert remedy in str(caught.value)
    assert registry.get("backbone", "dinov2").__name__ == "DinoV2"
    with pytest.warns(UserWarning, match="'own' of plugin 'broken_part' cannot be.*left out here"):
        assert dict(registry.loadable("backbone")).keys() == {"dinov2", "vjepa2_1"}


def test_a_module_that_is_not_there_is_a_wrong_name_in_the_hook(tmp_path, process):
    installed(
        tmp_path, "elsewhere", registering("register_signals", "own", target="elsewhere.part:Own")
    )
    with pytest.raises(PluginError, match=r"Correct the name in the plugin's register_signals"):
        process().get("signal", "own")


def test_the_plugin_that_provides_a_component_is_known():
    registry = plugins.registry()
    info = registry.provider("modulator", "film")
    assert (info.name, info.package) == ("basics", f"modulate {info.version}")
    assert registry.provider("modulator", "none") is None

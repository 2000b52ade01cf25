"""Finding plugins: broken ones are kept with their reason, clashes and misspelt hooks are errors, names are resolved with help."""

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


def test_everything_that_ships_loads():
    found = plugins.registry().plugins
    assert {"gaze", "hosts", "streamgaze", "tabletop", "vjepa", "dinov2"} <= found.keys()
    assert not [p for p in found.values() if p.error]


def test_every_registered_component_can_be_imported():
    for kind, name in plugins.registry().components:
        assert isinstance(plugins.get(kind, name), type)


def test_a_broken_plugin_is_listed_with_its_reason_while_others_work(monkeypatch):
    monkeypatch.setitem(sys.modules, "works_well", plugin())
    registry = plugins.Registry(points(absent="no_such_module_anywhere", works="works_well"))
    assert registry.plugins["absent"].error == "ModuleNotFoundError: No module named 'no_such_module_anywhere'"
    assert registry.plugins["works"].provides == [("signal_encoder", "dot")]
    assert registry.get("signal_encoder", "dot") is Dot


def test_using_what_a_broken_plugin_may_have_provided_repeats_its_reason():
    registry = plugins.Registry(points(absent="no_such_module_anywhere"))
    with pytest.raises(PluginError, match=r"Unknown modulator 'x'\. Known: none\..*Broken plugins.*absent \(ModuleNotFoundError: No module named"):
        registry.get("modulator", "x")


def test_an_unknown_name_gets_near_matches():
    with pytest.raises(PluginError, match=r"Unknown modulator 'gaze_resample'\. Did you mean 'gaze_resampler'\?.*`modulate plugins` lists them"):
        plugins.get("modulator", "gaze_resample")


def test_a_name_clash_is_an_error_and_leaves_no_trace(registry):
    registry.add("first", plugin())
    with pytest.raises(PluginError, match=r"signal_encoder 'dot' of plugin 'second' clashes with the one of plugin 'first'; rename one of them\."):
        registry.add("second", plugin())
    assert registry.plugins.keys() == {"first"} and registry.get("signal_encoder", "dot") is Dot


def test_a_name_twice_in_one_plugin_is_an_error(registry):
    module = types.ModuleType("twice")

    @hookimpl
    def register_modulators(register):
        register("dot", Dot)
        register("dot", Dot)

    module.register_modulators = register_modulators
    with pytest.raises(PluginError, match="modulator 'dot' of plugin 'twice' clashes with the one of plugin 'twice'"):
        registry.add("twice", module)


def test_one_name_of_two_kinds_is_no_clash(registry):
    registry.add("first", plugin())
    registry.add("second", plugin("register_modulators"))
    assert registry.get("modulator", "dot") is Dot


def test_a_misspelt_hook_is_an_error_and_leaves_no_trace(registry):
    with pytest.raises(Exception, match="unknown hook 'register_signal_encoder'"):
        registry.add("odd", plugin("register_signal_encoder"))
    registry.add("odd", plugin())
    assert registry.names("signal_encoder") == ["dot"]


def test_a_target_that_cannot_be_imported_names_plugin_and_target(registry):
    registry.add("lazy", plugin(target="no_such_module_anywhere:Dot"))
    with pytest.raises(PluginError, match=r"signal_encoder 'dot' of plugin 'lazy' cannot be loaded from 'no_such_module_anywhere:Dot': ModuleNotFoundError"):
        registry.get("signal_encoder", "dot")


def test_a_removed_plugin_is_forgotten(registry):
    registry.add("first", plugin())
    registry.remove("first")
    assert not registry.components and not registry.plugins
    registry.add("first", plugin())


@pytest.mark.parametrize(("value", "names"), [("gaze", {"gaze"}), ("gaze, hosts", {"gaze", "hosts"}), ("", set())])
def test_the_environment_limits_what_is_loaded(value, names, monkeypatch):
    monkeypatch.setenv("MODULATE_PLUGINS", value)
    assert plugins.registry.__wrapped__().plugins.keys() == names


def test_a_second_entry_point_of_a_taken_name_is_listed_and_leaves_the_first_alone():
    from importlib.metadata import EntryPoint

    from modulate.plugins import Registry

    points = [EntryPoint("gaze", value, "modulate") for value in ("modulate_gaze", "modulate_hosts")]
    registry = Registry(points)
    assert not registry.plugins["gaze"].error and registry.names("modulator") == ["gaze_resampler"]
    second = next(p for name, p in registry.plugins.items() if name != "gaze")
    assert second.error == "the entry point name 'gaze' is taken by ? (modulate_gaze); rename one" and not second.provides
    assert len(Registry([points[0], points[0]]).plugins) == 1

"""Extension points: each is called with a function that registers names of its own kind."""

import pytest

from modulate import hookspecs, plugins
from modulate.errors import PluginError

SPECS = {
    name: function
    for name, function in vars(hookspecs).items()
    if hasattr(function, hookspecs.hookspec.project_name + "_spec")
}
KINDS = [name for name in sorted(SPECS) if name != "register_commands"]


def plugin(hook, name, target):
    """A plugin module, as pluggy sees it, with one hook."""

    class Module:
        pass

    def implementation(register):
        register(name, target)

    setattr(Module, hook, staticmethod(hookspecs.hookimpl(implementation)))
    return Module


def test_there_is_an_extension_point_for_each_kind_and_one_for_commands():
    assert len(KINDS) == len(SPECS) - 1 == 7


@pytest.mark.parametrize("hook", KINDS)
def test_a_hook_registers_under_its_kind_and_is_loaded_when_asked_for(hook):
    registry = plugins.Registry([])
    registry.add("made", plugin(hook, "own", "collections:OrderedDict"))
    kind = hook.removeprefix("register_").removesuffix("s")
    found = registry.get(kind, "own")
    assert found.__name__ == "OrderedDict"
    with pytest.raises(PluginError, match="other"):
        registry.get(kind, "other")

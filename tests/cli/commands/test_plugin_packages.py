"""`modulate plugins`."""

import json
from importlib.metadata import EntryPoint

from modulate import plugins
from tests.paths import ROOT


def test_plugins_lists_what_each_provides(modulate):
    rows = {row["name"]: row for row in json.loads(modulate("plugins", "--json")[1])}
    assert {"kind": "signal_encoder", "name": "coord_rel"} in rows["gaze"]["provides"]
    assert rows["gaze"]["source"] == "modulate (modulate_gaze)"
    assert rows["gaze"]["version"]
    assert not rows["gaze"]["error"]


def test_listing_and_help_show_what_the_environment_switches_off(modulate, monkeypatch):
    monkeypatch.setenv("MODULATE_PLUGINS", "gaze,hoss")
    registry = plugins.registry.__wrapped__()
    monkeypatch.setattr(plugins, "registry", lambda: registry)
    code, out, _ = modulate("plugins")
    assert code == 0
    assert "  off: MODULATE_PLUGINS does not name it" in out
    assert "  broken: MODULATE_PLUGINS names 'hoss'" in out
    assert f"  from: {ROOT / 'plugins' / 'modulate_vjepa' / '__init__.py'}" in out
    rows = {row["name"]: row for row in json.loads(modulate("plugins", "--json")[1])}
    assert rows["vjepa"]["off"]
    assert not rows["vjepa"]["provides"]
    assert not rows["gaze"]["off"]
    assert rows["hoss"]["error"]
    assert {"distribution", "version", "module", "location"} <= rows["gaze"].keys()
    assert rows["gaze"]["location"].endswith("modulate_gaze/__init__.py")
    code, out, _ = modulate("--help")
    assert code == 0
    assert "Switched off by MODULATE_PLUGINS: basics, dinov2, hand," in " ".join(out.split())
    code, _, err = modulate("cat", "gazeqwen_tiny", "--resolved")
    assert code == 1 and err.startswith("Error: MODULATE_PLUGINS names 'hoss'")


def test_plugins_lists_a_broken_one_with_its_reason(modulate, monkeypatch):
    registry = plugins.Registry([EntryPoint("absent", "no_such_module_anywhere", plugins.GROUP)])
    monkeypatch.setattr(plugins, "registry", lambda: registry)
    code, out, _ = modulate("plugins")
    assert code == 0
    assert "broken: ModuleNotFoundError: No module named 'no_such_module_anywhere'" in out

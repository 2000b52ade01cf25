"""Names that are used twice: of distributions, entry points and modules."""

import json
import os
import re
import subprocess
import sys
import tomllib

import pytest

from modulate import plugins
from modulate.utils import entry_points as installed
from tests.paths import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def test_the_shipped_plugins_are_those_of_the_project_file():
    assert {name: f"modulate_{name}" for name in installed.OURS} == PROJECT["entry-points"][
        "modulate"
    ]
    assert PROJECT["name"] == installed.DISTRIBUTION


def install(site, name, version, points, code="", folder=None):
    """Install a distribution into ``site``: its metadata, and a module for each entry point."""
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
"""A hook that registers a name of a shipped plugin."""


def run_plugins(site, *args):
    """Return the output of `modulate plugins` with ``site`` first on the path: rows, text."""
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


def shipped_are_complete(rows):
    """Assert that every shipped plugin is listed with everything it provides."""
    own = {
        name: info.provides
        for name, info in plugins.registry().plugins.items()
        if name in installed.OURS
    }
    assert {
        name: [(component["kind"], component["name"]) for component in rows[name]["provides"]]
        for name in own
    } == own
    assert not [name for name in own if rows[name]["error"]]
    return True


def test_shipped_plugins_have_no_notes(tmp_path):
    rows, text = run_plugins(tmp_path)
    assert shipped_are_complete(rows)
    assert not [row for row in rows.values() if row["notes"]]
    assert "note:" not in text


@pytest.mark.parametrize(
    ("name", "folder"), [("modulate", None), ("Modulate", None), ("modulate", "something_else")]
)
@pytest.mark.parametrize("version", ["0.1.0", "9.9"])
def test_another_distribution_called_modulate_is_listed_and_replaces_nothing(
    tmp_path, name, version, folder
):
    install(tmp_path, name, version, {"gaze": "evil_gaze", "more": "evil_more"}, TAKES, folder)
    rows, text = run_plugins(tmp_path)
    assert shipped_are_complete(rows)
    assert all("distributions are called" in " ".join(rows[own]["notes"]) for own in installed.OURS)
    assert str(tmp_path) in text
    assert re.search(r"  note: \d distributions are called 'modulate': ", text)
    for plugin, module in (("gaze", "evil_gaze"), ("more", "evil_more")):
        row = rows[f"{plugin} of {name} ({module})"]
        assert (
            row["error"]
            == f"not loaded: an earlier distribution is called {name!r} as well; rename one"
        )
        assert not row["provides"]
        assert any(
            "its distribution calls itself 'modulate', but the plugin does not ship with" in note
            for note in row["notes"]
        )


def test_two_distributions_with_one_name_are_noted(tmp_path):
    for version, module in (("1.0", "first_one"), ("2.0", "second_one")):
        install(tmp_path, "modulate-extra", version, {"extra": module})
    rows, _ = run_plugins(tmp_path)
    copies = {name: row for name, row in rows.items() if row["distribution"] == "modulate-extra"}
    assert len(copies) == 2 and sum(bool(row["error"]) for row in copies.values()) == 1
    assert all(
        "2 distributions are called 'modulate-extra': " in " ".join(row["notes"])
        for row in copies.values()
    )


def test_an_entry_point_with_the_name_of_a_shipped_plugin_is_listed_and_not_run(tmp_path):
    install(
        tmp_path, "aardvark", "1.0", {"gaze": "evil_gaze"}, "raise SystemExit('this must not run')"
    )
    rows, text = run_plugins(tmp_path)
    row = rows["gaze of aardvark (evil_gaze)"]
    assert shipped_are_complete(rows)
    assert (
        row["error"]
        == "the entry point name 'gaze' is taken by modulate (modulate_gaze); rename one"
    )
    assert row["notes"] == [
        "it has the name of a plugin that ships with modulate, but is another one: the shipped"
        " plugin is modulate_gaze"
    ]
    assert "  note: it has the name of a plugin that ships" in text


def test_names_of_shipped_plugins_cannot_be_taken_by_plugins_that_sort_before_them(tmp_path):
    # sorts before `gaze`
    install(tmp_path, "aardvark", "1.0", {"aaa": "evil_aaa"}, TAKES)
    rows, _ = run_plugins(tmp_path)
    assert shipped_are_complete(rows)
    assert (
        rows["aaa"]["error"]
        == "PluginError: modulator 'gaze_resampler' of plugin 'aaa' clashes with the one of plugin"
        " 'gaze'; rename one of them. 'aaa' came later and registers nothing."
    )


def test_a_shipped_module_from_elsewhere_is_noted(tmp_path):
    (tmp_path / "modulate_hand.py").write_text("")
    rows, text = run_plugins(tmp_path)
    assert rows["hand"]["location"] == str(tmp_path / "modulate_hand.py")
    assert len(rows["hand"]["notes"]) == 1
    assert re.search(
        r"note: the module modulate_hand that ships with modulate lies beside .*; this one has its"
        r" name and runs in its place",
        text,
    )


def test_a_plugin_that_is_switched_off_is_noted_too(tmp_path, monkeypatch):
    install(tmp_path, "aardvark", "1.0", {"gaze": "evil_gaze"})
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("MODULATE_PLUGINS", "none")
    registry = plugins.registry.__wrapped__()
    assert {"gaze", "gaze of aardvark (evil_gaze)"} <= registry.off.keys()
    assert registry.off["gaze of aardvark (evil_gaze)"].notes

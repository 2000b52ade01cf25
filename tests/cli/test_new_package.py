"""`modulate new` writes packages whose own tests pass where they are installed."""

import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from modulate.cli.new_package import KINDS, TEMPLATES, write_package
from modulate.errors import DataError, PluginError
from tests.paths import ROOT
from tests.processes import python


def install(package, site):
    """Make a package importable with the metadata that pip would write."""
    project = tomllib.loads((package / "pyproject.toml").read_text())["project"]
    (module,) = package.glob("modulate_*")
    (site / module.name).symlink_to(module)
    info = site / f"{module.name}-{project['version']}.dist-info"
    info.mkdir()
    metadata = f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
    (info / "METADATA").write_text(metadata)
    points = project["entry-points"]["modulate"]
    lines = [f"{name} = {value}\n" for name, value in points.items()]
    (info / "entry_points.txt").write_text("[modulate]\n" + "".join(lines))


@pytest.fixture(scope="module")
def every_kind(tmp_path_factory):
    """A package of each kind, installed in one place: the folder of packages, and the place."""
    folder = tmp_path_factory.mktemp("packages")
    site = tmp_path_factory.mktemp("site")
    for kind in KINDS:
        install(write_package(kind, f"my_{kind}", folder), site)
    return folder, site


def test_there_are_templates_for_each_kind_and_no_others():
    assert {path.name for path in TEMPLATES.iterdir()} == {*KINDS, "common"}


def test_the_tests_of_every_generated_package_pass(every_kind):
    folder, site = every_kind
    # PEFT asks transformers in a way that transformers deprecates.
    options = ("-q", "-rs", "-W", "error", "-W", "ignore::FutureWarning", "-p", "no:cacheprovider")
    code, out, err = python("-m", "pytest", *options, ".", cwd=folder, path=site)
    assert code == 0, out[-4000:] + err[-2000:]
    tests = {path.parent.parent.name for path in folder.glob("*/tests/test_*.py")}
    assert tests == {f"modulate-my-{kind}" for kind in KINDS}
    # Rows of hosts that may not apply: one needs flash attention, one a processor.
    skipped = [line for line in out.splitlines() if line.startswith("SKIPPED")]
    assert all("CUDA" in line or "no processor" in line for line in skipped), skipped


def test_the_generated_plugins_are_listed_and_work(every_kind):
    folder, site = every_kind
    code, out, err = python("-m", "modulate", "plugins", "--load", "--json", cwd=folder, path=site)
    assert code == 0, err
    rows = {row["name"]: row for row in json.loads(out)}
    for kind, component_kind in KINDS.items():
        row = rows[f"my_{kind}"]
        assert not row["error"] and not row["notes"], row
        assert row["distribution"] == f"modulate-my-{kind}" and row["version"] == "0.1.0"
        assert {"kind": component_kind, "name": f"my_{kind}"} in row["provides"]


def test_generated_files_are_formatted_and_clean(every_kind):
    folder, _ = every_kind
    for command in (("check", "--select", "E,F,W,I,B,UP,C4,SIM"), ("format", "--check")):
        ruff = Path(sys.executable).with_name("ruff")
        done = subprocess.run(
            [ruff, *command, "--isolated", "--line-length", "100", "."],
            cwd=folder,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout


def test_a_generated_package_installs_with_pip(tmp_path):
    package = write_package("signal", "heart_rate", tmp_path)
    target = tmp_path / "site"
    command = ["-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]
    code, _, err = python(*command, "--target", target, package, cwd=tmp_path)
    assert code == 0, err
    code, out, err = python("-m", "pytest", "-q", package / "tests", cwd=tmp_path, path=target)
    assert code == 0, out + err


def test_nothing_is_overwritten(tmp_path):
    folder = write_package("signal", "pupil", tmp_path)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    for kind in ("signal", "encoder"):
        with pytest.raises(DataError, match=r"modulate-pupil exists; nothing is overwritten"):
            write_package(kind, "pupil", tmp_path)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


@pytest.mark.parametrize(
    ("kind", "name", "text"),
    [
        ("signals", "pupil", r"No kind of plugin is called 'signals'\. Did you mean 'signal'\?"),
        ("signal", "Pupil", "'Pupil' is no name for a plugin"),
        ("signal", "2d", "'2d' is no name"),
        ("signal", "class", "'class' is no name"),
        ("signal", "../evil", "is no name"),
        ("signal", "x" * 41, "is no name"),
        ("signal", "gaze", "signal 'gaze' exists: the plugin 'gaze' provides it"),
        ("encoder", "coord_pe", "signal_encoder 'coord_pe' exists: the plugin 'gaze' provides it"),
        ("encoder", "hosts", "A plugin or package modulate_hosts is installed"),
    ],
)
def test_names_that_are_none_or_taken_are_refused(kind, name, text, tmp_path):
    with pytest.raises(PluginError, match=text):
        write_package(kind, name, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_dashes_in_a_name_become_underscores(tmp_path):
    folder = write_package("input", "heart-rate", tmp_path)
    assert folder.name == "modulate-heart-rate"
    assert (
        "class HeartRate(InputTransform)"
        in (folder / "modulate_heart_rate" / "transform.py").read_text()
    )


def test_templates_ship_with_the_package():
    data = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    patterns = data["package-data"]["modulate.cli"]
    found = {path for pattern in patterns for path in (ROOT / "modulate" / "cli").glob(pattern)}
    assert found == set(TEMPLATES.rglob("*.template"))

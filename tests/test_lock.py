"""The lock covers every dependency with verified releases, whatever machine made it."""

import importlib.util
import re
import subprocess
import sys

import pytest
from packaging.specifiers import SpecifierSet
from packaging.version import Version

from modulate import plugins
from modulate.hosts.verified_versions import LibraryVersions, verified_versions, why_unverified
from tests.paths import ROOT

SPEC = importlib.util.spec_from_file_location(
    "environments", ROOT / "requirements" / "environments.py"
)
environments = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(environments)
FILES = [environments.LOCK, environments.CUDA]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_constraint_file_is_a_head_and_plain_releases(path):
    lines = path.read_text().splitlines()
    assert lines[0].startswith("# ") and re.fullmatch(
        r"# Do not edit: made by `make lock` on \d{4}-\d\d-\d\d with Python 3\.\d+\.\d+, pip"
        r" [\d.]+, \w+ \w+\.",
        lines[1],
    )
    # No local builds: torch==2.14.1 accepts 2.14.1+cpu, but not the other way round.
    assert [
        line for line in lines[2:] if not re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.]+", line)
    ] == []
    assert not any(word in line for line in lines for word in ("://", "--", "@ "))


def test_releases_for_the_cuda_build_have_their_own_file():
    names = [
        [line.split("==")[0] for line in path.read_text().splitlines() if not line.startswith("#")]
        for path in FILES
    ]
    assert not any(map(environments.for_cuda, names[0]))
    assert all(map(environments.for_cuda, names[1]))
    assert {"torch", "torchvision", "transformers", "peft", "pip", "setuptools"} <= set(names[0])


def test_the_lock_has_a_release_of_every_dependency():
    locked = environments.locked()
    floors = environments.floors()
    assert len(floors) > 20 and floors.keys() <= locked.keys()
    assert [
        name for name, lowest in floors.items() if Version(locked[name]) < Version(lowest)
    ] == []


def test_a_local_build_of_a_locked_release_is_that_release():
    torch = environments.locked()["torch"]
    locked = SpecifierSet(f"=={torch}")
    assert locked.contains(f"{torch}+cpu")
    assert locked.contains(f"{torch}+cu126")


def test_the_locked_releases_are_verified_ones():
    locked = environments.locked()
    versions = LibraryVersions(*(locked[name] for name in ("transformers", "torch", "peft")))
    assert why_unverified(versions, verified_versions(plugins.registry())) is None


def test_the_lowest_transformers_is_a_verified_one():
    floors = environments.floors()
    seen = [version.transformers for version in verified_versions(plugins.registry())]
    assert floors["transformers"] in {".".join(v.split(".")[:2]) for v in seen}


def test_a_dependency_without_a_lowest_release_is_refused(tmp_path, monkeypatch):
    (tmp_path / "pyproject.toml").write_text(
        '[project]\ndependencies = ["a>=1.2", "b"]\noptional-dependencies = {dev = ["a>=1.10"],'
        " quantized = []}\n"
    )
    monkeypatch.setattr(environments, "ROOT", tmp_path)
    with pytest.raises(SystemExit, match="'b' names no lowest release"):
        environments.floors()
    (tmp_path / "pyproject.toml").write_text(
        '[project]\ndependencies = ["a>=1.2", "B_c>=2"]\noptional-dependencies = {dev ='
        ' ["a>=1.10"], quantized = []}\n'
    )
    assert environments.floors() == {"a": "1.10", "b-c": "2"}


@pytest.mark.parametrize(
    ("newest", "code", "said"),
    [
        ({}, 3, ""),
        ({"torch": "99.0"}, 0, "torch: "),
        ({"new-one": "1.0"}, 0, "new-one: not there in the lock, newest 1.0"),
    ],
)
def test_releases_newer_than_the_lock_are_listed(newest, code, said, monkeypatch, capsys):
    resolved = {
        name: release for name, release in environments.locked().items() if name != "pip"
    } | newest
    monkeypatch.setattr(environments, "resolve", lambda python: resolved)
    assert environments.changes() == code
    assert capsys.readouterr().out.startswith(said)


@pytest.mark.parametrize(
    ("stderr", "code"), [("ERROR: ResolutionImpossible: for help", 1), ("Max retries exceeded", 4)]
)
def test_an_unreachable_index_is_distinguished_from_a_conflict(stderr, code, monkeypatch, capsys):
    def refuse(python):
        raise subprocess.CalledProcessError(1, [sys.executable], stderr=stderr)

    monkeypatch.setattr(environments, "resolve", refuse)
    assert environments.changes() == code
    assert stderr in capsys.readouterr().err

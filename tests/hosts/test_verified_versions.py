"""Attaching warns once of unverified library versions; `modulate hosts --verify` verifies them."""

import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from typer.testing import CliRunner

from modulate import plugins
from modulate.cli import build
from modulate.errors import PluginError, UnverifiedWarning
from modulate.hosts import verified_versions as verified
from modulate.hosts.verified_versions import (
    LibraryVersions,
    add_locally_verified,
    locally_verified,
    verified_versions,
    why_unverified,
)
from modulate.modulation import conditioning
from modulate_hosts.contract.suite import fresh, rows
from tests.tiny import qwen

VERIFIED = [
    LibraryVersions("5.17.0", "2.11.0", "0.18.0"),
    LibraryVersions("5.24.0", "2.14.1", "0.21.2"),
    LibraryVersions("5.23.0", "2.13.0"),
]


@pytest.mark.parametrize(
    ("installed", "expected"),
    [
        (LibraryVersions("5.24.0", "2.14.1", "0.21.2"), None),
        (LibraryVersions("5.17.3", "2.11.4", "0.21.9"), None),  # patch releases are not told apart
        (
            LibraryVersions("5.24.0.dev0", "2.12.0", "0.19.0"),
            None,
        ),  # torch and peft: anywhere between
        (
            LibraryVersions("5.20.1", "2.14.1", "0.21.2"),
            "transformers 5.20.1; it was with 5.17, 5.23, 5.24",
        ),
        (
            LibraryVersions("5.25.0", "2.14.1", "0.21.2"),
            "transformers 5.25.0; it was with 5.17, 5.23, 5.24",
        ),
        (
            LibraryVersions("6.17.0", "2.14.1", "0.21.2"),
            "transformers 6.17.0; it was with 5.17, 5.23, 5.24",
        ),
        (
            LibraryVersions("5.24.0", "2.15.0", "0.21.2"),
            "torch 2.15.0; it was with 2.11.0 to 2.14.1",
        ),
        (LibraryVersions("5.24.0", "2.9.1", "0.21.2"), "torch 2.9.1; it was with 2.11.0 to 2.14.1"),
        (
            LibraryVersions("5.24.0", "2.14.1", "0.22.0"),
            "peft 0.22.0; it was with 0.18.0 to 0.21.2",
        ),
        (LibraryVersions("5.24.0", "2.14.1", "0.3.0"), "peft 0.3.0; it was with 0.18.0 to 0.21.2"),
    ],
)
def test_a_version_outside_of_the_verified_ones_is_named(installed, expected):
    assert why_unverified(installed, VERIFIED) == expected


def test_without_any_record_every_version_passes():
    assert why_unverified(LibraryVersions("9.9.9", "9.9.9", "9.9.9"), []) is None


def test_the_hosts_plugin_ships_a_record_of_versions():
    recorded = verified_versions(plugins.registry())
    assert {versions.transformers for versions in recorded} >= {"5.17.0"}
    assert all(versions.torch and "+" not in versions.torch for versions in recorded)


@pytest.fixture
def newer(monkeypatch, tmp_path):
    """The installed versions are newer than all verified ones, and this machine verified none."""
    monkeypatch.setenv(verified.CACHE_VARIABLE, str(tmp_path / "notes"))
    monkeypatch.setattr(
        verified, "verified_versions", lambda registry: [LibraryVersions("4.0.0", "1.0.0", "0.1.0")]
    )
    monkeypatch.setattr(verified, "_warned", [])
    verified._warning_text.cache_clear()
    yield
    verified._warning_text.cache_clear()


def warnings_of_attaching(recwarn):
    recwarn.clear()
    host = qwen()
    fresh(host).attach(host).detach()
    return [str(w.message) for w in recwarn if w.category is UnverifiedWarning]


@pytest.mark.filterwarnings("always::modulate.errors.UnverifiedWarning")
def test_attaching_warns_once_and_names_the_command(newer, recwarn):
    (text,) = warnings_of_attaching(recwarn)
    assert f"never verified with transformers {LibraryVersions.installed().transformers}" in text
    assert "`modulate hosts --verify qwen2_5_vl`" in text
    assert warnings_of_attaching(recwarn) == []


@pytest.mark.filterwarnings("always::modulate.errors.UnverifiedWarning")
@pytest.mark.parametrize("own", [["qwen2_5_vl"], ["smolvlm", "qwen2_5_vl"]])
def test_what_this_machine_verified_is_not_warned_of(newer, recwarn, own):
    add_locally_verified(LibraryVersions.installed(), own)
    assert warnings_of_attaching(recwarn) == []


@pytest.mark.filterwarnings("always::modulate.errors.UnverifiedWarning")
def test_another_family_or_other_releases_that_it_verified_do_not_count(newer, recwarn):
    add_locally_verified(LibraryVersions.installed(), ["smolvlm"])
    add_locally_verified(replace(LibraryVersions.installed(), torch="1.2.3"), ["qwen2_5_vl"])
    assert len(warnings_of_attaching(recwarn)) == 1


@pytest.mark.filterwarnings("always::modulate.errors.UnverifiedWarning")
def test_attaching_works_although_a_record_cannot_be_read(newer, recwarn, monkeypatch):
    def damaged(registry):
        raise PluginError("verified.json of plugin 'other' is damaged")

    monkeypatch.setattr(verified, "verified_versions", damaged)
    assert warnings_of_attaching(recwarn) == []


def test_a_local_record_grows_and_a_damaged_one_is_replaced(newer):
    installed = LibraryVersions.installed()
    path = add_locally_verified(installed, ["smolvlm"])
    assert add_locally_verified(installed, ["gemma3"]) == path
    assert locally_verified(installed) == {"smolvlm", "gemma3"}
    for damaged in ("", "{", "[1]", '{"a": 1}', '[{"versions": 3}]', "\x00"):
        path.write_text(damaged)
        assert locally_verified(installed) == set()
        add_locally_verified(installed, ["internvl"])
        assert locally_verified(installed) == {"internvl"}


# --- the command


def test_a_family_is_proved_without_pytest_and_remembered(tmp_path):
    code = (
        "import sys; sys.modules['pytest'] = None; from modulate.cli import main; main(['hosts',"
        " '--verify', 'qwen2_5_vl', '--json'])"
    )
    environment = os.environ | {verified.CACHE_VARIABLE: str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout)
    cells = found["families"]["qwen2_5_vl"]
    assert list(cells) == [row.title for row in rows().values() if row.families is None]
    assert {cell["outcome"] for cell in cells.values()} <= {"pass", "refused", "not applicable"}
    assert all(cell["reason"] for cell in cells.values() if cell["outcome"] != "pass")
    (entry,) = json.loads((tmp_path / "verified.json").read_text())
    assert entry["families"] == ["qwen2_5_vl"]
    assert entry["versions"].items() >= found["versions"].items()


def test_a_family_that_fails_is_told_row_by_row_and_not_remembered(newer, monkeypatch):
    """The injector is one token off, as if a release numbered tokens differently."""
    plan = conditioning.Conditioning.plan
    shifted = lambda write_plan: write_plan and replace(write_plan, index=write_plan.index + 1)
    monkeypatch.setattr(
        conditioning.Conditioning, "plan", lambda self, given: shifted(plan(self, given))
    )
    threads = torch.get_num_threads()
    done = CliRunner().invoke(build(), ["hosts", "--verify", "smolvlm"])
    assert done.exit_code == 1
    lines = done.output.splitlines()
    assert any(
        line.startswith("  failed")
        and "only the grids' tokens differ" in line
        and "AssertionError" in line
        for line in lines
    )
    assert any(line.startswith("  pass") and "bit for bit" in line for line in lines)
    assert any(
        line.startswith(f"Failed with {LibraryVersions.installed()}: smolvlm.") for line in lines
    )
    assert not verified.local_record_path().exists() and torch.get_num_threads() == threads


def test_assertions_that_python_leaves_out_prove_nothing():
    code = "from modulate.cli import main; main(['hosts', '--verify', 'smolvlm'])"
    done = subprocess.run(
        [sys.executable, "-O", "-c", code], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 1 and "run without -O" in done.stderr


def test_an_unknown_family_is_refused_with_the_nearest():
    code = "from modulate.cli import main; main(['hosts', '--verify', 'qwen2_5vl'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 1 and "qwen2_5_vl" in done.stderr


def test_a_record_whose_cells_name_a_row_without_title_is_refused(tmp_path):
    cell = {"outcome": "pass"}
    host = {"served_by": "Some", "cells": {"first": cell, "frist": cell}}
    seen = {"torch": "2.11.0", "peft": "0.18.0", "device": "CPU", "hosts": {"some": host}}
    path = tmp_path / "verified.json"
    path.write_text(
        json.dumps({"rows": {"first": "A title", "frist": "Another"}, "versions": {"5.24.0": seen}})
    )
    assert verified._read_record(path, "one").rows["frist"] == "Another"
    path.write_text(json.dumps({"rows": {"first": "A title"}, "versions": {"5.24.0": seen}}))
    with pytest.raises(
        PluginError,
        match=r"Plugin 'one': .*verified\.json: the row 'frist' has no title among its rows",
    ):
        verified._read_record(path, "one")


def test_releases_are_ordered_by_their_numbers_and_what_came_before_a_release_comes_first():
    mixed = ["5.24.0", "5.9.10", "5.24.0rc1", "5.100.0", "5.24"]
    assert sorted(mixed, key=verified._release_numbers) == [
        "5.9.10",
        "5.24",
        "5.24.0rc1",
        "5.24.0",
        "5.100.0",
    ]

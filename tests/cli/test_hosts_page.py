"""The suite's record has every cell, and the reference page shows all of them."""

import json
import re

import numpy as np
import pytest

from modulate.hosts.host import understand
from modulate.interfaces.frames import Frames
from modulate_hosts.contract import DATA, complete
from modulate_hosts.contract.families import FAMILIES
from modulate_hosts.contract.suite import rows
from tests.contract.processors import PROCESSORS
from tests.paths import ROOT

PAGE = ROOT / "docs" / "reference" / "hosts.md"
ROWS = {name: row.title for name, row in rows().items()}
VERSIONS = json.loads(DATA.read_text())["versions"] if DATA.is_file() else {}


@pytest.fixture(autouse=True)
def written(request):
    if request.config.getoption("--write-hosts", default=False):
        pytest.skip("this run writes the record")


def cells():
    return [
        (name, row, cell)
        for record in VERSIONS.values()
        for name, host in record["hosts"].items()
        for row, cell in host["cells"].items()
    ]


def test_every_row_on_every_host_is_recorded():
    data = json.loads(DATA.read_text())
    assert data["rows"] == ROWS and VERSIONS
    newest = max(VERSIONS, key=lambda version: [int(part) for part in version.split(".")])
    assert list(VERSIONS[newest]["hosts"]) == [family.name for family in FAMILIES]
    for record in VERSIONS.values():
        assert all(list(host["cells"]) == list(ROWS) for host in record["hosts"].values())


def test_a_release_without_a_row_is_not_in_the_table():
    passing = lambda rows: {"cells": {row: {"outcome": "pass"} for row in rows}}
    record = lambda *hosts: {
        "torch": "2",
        "hosts": {f"h{number}": passing(rows) for number, rows in enumerate(hosts)},
    }
    versions = {
        "5.1.0": record("ab", "ab"),
        "5.2.0": record("abc", "ab"),
        "5.3.0": record("cba", "xbca"),
    }
    kept = complete(versions, ["a", "b", "c"])
    assert list(kept) == ["5.3.0"]
    for host in kept["5.3.0"]["hosts"].values():
        assert list(host["cells"]) == ["a", "b", "c"]


def test_a_cell_that_does_not_pass_has_its_reason():
    allowed = {"pass", "refused", "not applicable", "not run"}
    assert {cell["outcome"] for *_, cell in cells()} <= allowed
    wrong = [
        (host, row)
        for host, row, cell in cells()
        if (cell["outcome"] == "pass") == bool(cell.get("reason"))
    ]
    assert wrong == []


def test_at_most_one_cell_in_ten_of_a_family_is_a_refusal():
    for record in VERSIONS.values():
        for host in record["hosts"].values():
            refused = sum(cell["outcome"] == "refused" for cell in host["cells"].values())
            assert refused * 10 <= len(ROWS)


@pytest.mark.parametrize("version", VERSIONS)
def test_the_page_shows_every_cell(version):
    section = PAGE.read_text().split(f"## transformers {version}\n")[1].split("\n## ")[0]
    table = [
        [cell.strip() for cell in line.strip("|").split(" | ")]
        for line in section.splitlines()
        if line.startswith("| ")
    ]
    assert [line[0] for line in table[2:]] == list(ROWS.values())
    assert all(
        cell.startswith(("pass", "refused ", "n/a ", "not run "))
        for line in table[2:]
        for cell in line[1:]
    )
    assert {len(line) for line in table} == {1 + len(VERSIONS[version]["hosts"])}


def test_the_how_to_shows_the_files_as_they_are():
    page = (PAGE.parents[1] / "how-to" / "add-a-host.md").read_text()
    ((name, shown),) = re.findall(r"<!-- file: (\S+) -->\n```python\n(.*?)^```$", page, re.S | re.M)
    assert shown == (ROOT / name).read_text() and len(shown.splitlines()) < 60
    ((name, shown),) = re.findall(r"<!-- rows: (\S+) -->\n```python\n(.*?)^```$", page, re.S | re.M)
    assert shown in (ROOT / name).read_text()
    for line in re.findall(r"^(?:family|register)\(.*$", page, re.M):
        assert any(
            line in path.read_text()
            for path in (ROOT / name, ROOT / "plugins" / "modulate_hosts" / "__init__.py")
        )


def test_the_first_step_of_the_how_to_runs(capsys):
    code = re.findall(
        r"```python\n(.*?)```", (PAGE.parents[1] / "how-to" / "add-a-host.md").read_text(), re.S
    )[0]
    exec(compile(code, "add-a-host.md", "exec", dont_inherit=True), {"model": FAMILIES[-1].build()})
    assert capsys.readouterr().out.startswith("VideoLlava 4 32 {")


def test_the_second_step_of_the_how_to_encodes_a_clip(capsys):
    code = re.findall(
        r"```python\n(.*?)```", (PAGE.parents[1] / "how-to" / "add-a-host.md").read_text(), re.S
    )[1]
    known = {
        "host": understand(FAMILIES[-1].build()),
        "processor": PROCESSORS["video_llava"](),
        "frames": Frames(np.zeros((2, 16, 24, 3), np.uint8), (0.0, 1.0)),
        "window": (0.0, 1.0),
    }
    exec(compile(code, "add-a-host.md", "exec", dont_inherit=True), known)
    assert capsys.readouterr().out.startswith("(VisualGrid(rows=2, cols=2, times=(0.0, 1.0)")

"""What the suite wrote down has every cell, and the page shows it."""

import json
import re
import subprocess
import sys

import pytest
import torch
from typer.testing import CliRunner

from modulate.cli import build
from modulate.errors import HostError
from modulate.hosts.host import understand
from modulate_hosts.contract import DATA, complete
from modulate_hosts.contract.families import FAMILIES
from modulate_hosts.contract.suite import rows
from tests.paths import ROOT

PAGE = ROOT / "docs" / "reference" / "hosts.md"
ROWS = {name: row.title for name, row in rows().items()}
VERSIONS = json.loads(DATA.read_text())["versions"] if DATA.is_file() else {}


@pytest.fixture(autouse=True)
def written(request):
    if request.config.getoption("--write-hosts", default=False):
        pytest.skip("what this looks at is being written")


def cells():
    return [
        (version, host, row, cell)
        for version, seen in VERSIONS.items()
        for host, found in seen["hosts"].items()
        for row, cell in found["cells"].items()
    ]


def test_every_row_on_every_host_is_written_down():
    data = json.loads(DATA.read_text())
    assert data["rows"] == ROWS and VERSIONS
    newest = max(VERSIONS, key=lambda v: [int(p) for p in v.split(".")])
    assert list(VERSIONS[newest]["hosts"]) == [f.name for f in FAMILIES]
    for seen in VERSIONS.values():
        assert all(list(host["cells"]) == list(ROWS) for host in seen["hosts"].values())


def test_a_release_that_has_not_seen_a_row_is_not_in_the_table():
    record = lambda *hosts: {
        "torch": "2",
        "hosts": {
            f"h{i}": {"cells": {row: {"outcome": "pass"} for row in rows}}
            for i, rows in enumerate(hosts)
        },
    }
    versions = {
        "5.1.0": record("ab", "ab"),
        "5.2.0": record("abc", "ab"),
        "5.3.0": record("cba", "xbca"),
    }
    found = complete(versions, ["a", "b", "c"])
    assert list(found) == ["5.3.0"]
    assert [list(host["cells"]) for host in found["5.3.0"]["hosts"].values()] == [
        ["a", "b", "c"]
    ] * 2


def test_a_cell_that_does_not_pass_has_its_reason():
    assert {c["outcome"] for *_, c in cells()} <= {"pass", "refused", "not applicable", "not run"}
    assert [
        (h, r) for _, h, r, c in cells() if (c["outcome"] == "pass") == bool(c.get("reason"))
    ] == []


def test_at_most_one_cell_in_ten_of_a_family_is_a_refusal():
    for seen in VERSIONS.values():
        for host in seen["hosts"].values():
            assert sum(c["outcome"] == "refused" for c in host["cells"].values()) * 10 <= len(ROWS)


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


def test_the_command_lists_families_and_rows():
    runner = CliRunner()
    listed = runner.invoke(build(), ["hosts"])
    assert listed.exit_code == 0 and all(f.name in listed.output for f in FAMILIES)
    one = runner.invoke(build(), ["hosts", "gemma3"])
    assert all(title in one.output for title in ROWS.values()) and "qwen2_vl" not in one.output
    data = json.loads(runner.invoke(build(), ["hosts", "--json"]).output)
    assert data["rows"] == ROWS and set(data["families"]) >= {f.name for f in FAMILIES}


def test_the_command_needs_no_torch():
    code = (
        "import sys; from modulate.cli import main\ntry: main(['hosts'])\nexcept SystemExit:"
        " pass\nassert 'torch' not in sys.modules"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


def test_the_how_to_shows_the_files_that_are_here():
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


def test_a_host_that_is_not_understood_is_told_what_was_looked_for():
    from transformers import LlamaConfig, LlamaForCausalLM

    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=8,
            hidden_size=8,
            intermediate_size=8,
            num_hidden_layers=1,
            num_attention_heads=1,
        )
    )
    with pytest.raises(
        HostError,
        match=(
            r"looked for `language_model`, `model\.language_model`, `text_model`,"
            r" `model\.text_model`, found only model, lm_head"
        ),
    ):
        understand(model)
    with pytest.raises(HostError, match=r"has no `config\.model_type`"):
        understand(torch.nn.Linear(2, 2))

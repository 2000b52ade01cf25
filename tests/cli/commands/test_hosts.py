"""`modulate hosts`."""

import json
import subprocess
import sys

from typer.testing import CliRunner

from modulate.cli import build
from modulate_hosts.contract.families import FAMILIES
from modulate_hosts.contract.suite import rows

ROWS = {name: row.title for name, row in rows().items()}


def test_the_command_lists_families_and_rows():
    runner = CliRunner()
    listed = runner.invoke(build(), ["hosts"])
    assert listed.exit_code == 0
    assert all(family.name in listed.output for family in FAMILIES)
    one = runner.invoke(build(), ["hosts", "gemma3"])
    assert all(title in one.output for title in ROWS.values()) and "qwen2_vl" not in one.output
    data = json.loads(runner.invoke(build(), ["hosts", "--json"]).output)
    assert data["rows"] == ROWS
    assert set(data["families"]) >= {family.name for family in FAMILIES}


def test_the_command_needs_no_torch():
    code = (
        "import sys; from modulate.cli import main\ntry: main(['hosts'])\nexcept SystemExit:"
        " pass\nassert 'torch' not in sys.modules"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0

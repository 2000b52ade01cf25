"""The short form of the kill torture; the long one is ``python -m tests.durability.kills``."""

import json
import subprocess
import sys

from tests.paths import ROOT


def test_runs_killed_anywhere_go_on_to_the_same_bytes(tmp_path):
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "tests.durability.kills",
            "--short",
            "--json",
            tmp_path / "rows.json",
            "--folder",
            tmp_path,
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rows = {row["fault"]: row for row in json.loads((tmp_path / "rows.json").read_text())}
    assert len(rows) == 12 and all(
        row["outcomes"] == {"identical": row["tried"]} for row in rows.values()
    )
    assert (
        rows["killed at a file operation"]["kills"]
        == rows["killed at a file operation"]["tried"]
        >= 4
    )
    assert (
        rows["features: killed at a file operation"]["kills"]
        == rows["features: power cut at a file operation"]["kills"]
        == 2
    )
    assert (
        rows["last checkpoint altered or cut off"]["kills"]
        == rows["features: shard altered or cut off"]["kills"]
        == 1
    )

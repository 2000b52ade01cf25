"""Killed runs, in short; ``python -m tests.durability.kills`` is the long form."""

import json
import subprocess
import sys

from tests.paths import ROOT


def test_runs_killed_anywhere_resume_to_the_same_bytes(tmp_path):
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
    assert len(rows) == 12
    assert all(row["outcomes"] == {"identical": row["tried"]} for row in rows.values())
    assert {
        fault: rows[fault]["kills"]
        for fault in (
            "killed at a file operation",
            "features: killed at a file operation",
            "features: power cut at a file operation",
            "last checkpoint altered or cut off",
            "features: shard altered or cut off",
        )
    } == {
        "killed at a file operation": rows["killed at a file operation"]["tried"],
        "features: killed at a file operation": 2,
        "features: power cut at a file operation": 2,
        "last checkpoint altered or cut off": 1,
        "features: shard altered or cut off": 1,
    }
    assert rows["killed at a file operation"]["tried"] >= 4

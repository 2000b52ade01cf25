"""The record of fuzzing runs, in docs/results/durability-inputs.json."""

import argparse
import datetime
import json
from pathlib import Path
from typing import Any


def record(path: Path, arguments: argparse.Namespace, results: dict[str, Any]) -> None:
    """Append a run to the record in ``path``."""
    runs = json.loads(path.read_text())["runs"] if path.exists() else []
    date = datetime.datetime.now(datetime.UTC).date().isoformat()
    runs.append(
        {"date": date, "seed": arguments.seed, "engine": arguments.engine, "parsers": results}
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"runs": runs}, indent=1) + "\n")


def rows(path: Path) -> list[dict[str, Any]]:
    """Return the recorded runs in ``path``, added up to one row for each parser."""
    merged: dict[str, dict[str, Any]] = {}
    for run in json.loads(path.read_text())["runs"]:
        for name, result in run["parsers"].items():
            row = merged.setdefault(name, _empty_row(name, result["what"]))
            row["tried"] += result["inputs"]
            row["right"] += result["accepted"]
            row["refused"] += result["inputs"] - result["accepted"]
            # Only of the last run: findings of earlier runs have been fixed and have tests.
            row["findings"] = len(result["findings"])
            row["slowest_s"] = max(row["slowest_s"], result["slowest_s"])
            row["runs"] += 1
            row |= {"coverage": result["coverage"]["share"]} if "coverage" in result else {}
    for row in merged.values():
        found = f"{row['findings']} findings" if row["findings"] else "nothing else"
        row["happened"] = (
            f"{row['right']:,} read rightly, {row['refused']:,} refused with a typed error,"
            f" {found}; slowest {row['slowest_s']} s"
        )
    return list(merged.values())


def _empty_row(name: str, what: str) -> dict[str, Any]:
    counts = dict.fromkeys(("tried", "right", "refused", "findings", "runs"), 0)
    return {"fault": f"damaged {what}", "parser": name, "slowest_s": 0.0, **counts}

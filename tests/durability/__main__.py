"""Torture tests: kill runs and damage files; then write docs/explanation/durability.md.

`make torture` calls this module.

    python -m tests.durability                # kills (about 8 minutes on two cores), damaged
                                              # inputs (about 9), broken files (about 1)
    python -m tests.durability --only kills   # or inputs, or files; the other results stay
    python -m tests.durability --page         # only write the page from the recorded results
"""

import argparse
import datetime
import json
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.durability import fuzz_records
from tests.paths import ROOT

PAGE = Path("docs/explanation/durability.md")
RESULTS = Path("docs/results")
BROKEN_FILE_TESTS = (
    "tests/data/test_video.py",
    "tests/plugins/gaze/test_gaze_fixation_csv.py",
    "tests/plugins/gaze/test_gaze_scanpath.py",
    "tests/plugins/gaze/test_gaze_raw.py",
)
"""Tests that each create broken files of one kind and state what must happen."""


def today() -> str:
    """Return the current date (UTC) as YYYY-MM-DD."""
    return datetime.datetime.now(datetime.UTC).date().isoformat()


def kills() -> None:
    """Kill runs at every file operation and at random times; record the results."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "rows.json"
        done = subprocess.run(
            [sys.executable, "-m", "tests.durability.kills", "--json", str(out)], cwd=ROOT
        )
        (RESULTS / "durability-kills.json").write_text(
            json.dumps(
                {"date": today(), "exit": done.returncode, "rows": json.loads(out.read_text())},
                indent=1,
            )
            + "\n"
        )


def inputs(seconds: float, seed: int) -> None:
    """Damage inputs of every parser; counts add up over the recorded runs."""
    command = [
        sys.executable,
        "-m",
        "tests.durability.fuzz",
        "--seconds",
        str(seconds),
        "--seed",
        str(seed),
        "--json",
        str(RESULTS / "durability-inputs.json"),
    ]
    subprocess.run(command, cwd=ROOT)


def files() -> None:
    """Run the tests that create broken files; record the outcome of each."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "tests.xml"
        subprocess.run(
            [sys.executable, "-m", "pytest", *BROKEN_FILE_TESTS, "-q", f"--junitxml={out}"]
        )
        cases = ElementTree.parse(out).getroot().iter("testcase")
        found: dict[str, dict[str, int]] = {}
        for case in cases:
            outcomes = found.setdefault(str(case.get("name")).partition("[")[0], {})
            outcomes[_result(case)] = outcomes.get(_result(case), 0) + 1
        rows = [{"name": name, "outcomes": outcomes} for name, outcomes in found.items()]
    (RESULTS / "durability-files.json").write_text(
        json.dumps({"date": today(), "rows": rows}, indent=1) + "\n"
    )


def _result(case: ElementTree.Element) -> str:
    return next(
        (kind for kind in ("failure", "error", "skipped") if case.find(kind) is not None),
        "as it must be",
    )


# --- the page


def page() -> str:
    """Return the text of the page."""
    lines = [
        "<!-- Written by `make torture`; do not edit. -->",
        "# Durability",
        "",
        *INTRODUCTION,
        "",
    ]
    lines += (
        _kills_section(_read("durability-kills.json"))
        + _inputs_section()
        + _files_section(_read("durability-files.json"))
    )
    return "\n".join(lines) + "\n"


def _read(name: str) -> Any:
    path = RESULTS / name
    return json.loads(path.read_text()) if path.exists() else None


def _kills_section(record: Any) -> list[str]:
    lines = ["## Runs that are killed", ""]
    if record is None:
        return [*lines, "Not run yet.", ""]
    tried = sum(row["tried"] for row in record["rows"])
    killed = sum(row["kills"] for row in record["rows"])
    lines += [
        (
            f"{record['date']}: {tried:,} runs, {killed:,} kills. Each killed command was repeated"
            " until it finished; its weights, metrics and predictions were then compared, byte by"
            " byte, with those of an undisturbed run."
        ),
        "",
        *_table(
            ("fault", "runs", "kills", "result"),
            [
                (row["fault"], f"{row['tried']:,}", f"{row['kills']:,}", _outcomes(row["outcomes"]))
                for row in record["rows"]
            ],
        ),
        "",
    ]
    return lines


def _outcomes(outcomes: dict[str, int]) -> str:
    return "; ".join(f"{count:,} {outcome}" for outcome, count in outcomes.items())


def _inputs_section() -> list[str]:
    path = RESULTS / "durability-inputs.json"
    lines = ["## Inputs that are damaged", ""]
    if not path.exists():
        return [*lines, "Not run yet.", ""]
    rows = fuzz_records.rows(path)
    runs = json.loads(path.read_text())["runs"]
    when = "; ".join(f"{run['date']}, seed {run['seed']}, {run['engine']}" for run in runs)
    total = sum(row["tried"] for row in rows)
    lines += [
        (
            f"{total:,} inputs in {len(runs)} run{'s' if len(runs) > 1 else ''} ({when}); a right"
            " result or a typed error is expected, anything else is a finding."
        ),
        "",
    ]
    cells = [
        (
            f"`{row['parser']}`",
            row["fault"].removeprefix("damaged "),
            f"{row['tried']:,}",
            f"{row['right']:,}",
            f"{row['refused']:,}",
            str(row["findings"]),
            _share(row),
            f"{row['slowest_s']:.2f}",
        )
        for row in sorted(rows, key=lambda row: str(row["parser"]))
    ]
    return [
        *lines,
        *_table(
            (
                "parser",
                "what is damaged",
                "inputs",
                "read",
                "refused",
                "findings",
                "lines covered",
                "slowest, s",
            ),
            cells,
        ),
        "",
    ]


def _share(row: dict[str, Any]) -> str:
    return f"{100 * row['coverage']:.1f} %" if "coverage" in row else "not measured"


def _files_section(record: Any) -> list[str]:
    lines = ["## Files that are broken", ""]
    if record is None:
        return [*lines, "Not run yet.", ""]
    lines += [
        (
            f"{record['date']}: real files, created by the tests. Each row is one test, with the"
            " number of files or kinds of damage that it tries."
        ),
        "",
    ]
    cells = [
        (
            row["name"].removeprefix("test_").replace("_", " "),
            str(sum(row["outcomes"].values())),
            _outcomes(row["outcomes"]),
        )
        for row in record["rows"]
    ]
    return [*lines, *_table(("test", "cases", "result"), cells)]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [
        "| " + " | ".join(head) + " |",
        "|" + " --- |" * len(head),
        *("| " + " | ".join(row) + " |" for row in rows),
    ]


INTRODUCTION = """A run survives whatever ends it, and modulate checks everything that it
reads. This page lists what was tried. [Resume a run](../how-to/resume-a-run.md) describes how runs
are saved, and the [threat model](threat-model.md) what files of strangers can do. `make test` runs
a short form of these tests.""".splitlines()


def main() -> None:
    """Run the chosen tests, then write the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=("kills", "inputs", "files"), action="append")
    parser.add_argument("--seconds", type=float, default=40.0, help="fuzzing time of each parser")
    parser.add_argument("--seed", type=int, default=0, help="seed of the damaged inputs")
    parser.add_argument(
        "--page", action="store_true", help="only write the page from the recorded results"
    )
    options = parser.parse_args()
    chosen = () if options.page else options.only or ("kills", "inputs", "files")
    if "kills" in chosen:
        kills()
    if "inputs" in chosen:
        inputs(options.seconds, options.seed)
    if "files" in chosen:
        files()
    PAGE.write_text(page())
    print(f"Wrote {PAGE}.")


if __name__ == "__main__":
    main()

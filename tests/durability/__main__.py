"""Torture: runs that are killed, files that are damaged; writes docs/explanation/durability.md.

`make torture` calls it.

python -m tests.durability                 # kills (about 8 minutes on two cores), damaged inputs
(about 9), broken files (about 1) python -m tests.durability --only kills    # or inputs, or files;
the others' rows stay as they were, with their dates python -m tests.durability --page          #
runs nothing
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

from tests.durability import fuzz as torture_fuzz
from tests.paths import ROOT

PAGE = Path("docs/explanation/durability.md")
KEPT = Path("docs/results")
BROKEN = (
    "tests/data/test_video.py",
    "tests/plugins/gaze/test_gaze_fixation_csv.py",
    "tests/plugins/gaze/test_gaze_scanpath.py",
    "tests/plugins/gaze/test_gaze_raw.py",
)
"""Tests of which each makes one broken file, or one kind, and says what must come of it."""


def today() -> str:
    """Return the date."""
    return datetime.datetime.now(datetime.UTC).date().isoformat()


def kills() -> None:
    """Kill runs at every file operation and at random times; note what came of it."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "rows.json"
        done = subprocess.run(
            [sys.executable, "-m", "tests.durability.kills", "--json", str(out)], cwd=ROOT
        )
        (KEPT / "durability-kills.json").write_text(
            json.dumps(
                {"date": today(), "exit": done.returncode, "rows": json.loads(out.read_text())},
                indent=1,
            )
            + "\n"
        )


def inputs(seconds: float, seed: int) -> None:
    """Damage inputs of every parser; counts add up over the runs that are noted."""
    command = [
        sys.executable,
        "-m",
        "tests.durability.fuzz",
        "--seconds",
        str(seconds),
        "--seed",
        str(seed),
        "--json",
        str(KEPT / "durability-inputs.json"),
    ]
    subprocess.run(command, cwd=ROOT)


def files() -> None:
    """Run the tests that make broken files; note each by its name."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "tests.xml"
        subprocess.run([sys.executable, "-m", "pytest", *BROKEN, "-q", f"--junitxml={out}"])
        cases = ElementTree.parse(out).getroot().iter("testcase")
        found: dict[str, dict[str, int]] = {}
        for case in cases:
            outcomes = found.setdefault(str(case.get("name")).partition("[")[0], {})
            outcomes[_result(case)] = outcomes.get(_result(case), 0) + 1
        rows = [{"name": name, "outcomes": outcomes} for name, outcomes in found.items()]
    (KEPT / "durability-files.json").write_text(
        json.dumps({"date": today(), "rows": rows}, indent=1) + "\n"
    )


def _result(case: ElementTree.Element) -> str:
    return next(
        (kind for kind in ("failure", "error", "skipped") if case.find(kind) is not None),
        "as it must be",
    )


# --- the page


def page() -> str:
    """Return the page of what was tried and what happened."""
    lines = [
        "<!-- Written by `make torture`; do not edit. -->",
        "# Durability",
        "",
        *INTRODUCTION,
        "",
    ]
    lines += (
        _kills(_read("durability-kills.json")) + _inputs() + _files(_read("durability-files.json"))
    )
    return "\n".join(lines) + "\n"


def _read(name: str) -> Any:
    path = KEPT / name
    return json.loads(path.read_text()) if path.exists() else None


def _kills(found: Any) -> list[str]:
    lines = ["## Runs that are killed", ""]
    if found is None:
        return [*lines, "Not run yet.", ""]
    tried, killed = (sum(row[key] for row in found["rows"]) for key in ("tried", "kills"))
    lines += [
        (
            f"{found['date']}: {tried:,} runs, {killed:,} kills. Each run was given the same"
            " command again until it had finished, and its weights, metrics and predictions were"
            " compared, byte by byte, with those of a run that nothing had happened to."
        ),
        "",
        *_table(
            ("fault", "runs", "kills", "what happened"),
            [
                (r["fault"], f"{r['tried']:,}", f"{r['kills']:,}", _outcomes(r["outcomes"]))
                for r in found["rows"]
            ],
        ),
        "",
    ]
    return lines


def _outcomes(outcomes: dict[str, int]) -> str:
    return "; ".join(f"{n:,} {what}" for what, n in outcomes.items())


def _inputs() -> list[str]:
    path = KEPT / "durability-inputs.json"
    lines = ["## Inputs that are damaged", ""]
    if not path.exists():
        return [*lines, "Not run yet.", ""]
    rows = torture_fuzz.rows(path)
    runs = json.loads(path.read_text())["runs"]
    when = "; ".join(f"{run['date']}, seed {run['seed']}, {run['engine']}" for run in runs)
    total = sum(row["tried"] for row in rows)
    lines += [
        (
            f"{total:,} inputs in {len(runs)} run{'s' if len(runs) > 1 else ''} ({when}); a right"
            " result or a typed error is what must come, anything else is a finding."
        ),
        "",
    ]
    cells = [
        (
            f"`{r['parser']}`",
            r["fault"].removeprefix("damaged "),
            f"{r['tried']:,}",
            f"{r['right']:,}",
            f"{r['refused']:,}",
            str(r["findings"]),
            _share(r),
            f"{r['slowest_s']:.2f}",
        )
        for r in sorted(rows, key=lambda r: str(r["parser"]))
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


def _files(found: Any) -> list[str]:
    lines = ["## Files that are broken", ""]
    if found is None:
        return [*lines, "Not run yet.", ""]
    lines += [
        (
            f"{found['date']}: real files, made by the tests; each row is one test, by its name,"
            " with the number of files or kinds of damage that it goes through."
        ),
        "",
    ]
    cells = [
        (
            r["name"].removeprefix("test_").replace("_", " "),
            str(sum(r["outcomes"].values())),
            _outcomes(r["outcomes"]),
        )
        for r in found["rows"]
    ]
    return [*lines, *_table(("what is tried", "cases", "what happened"), cells)]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [
        "| " + " | ".join(head) + " |",
        "|" + " --- |" * len(head),
        *("| " + " | ".join(row) + " |" for row in rows),
    ]


INTRODUCTION = """A run survives whatever ends it, and nothing that it reads is believed unseen. This page says what was tried. How runs are kept is on
[resume a run](../how-to/resume-a-run.md), what strangers' files may do on the [threat model](threat-model.md). A short form of all this is part of `make test`.""".splitlines()


def main() -> None:
    """Torture what is asked for, then write the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=("kills", "inputs", "files"), action="append")
    parser.add_argument("--seconds", type=float, default=40.0, help="for each parser")
    parser.add_argument(
        "--seed", type=int, default=0, help="of the damaged inputs; another one adds others"
    )
    parser.add_argument(
        "--page", action="store_true", help="run nothing; write the page from what is noted"
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

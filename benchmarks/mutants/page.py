"""Write docs/results/mutants.md from docs/results/mutants.json."""

import json
from dataclasses import asdict, dataclass, field
from typing import Any

from benchmarks.mutants.child import ROOT
from benchmarks.mutants.equivalents import listed

DATA = ROOT / "docs/results/mutants.json"
PAGE = ROOT / "docs/results/mutants.md"
BAR = 0.9


@dataclass
class Row:
    """The result of one module's sample."""

    module: str
    seed: int
    date: str
    mutants: int
    """Number of mutants of the module."""
    killed: int = 0
    """Includes those that ran too long."""
    too_long: int = 0
    tried: int = 0
    survivors: list[str] = field(default_factory=list)

    def count(self, outcome: str) -> None:
        """Count one mutant."""
        self.tried += 1
        self.killed += outcome != "lived"
        self.too_long += outcome == "too long"


def rows() -> list[dict[str, Any]]:
    """Return the recorded rows."""
    found: list[dict[str, Any]] = json.loads(DATA.read_text()) if DATA.exists() else []
    return found


def record(row: Row) -> None:
    """Record a row; it replaces an earlier one of its module and seed."""
    others = [
        other for other in rows() if (other["module"], other["seed"]) != (row.module, row.seed)
    ]
    every = sorted([*others, asdict(row)], key=lambda each: (each["module"], each["seed"]))
    DATA.write_text(json.dumps(every, indent=1, ensure_ascii=False) + "\n")


def below_bar() -> list[str]:
    """Return the modules that miss the bar with any seed."""
    return sorted({row["module"] for row in rows() if row["killed"] < BAR * row["tried"]})


def write() -> None:
    """Write the page, and print its table."""
    PAGE.write_text(page())
    print("\n".join(_table(rows())))


def page() -> str:
    """Return the page."""
    found = rows()
    tried = sum(row["tried"] for row in found)
    killed = sum(row["killed"] for row in found)
    lines = [
        "<!-- Written by `make mutants`; do not edit. -->",
        "# Mutation testing",
        "",
        *INTRODUCTION.splitlines(),
        "",
        (
            f"{killed:,} of {tried:,} were detected. {len(listed())} mutants are listed as"
            " equivalent, each with its reason, in"
        ),
        "[equivalents.toml](../../benchmarks/mutants/equivalents.toml).",
        "",
        *_table(found),
        "",
        "## Undetected faults",
        "",
    ]
    undetected = _survivor_diffs(found)
    lines += ["```diff", *undetected, "```"] if undetected else ["None."]
    return "\n".join(lines) + "\n"


def _survivor_diffs(found: list[dict[str, Any]]) -> list[str]:
    lines: list[str] = []
    for module in sorted({row["module"] for row in found}):
        diffs = {
            diff: None for row in found if row["module"] == module for diff in row["survivors"]
        }
        lines += [f"--- {module}"] if diffs else []
        lines += [line for diff in diffs for line in diff.splitlines()[2:]]
    return lines


def _table(found: list[dict[str, Any]]) -> list[str]:
    seeds = sorted({row["seed"] for row in found})
    head = ["module", "mutants", *(f"seed {seed}" for seed in seeds)]
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    for module in sorted({row["module"] for row in found}):
        of = {row["seed"]: row for row in found if row["module"] == module}
        any_row = next(iter(of.values()))
        cells = [
            f"{of[seed]['killed']} of {of[seed]['tried']}" if seed in of else "not tried"
            for seed in seeds
        ]
        if any_row["mutants"]:
            lines.append("| " + " | ".join([f"`{module}`", str(any_row["mutants"]), *cells]) + " |")
    return lines


INTRODUCTION = """A passing test suite proves little until it has been seen to fail.
`make mutants` puts small faults into the core, one at a time: comparisons swapped and their
boundaries shifted, `and` for `or`, `not` removed, arithmetic changed, constants off by one,
statements, raises and return values removed, arguments swapped, keyword arguments dropped, slices
widened, default values changed. It tries a sample of each module's faults, drawn by a seed. Each
fault must make one of the quick tests fail that run its line: first the module's own tests, then
those of files that import it, then others, 20 seconds of each. The bar is nine in ten for every
module. Texts for people, types, declarations of dataclasses, and assertions are not changed. Tests
that start their own process count, too: the fault is active there as well. Modules without a row
have not been tried yet.

All rows up to 2026-11-27 were measured before the modules of the core moved into packages. They are
listed under their present paths; the diffs show the code of that time."""

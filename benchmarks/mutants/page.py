"""docs/results/mutants.md, written from docs/results/mutants.json."""

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
    """What became of one module's sample."""

    module: str
    seed: int
    date: str
    mutants: int
    """How many the module has."""
    killed: int = 0
    """Those that ran too long are among them."""
    too_long: int = 0
    tried: int = 0
    survivors: list[str] = field(default_factory=list)

    def count(self, outcome: str) -> None:
        """Add one mutant."""
        self.tried += 1
        self.killed += outcome != "lived"
        self.too_long += outcome == "too long"


def rows() -> list[dict[str, Any]]:
    """Return the rows that are noted."""
    found: list[dict[str, Any]] = json.loads(DATA.read_text()) if DATA.exists() else []
    return found


def keep(row: Row) -> None:
    """Note a row in place of an earlier one of its module and seed."""
    others = [r for r in rows() if (r["module"], r["seed"]) != (row.module, row.seed)]
    every = sorted([*others, asdict(row)], key=lambda r: (r["module"], r["seed"]))
    DATA.write_text(json.dumps(every, indent=1, ensure_ascii=False) + "\n")


def short() -> list[str]:
    """Return the modules that miss the bar with any seed."""
    return sorted({r["module"] for r in rows() if r["killed"] < BAR * r["tried"]})


def write() -> None:
    """Write the page, and print its table."""
    PAGE.write_text(page())
    print("\n".join(_table(rows())))


def page() -> str:
    """Return the page."""
    found = rows()
    tried, killed = (sum(r[key] for r in found) for key in ("tried", "killed"))
    lines = [
        "<!-- Written by `make mutants`; do not edit. -->",
        "# Do the tests notice a fault?",
        "",
        *WORDS.splitlines(),
        "",
        (
            f"{killed:,} of {tried:,} were noticed. {len(listed())} mutants are listed as no"
            " faults, each with its reason, in"
        ),
        "[equivalents.toml](../../benchmarks/mutants/equivalents.toml).",
        "",
        *_table(found),
        "",
        "## Faults that nobody noticed",
        "",
    ]
    unnoticed = _with_names(found)
    lines += ["```diff", *unnoticed, "```"] if unnoticed else ["None."]
    return "\n".join(lines) + "\n"


def _with_names(found: list[dict[str, Any]]) -> list[str]:
    lines: list[str] = []
    for module in sorted({r["module"] for r in found}):
        diffs = {diff: None for r in found if r["module"] == module for diff in r["survivors"]}
        lines += [f"--- {module}"] if diffs else []
        lines += [line for diff in diffs for line in diff.splitlines()[2:]]
    return lines


def _table(found: list[dict[str, Any]]) -> list[str]:
    seeds = sorted({r["seed"] for r in found})
    head = ["module", "mutants", *(f"seed {seed}" for seed in seeds)]
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    for module in sorted({r["module"] for r in found}):
        of = {r["seed"]: r for r in found if r["module"] == module}
        some = next(iter(of.values()))
        cells = [
            f"{of[s]['killed']} of {of[s]['tried']}" if s in of else "not tried" for s in seeds
        ]
        if some["mutants"]:
            lines.append("| " + " | ".join([f"`{module}`", str(some["mutants"]), *cells]) + " |")
    return lines


WORDS = """A test suite that is green says little until it has been seen to turn red. `make mutants` puts small faults into the core, one at a
time: comparisons swapped and their boundaries shifted, `and` for `or`, `not` lost, arithmetic, constants off by one, statements, raises
and return values removed, arguments swapped, keyword arguments dropped, slices widened, default values changed. A sample of each
module's faults, drawn by a seed, is tried; each has to make one of the quick tests fail that run its line: the module's own first, then those of
files that import it, then others, 20 seconds of each. The bar is nine in ten for every module. Not changed are texts for people, types, declarations of dataclasses, and
assertions. Tests that start a process of their own are included: the fault is there, too. Modules without a row have not been tried
yet."""

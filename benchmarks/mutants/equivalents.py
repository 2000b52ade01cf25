"""Changes that are no faults: what a module does with them is what it does without.

Each was looked at by hand.
"""

import tomllib
from pathlib import Path
from typing import Any

from benchmarks.mutants.operators import Mutant, mutants

FILE = Path(__file__).with_name("equivalents.toml")


def listed() -> list[dict[str, Any]]:
    """Return the entries of the list: module, the lines removed, the lines added, and why they come
    to the same.
    """
    found: list[dict[str, Any]] = tomllib.loads(FILE.read_text())["equivalent"]
    return found


def real(every: list[Mutant], source: bytes) -> list[Mutant]:
    """Return the mutants of a module that are not listed."""
    known = {(entry["module"], entry["was"], entry["now"]) for entry in listed()}
    return [mutant for mutant in every if (mutant.path, *mutant.changed(source)) not in known]


def stale(root: Path) -> list[dict[str, Any]]:
    """Return the entries that are no mutant of the module as it is now."""
    left = {(entry["module"], entry["was"], entry["now"]): entry for entry in listed()}
    for path in {entry["module"] for entry in listed()}:
        source = (root / path).read_bytes()
        for mutant in mutants(root, path):
            left.pop((path, *mutant.changed(source)), None)
    return list(left.values())

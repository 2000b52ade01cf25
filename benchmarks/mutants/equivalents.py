"""Equivalent mutants: changes that do not alter a module's behavior, each reviewed by hand."""

import tomllib
from pathlib import Path
from typing import Any

from benchmarks.mutants.operators import Mutant, mutants

FILE = Path(__file__).with_name("equivalents.toml")


def listed() -> list[dict[str, Any]]:
    """Return the entries: module, removed lines, added lines, and the reason."""
    entries: list[dict[str, Any]] = tomllib.loads(FILE.read_text())["equivalent"]
    return entries


def without_equivalents(every: list[Mutant], source: bytes) -> list[Mutant]:
    """Return the mutants of a module that are not listed as equivalent."""
    known = {(entry["module"], entry["was"], entry["now"]) for entry in listed()}
    return [mutant for mutant in every if (mutant.path, *mutant.changed(source)) not in known]


def stale(root: Path) -> list[dict[str, Any]]:
    """Return the entries that do not match any mutant of the current module."""
    entries = listed()
    unmatched = {(entry["module"], entry["was"], entry["now"]): entry for entry in entries}
    for path in {entry["module"] for entry in entries}:
        source = (root / path).read_bytes()
        quoted = [entry["was"] for entry in entries if entry["module"] == path]
        # Compiling every mutant of every module would take long.
        lines = {
            number
            for number, line in enumerate(source.decode().splitlines(), 1)
            if line.strip() and any(line.strip() in was for was in quoted)
        }
        for mutant in mutants(root, path, lines):
            unmatched.pop((path, *mutant.changed(source)), None)
    return list(unmatched.values())

"""Mutation testing: put small faults into the core and see whether the quick tests detect them.

`make mutants` calls this module.

    python -m benchmarks.mutants              # all modules: about an hour on one core, and 20
                                              # minutes to trace the tests again
    python -m benchmarks.mutants --seed 1     # other faults
    python -m benchmarks.mutants --modules interfaces/visual_grid evaluation/
                                              # modules whose path below modulate/ begins so; the
                                              # other rows stay
    python -m benchmarks.mutants --page       # only write the page

Exits with 1 if a module misses the bar. Survivors are printed as diffs; `equivalents.toml` lists
changes that are no faults, each with its reason.
"""

import argparse
import datetime
import sys
import time
from pathlib import Path

from benchmarks.mutants import child, page
from benchmarks.mutants.equivalents import stale, without_equivalents
from benchmarks.mutants.operators import Mutant, mutants, sample
from benchmarks.mutants.tests import CORE, ROOT, TracedTests


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the sample")
    parser.add_argument(
        "--count", type=int, default=20, help="largest number of mutants of each module"
    )
    parser.add_argument(
        "--modules", nargs="+", default=[""], help="beginnings of paths below modulate/"
    )
    parser.add_argument("--page", action="store_true", help="only write the page from the record")
    options = parser.parse_args()
    if not options.page:
        for entry in stale(ROOT):
            print(
                f"equivalents.toml: this mutant no longer exists: {entry['module']}: {entry['now']}"
            )
        child.preload()
        tests = TracedTests()
        for path in module_paths(options.modules):
            row = run_module(path, tests, options.count, options.seed)
            page.record(row)
    page.write()
    return 1 if page.below_bar() else 0


def module_paths(beginnings: list[str]) -> list[str]:
    """Return the modules of the core, as paths from the repository's root."""
    found = sorted((ROOT / CORE).rglob("*.py"))
    names = {
        path.relative_to(ROOT / CORE).as_posix(): path.relative_to(ROOT).as_posix()
        for path in found
    }
    return [path for name, path in names.items() if name.startswith(tuple(beginnings))]


def run_module(path: str, tests: TracedTests, count: int, seed: int) -> page.Row:
    """Run a sample of one module's mutants; print the survivors."""
    source = (ROOT / path).read_bytes()
    every = without_equivalents(mutants(ROOT, path), source)
    row = page.Row(path, seed, datetime.datetime.now(datetime.UTC).date().isoformat(), len(every))
    start = time.monotonic()
    for mutant in sample(every, count, seed):
        outcome = outcome_of(mutant, source, tests)
        row.count(outcome)
        if outcome == "lived":
            row.survivors.append(mutant.diff(source))
            print(mutant.diff(source), flush=True)
    print(
        f"{path}: {row.killed} of {row.tried} killed, {time.monotonic() - start:.0f} s", flush=True
    )
    return row


def outcome_of(mutant: Mutant, source: bytes, tests: TracedTests) -> str:
    """Return whether a mutant is "killed", "too long" or "lived"."""
    file = Path(ROOT / mutant.path)
    for names in tests.running(mutant):
        seconds = 60 + 3 * tests.expected_seconds(names)
        status = child.mutated(file, mutant.apply(source), names, seconds)
        if status == 5:
            raise SystemExit(f"pytest found none of {names}: remove build/mutants and run again.")
        if status is None and child.mutated(file, source, names, seconds) == 0:
            return "too long"
        if status:
            return "killed"
    return "lived"


if __name__ == "__main__":
    sys.exit(main())

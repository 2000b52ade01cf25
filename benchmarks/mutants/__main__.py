"""Put small faults into the core, one at a time, and see whether the quick tests of the module
notice. `make mutants` calls it.

python -m benchmarks.mutants                              # every module: about an hour on one core,
and 20 minutes to trace the tests anew python -m benchmarks.mutants --seed 1                     #
other faults python -m benchmarks.mutants --modules grid evaluation/   # modules whose path below
modulate/ begins so; the other rows stay python -m benchmarks.mutants --page                       #
runs nothing

Exits with 1 when a module misses the bar. Survivors are printed as diffs; `equivalents.toml` holds
those that are no faults, each with its reason.
"""

import argparse
import datetime
import sys
import time
from pathlib import Path

from benchmarks.mutants import child, page
from benchmarks.mutants.equivalents import real, stale
from benchmarks.mutants.operators import Mutant, mutants, sample
from benchmarks.mutants.tests import CORE, ROOT, Known


def main() -> int:
    """Run what is asked for, and write the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    parser.add_argument("--count", type=int, default=20, help="mutants of each module, at most")
    parser.add_argument(
        "--modules", nargs="+", default=[""], help="beginnings of paths below modulate/"
    )
    parser.add_argument(
        "--page", action="store_true", help="run nothing; write the page from what is noted"
    )
    options = parser.parse_args()
    if not options.page:
        for entry in stale(ROOT):
            print(f"equivalents.toml: no such mutant any more: {entry['module']}: {entry['now']}")
        child.warm()
        known = Known()
        for path in paths(options.modules):
            row = module(path, known, options.count, options.seed)
            page.keep(row)
    page.write()
    return 1 if page.short() else 0


def paths(beginnings: list[str]) -> list[str]:
    """Return the modules of the core, as paths from the repository's root."""
    found = sorted((ROOT / CORE).rglob("*.py"))
    names = {
        path.relative_to(ROOT / CORE).as_posix(): path.relative_to(ROOT).as_posix()
        for path in found
    }
    return [path for name, path in names.items() if name.startswith(tuple(beginnings))]


def module(path: str, known: Known, count: int, seed: int) -> page.Row:
    """Run a sample of one module's mutants; print those that live."""
    source = (ROOT / path).read_bytes()
    every = real(mutants(ROOT, path), source)
    row = page.Row(path, seed, datetime.datetime.now(datetime.UTC).date().isoformat(), len(every))
    start = time.monotonic()
    for mutant in sample(every, count, seed):
        outcome = fate(mutant, source, known)
        row.count(outcome)
        if outcome == "lived":
            row.survivors.append(mutant.diff(source))
            print(mutant.diff(source), flush=True)
    print(
        f"{path}: {row.killed} of {row.tried} killed, {time.monotonic() - start:.0f} s", flush=True
    )
    return row


def fate(mutant: Mutant, source: bytes, known: Known) -> str:
    """Return whether a mutant is "killed", "too long" or "lived"."""
    file = Path(ROOT / mutant.path)
    for names in known.of(mutant):
        seconds = 60 + 3 * known.usual(names)
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

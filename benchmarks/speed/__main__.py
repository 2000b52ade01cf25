"""Measure what this machine can and write docs/benchmarks.md: python -m benchmarks.speed [--only
ROW …] [--repeats N] [--threads N].
"""

import argparse
import json
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any


def main() -> None:
    """Parse, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--only",
        nargs="*",
        help=(
            "rows (functions of benchmarks/speed/rows.py and inference.py) or curves; by"
            " default all"
        ),
    )
    parser.add_argument(
        "--repeats",
        type=int,
        default=5,
        help="pairs of most measurements; a forward has 4 times as many, generate 8 times",
    )
    parser.add_argument(
        "--moments",
        type=int,
        default=4,
        help=(
            "clips of the training rows, each with four questions; one pair for each clip and epoch"
        ),
    )
    parser.add_argument(
        "--threads",
        type=int,
        default=1,
        help="threads of torch; with 1, the seconds do not depend on what else the machine does",
    )
    parser.add_argument("--folder", type=Path, help="keep the bench's files there")
    parser.add_argument("--peak", choices=("ours", "naive"), help=argparse.SUPPRESS)
    given = parser.parse_args()

    import torch

    torch.set_num_threads(given.threads)
    from benchmarks.speed import curves, page, rows, timing
    from benchmarks.speed.bench import Bench

    with TemporaryDirectory() as temporary:
        bench = Bench(given.folder or Path(temporary), given.moments, given.repeats)
        if given.peak:
            print(rows.peak_of(given.peak, bench))
            return
        machine = timing.machine()
        number = str(1 + max(map(int, page.load()["runs"]), default=0))
        for row in rows.ROWS:
            if not given.only or row.__name__ in given.only:
                begin = time.perf_counter()
                found = row(bench)
                brief = {
                    name: {
                        k: v
                        for k, v in figure.items()
                        if k in ("median", "low", "high", "seconds", "note")
                    }
                    for name, figure in found.items()
                }
                print(
                    f"{row.__name__} ({time.perf_counter() - begin:.0f} s):"
                    f" {json.dumps(brief, ensure_ascii=False)}",
                    file=sys.stderr,
                    flush=True,
                )
                keep(
                    number,
                    machine,
                    {"rows": {name: {**figure, "run": number} for name, figure in found.items()}},
                )
        if not given.only or "curves" in given.only:
            keep(number, machine, {"curves": {"run": number, "found": curves.measure(bench)}})


def keep(number: str, machine: dict[str, Any], found: dict[str, Any]) -> None:
    """Write what a run has found so far: it takes long, and the rest may never come."""
    from benchmarks.speed import page

    figures = page.load()
    figures["runs"][number] = machine
    for part, values in found.items():
        figures[part] |= values
    used = {row["run"] for row in figures["rows"].values()} | {figures["curves"].get("run")}
    figures["runs"] = {n: m for n, m in figures["runs"].items() if n in used}
    page.write(figures, Path(__file__).with_name("words.md").read_text())


if __name__ == "__main__":
    main()

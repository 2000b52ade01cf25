"""Measure all figures that this machine allows, and write docs/benchmarks.md.

python -m benchmarks.speed [--only NAME …] [--repeats N] [--threads N]
"""

import argparse
import json
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--only",
        nargs="*",
        help=(
            "measurements (functions in benchmarks/speed/measurements.py) or curves; by default all"
        ),
    )
    parser.add_argument(
        "--repeats",
        type=int,
        default=5,
        help="pairs of most measurements; 4 times as many for a forward, 8 times for generate",
    )
    parser.add_argument(
        "--moments",
        type=int,
        default=4,
        help=(
            "clips in the training figures, each with four questions; one pair for each clip and"
            " epoch"
        ),
    )
    parser.add_argument(
        "--threads",
        type=int,
        default=1,
        help="threads of torch; with 1, processor time does not depend on other processes",
    )
    parser.add_argument(
        "--folder", type=Path, help="folder for the bench's files, which is not deleted"
    )
    parser.add_argument("--peak", choices=("ours", "naive"), help=argparse.SUPPRESS)
    options = parser.parse_args()

    import torch

    torch.set_num_threads(options.threads)
    from benchmarks.speed import curves, measurements, page, timing, training
    from benchmarks.speed.bench import Bench

    with TemporaryDirectory() as temporary:
        bench = Bench(options.folder or Path(temporary), options.moments, options.repeats)
        if options.peak:
            print(training.peak_of(options.peak, bench))
            return
        machine = timing.machine()
        number = str(1 + max(map(int, page.load()["runs"]), default=0))
        for measure in measurements.MEASUREMENTS:
            if not options.only or measure.__name__ in options.only:
                start = time.perf_counter()
                rows = measure(bench)
                brief = {
                    name: {
                        key: value
                        for key, value in figure.items()
                        if key in ("median", "low", "high", "seconds", "note")
                    }
                    for name, figure in rows.items()
                }
                print(
                    f"{measure.__name__} ({time.perf_counter() - start:.0f} s):"
                    f" {json.dumps(brief, ensure_ascii=False)}",
                    file=sys.stderr,
                    flush=True,
                )
                save(
                    number,
                    machine,
                    {"rows": {name: {**figure, "run": number} for name, figure in rows.items()}},
                )
        if not options.only or "curves" in options.only:
            save(number, machine, {"curves": {"run": number, "found": curves.measure(bench)}})


def save(number: str, machine: dict[str, Any], found: dict[str, Any]) -> None:
    """Write the figures of a run so far: a long run may not reach its end."""
    from benchmarks.speed import page

    figures = page.load()
    figures["runs"][number] = machine
    for part, values in found.items():
        figures[part] |= values
    used = {row["run"] for row in figures["rows"].values()} | {figures["curves"].get("run")}
    figures["runs"] = {
        number: machine for number, machine in figures["runs"].items() if number in used
    }
    page.write(figures, Path(__file__).with_name("discussion.md").read_text())


if __name__ == "__main__":
    main()

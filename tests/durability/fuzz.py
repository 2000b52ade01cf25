"""Feed damaged inputs to every parser of foreign files.

Each input must give a right result or a typed error: no other exception, no hang, no unbounded
memory.

    python -m tests.durability.fuzz [--inputs 1000000] [--seconds 120] [--parser NAME …]
        [--seed 0] [--jobs 2] [--engine atheris|mutation] [--json OUT] [--short]

Each parser runs in its own process until --inputs or --seconds is reached. Coverage guides the
inputs if atheris is installed (`pip install -e .[fuzz]`); otherwise valid inputs are mutated
blindly. Afterwards the line coverage of the parser's functions is measured on the corpus and on
fresh mutations. `--json OUT` appends the run to the record in OUT, with date, seed and engine, so
that counts add up over runs. `--short` fuzzes in this process, by mutation only, for less than a
minute. Exit code 1: there are findings.
"""

import argparse
import base64
import concurrent.futures
import importlib
import importlib.util
import json
import mmap
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before anything imports torch
from tests.durability import mutations as mutate
from tests.durability.fuzz_coverage import fresh_mutations, measure_coverage
from tests.durability.fuzz_records import record
from tests.durability.fuzz_stats import FuzzStats, install_timeout
from tests.paths import ROOT

INSTRUMENTED = (
    "modulate.utils.safe_load",
    "modulate.utils.paths",
    "modulate.utils.pickle_check",
    "modulate.config.recipe",
    "modulate.modulation.config",
    "modulate.modulation.lora",
    "modulate.utils.schema",
    "modulate.runs.records",
    "modulate.evaluation.predictions",
    "modulate_gaze.fixation_csv",
    "modulate_gaze.checkpoint",
    "modulate_gaze.raw_gaze",
    "modulate_hand.path",
    "modulate_streamgaze.questions",
    "modulate_streamgaze.splits",
    "modulate_table.readers",
    "modulate_table.cells",
    "modulate_table.columns",
    "modulate_table.rows",
    "modulate_table.answers",
    "modulate_vjepa.weights",
)
"""Modules that atheris instruments to see which inputs take new paths through them."""


def load_parser(name: str) -> tuple[Any, list[bytes]]:
    """Return a parser and its seeds, after checking that it accepts them all."""
    from tests.durability import parsers

    parser = parsers.parsers()[name]
    seeds = parser.seeds()
    for seed in seeds:
        parser.check(parser.parse(seed), seed)
    return parser, seeds


def by_mutation(
    name: str, inputs: int, seconds: float, seed: int, last_input: mmap.mmap | None = None
) -> dict[str, Any]:
    """Feed mutations of valid inputs, without guidance by coverage."""
    parser, seeds = load_parser(name)
    rng = random.Random(f"{seed} {name}")
    stats = FuzzStats(parser, last_input)
    while stats.inputs < inputs and time.perf_counter() - stats.began < seconds:
        stats.feed(mutate.mutated(seeds, parser.mutation, rng))
    return stats.result()


def by_coverage(
    name: str,
    inputs: int,
    seconds: float,
    seed: int,
    last_input: mmap.mmap | None,
    finish: Callable[[dict[str, Any]], None],
) -> None:
    """Feed inputs that atheris derives from valid ones, guided by coverage.

    Does not return: passes the result to ``finish`` and ends the process.
    """
    import atheris

    with atheris.instrument_imports(include=list(INSTRUMENTED)):
        for module in INSTRUMENTED:
            importlib.import_module(module)
    parser, seeds = load_parser(name)
    corpus = Path(tempfile.mkdtemp(prefix="corpus-"))
    for index, data in enumerate(seeds):
        (corpus / f"seed{index}").write_bytes(data)
    stats = FuzzStats(parser, last_input)

    def test(data: bytes) -> None:
        stats.feed(data)
        if stats.inputs >= inputs or time.perf_counter() - stats.began >= seconds:
            result = stats.result()
            kept = [path.read_bytes() for path in sorted(corpus.iterdir())]
            result |= {
                "corpus": len(kept),
                "coverage": measure_coverage(
                    parser, [*kept, *fresh_mutations(parser, seeds, seed)]
                ),
            }
            finish(result)
            os._exit(0)

    def mutate_input(data: bytes, longest: int, number: int) -> bytes:
        rng = random.Random(number)
        kind = rng.random()
        if kind < 0.2:
            return atheris.Mutate(data, longest)[:longest]
        # Start from valid seeds half of the time: a mutated input is mostly refused early.
        start = [data] if kind < 0.5 else seeds
        return mutate.mutated(start, parser.mutation, rng)[:longest]

    options = [
        f"-max_len={mutate.LONGEST}",
        f"-seed={seed + 1}",
        "-rss_limit_mb=0",
        "-timeout=300",
        "-print_final_stats=0",
        "-verbosity=0",
        "-detect_leaks=0",
    ]
    atheris.Setup(["fuzz", *options, str(corpus)], test, custom_mutator=mutate_input)
    atheris.Fuzz()


def run_worker(arguments: argparse.Namespace) -> None:
    """Fuzz one parser in this process and write its result to --json."""
    import av

    av.logging.set_level(None)
    install_timeout()
    with open(arguments.last, "r+b") as file, mmap.mmap(file.fileno(), 0) as last_input:
        finish = lambda result: Path(arguments.json).write_text(json.dumps(result))
        name = arguments.work
        if arguments.engine == "atheris":
            by_coverage(
                name, arguments.inputs, arguments.seconds, arguments.seed, last_input, finish
            )
        result = by_mutation(name, arguments.inputs, arguments.seconds, arguments.seed, last_input)
        parser, seeds = load_parser(name)
        finish(
            result
            | {"coverage": measure_coverage(parser, fresh_mutations(parser, seeds, arguments.seed))}
        )


def run_in_subprocess(name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Fuzz one parser in its own process; a crash of it is a finding, with the last input."""
    with tempfile.TemporaryDirectory() as folder:
        last_input = Path(folder) / "last"
        out = Path(folder) / "out.json"
        last_input.write_bytes(bytes(mutate.LONGEST + (1 << 16)))
        command = [
            sys.executable,
            "-m",
            "tests.durability.fuzz",
            "--work",
            name,
            "--last",
            str(last_input),
            "--json",
            str(out),
            "--engine",
            arguments.engine,
            "--seed",
            str(arguments.seed),
        ]
        command += ["--inputs", str(arguments.inputs), "--seconds", str(arguments.seconds)]
        try:
            done = subprocess.run(
                command,
                cwd=ROOT,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=arguments.seconds + 300,
            )
            finished = done.returncode == 0 and out.exists()
            crash = "" if finished else f"exit code {done.returncode}: {done.stderr[-1500:]}"
        except subprocess.TimeoutExpired:
            crash = "timed out"
        if not crash:
            return json.loads(out.read_text())
        data = last_input.read_bytes()
        data = data[4 : 4 + int.from_bytes(data[:4], "little")]
        finding = {
            "kind": "CRASH",
            "text": crash,
            "count": 1,
            "input": base64.b64encode(data).decode(),
        }
        counts = ("inputs", "cpu_seconds", "per_second", "accepted", "slowest_s", "grown_mib")
        return {"what": name, "refused": {}, "findings": [finding], **dict.fromkeys(counts, 0)}


def print_result(name: str, result: dict[str, Any]) -> None:
    """Print one parser's counts and findings."""
    coverage = result.get("coverage")
    share = f", {100 * coverage['share']:.1f} % of {coverage['lines']} lines" if coverage else ""
    refused = ", ".join(f"{count:,} {kind}" for kind, count in sorted(result["refused"].items()))
    print(
        f"{name:12} {result['inputs']:>9,} inputs, {result['per_second']:>6,}/s of processor time:"
        f" {result['accepted']:,} right; {refused}; slowest {result['slowest_s']} s,"
        f" +{result['grown_mib']} MiB{share}",
        flush=True,
    )
    for finding in result["findings"]:
        print(
            f"  FOUND {finding['kind']} ×{finding['count']}: {finding['text']}\n       "
            f" {base64.b64decode(finding['input'])[:300]!r}"
        )
    for file, lines in result.get("coverage", {}).get("missed", {}).items():
        print(f"  not run: {file}: {', '.join(map(str, lines))}")


def main() -> int:
    """Run the command line; return the exit code."""
    guided = importlib.util.find_spec("atheris") is not None
    parse = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parse.add_argument("--inputs", type=int, default=1_000_000)
    parse.add_argument("--seconds", type=float, default=120.0, help="longest time for each parser")
    parse.add_argument("--parser", action="append", help="only this one; may be repeated")
    parse.add_argument("--seed", type=int, default=0)
    parse.add_argument("--jobs", type=int, default=2)
    parse.add_argument(
        "--engine", choices=("atheris", "mutation"), default="atheris" if guided else "mutation"
    )
    parse.add_argument("--json", help="append the run to this record")
    parse.add_argument("--short", action="store_true")
    parse.add_argument("--work", help=argparse.SUPPRESS)
    parse.add_argument("--last", help=argparse.SUPPRESS)
    arguments = parse.parse_args()
    if arguments.work:
        run_worker(arguments)
        return 0
    from tests.durability import parsers

    names = arguments.parser or list(parsers.parsers())
    results: dict[str, Any] = {}
    if arguments.short:
        import av

        av.logging.set_level(None)
        install_timeout()
        arguments.engine = "mutation"
        seconds = min(arguments.seconds, 40 / len(names))
        for name in names:
            results[name] = by_mutation(name, arguments.inputs, seconds, arguments.seed)
            print_result(name, results[name])
    else:
        with concurrent.futures.ThreadPoolExecutor(arguments.jobs) as pool:
            for name, result in zip(
                names, pool.map(lambda name: run_in_subprocess(name, arguments), names), strict=True
            ):
                results[name] = result
                print_result(name, result)
    if arguments.json:
        record(Path(arguments.json), arguments, results)
    return int(any(result["findings"] for result in results.values()))


if __name__ == "__main__":
    sys.exit(main())

"""Feeds every parser of foreign files with damaged inputs: a typed error or a right result, never
another exception, a hang, or memory without bound.

python -m tests.durability.fuzz [--inputs 1000000] [--seconds 120] [--parser NAME …] [--seed 0]
[--jobs 2] [--engine atheris|mutation] [--json OUT] [--short]

Each parser runs in a process of its own, guided by coverage where atheris is installed (`pip
install -e .[fuzz]`), else by mutation of valid inputs alone. It ends after --inputs or --seconds.
Line coverage of the parser's functions is then measured over the corpus and fresh mutations.
`--json OUT` adds a run to those in OUT, with date, seed and engine, so that counts add up over
runs. `--short`: in this process, mutations only, under a minute. Exit code 1: findings.
"""

import argparse
import base64
import collections
import concurrent.futures
import contextlib
import datetime
import importlib
import importlib.util
import json
import mmap
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

from tests.paths import ROOT

os.environ.setdefault("OMP_NUM_THREADS", "1")
from tests.durability import mutations as mutate

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
    "modulate_vjepa.weights",
)
SLOW = 2.0
HANG = 20.0
"""Seconds of processor time of one input: from the first it is a finding, after the second it is
interrupted.
"""
MEMORY = 256
MESSAGE = 4000
"""MiB by which one input may raise the process's peak; characters of an error's message."""
REPLAYED = 3000
"""Fresh mutations that coverage is measured over, beside the corpus."""
WANTED = 0.9


class Hang(BaseException):
    """An input took too long."""


class Tally:
    """What one parser did with its inputs."""

    def __init__(self, parser: Any, last: "mmap.mmap | None" = None) -> None:
        self.parser = parser
        self.last = last
        self.inputs = self.accepted = 0
        self.refused: collections.Counter[str] = collections.Counter()
        self.findings: dict[str, dict[str, Any]] = {}
        self.slowest = 0.0
        self.began = time.perf_counter()
        self.cpu = time.process_time()
        self.peak_before = self.peak = peak()

    def one(self, data: bytes) -> None:
        """Give one input to the parser and note what comes of it."""
        if self.last is not None:
            self.last[: 4 + len(data)] = len(data).to_bytes(4, "little") + data
        self.inputs += 1
        start = time.process_time()
        signal.setitimer(signal.ITIMER_VIRTUAL, HANG)
        try:
            results = self._parsed(self.parser.parse, data)
            if self.parser.read is not None and self.inputs % 100 == 0:
                again = self._parsed(through_file(self.parser), data, counted=False)
                if self.parser.same and len(results) != len(again):
                    self.found("DIFFERS", "from a file it is read otherwise than from bytes", data)
            for result in results:
                self.accepted += 1
                self.parser.check(result, data)
        except Hang:
            self.found("HANG", f"longer than {HANG} s", data)
        except Exception as error:  # findings are counted, and the rest goes on
            frames = traceback.extract_tb(error.__traceback__)
            where = next(
                (
                    f
                    for f in reversed(frames)
                    if str(ROOT) in f.filename and ".venv" not in f.filename
                ),
                frames[-1],
            )
            self.found(
                type(error).__name__,
                f"{Path(where.filename).name}:{where.lineno}: {str(error)[:200]}",
                data,
            )
        finally:
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        self._measure(time.process_time() - start, data)

    def _parsed(
        self, parse: Callable[[bytes], Any], data: bytes, counted: bool = True
    ) -> list[Any]:
        """Return the result, or nothing for an input that is refused."""
        from modulate.errors import ModulateError

        try:
            return [parse(data)]
        except ModulateError as error:
            self.refused[type(error).__name__] += counted
            if len(str(error)) > MESSAGE:
                self.found("MESSAGE", f"an error of {len(str(error))} characters", data)
            return []

    def _measure(self, seconds: float, data: bytes) -> None:
        self.slowest = max(self.slowest, seconds)
        if seconds > SLOW:
            self.found("SLOW", f"{seconds:.1f} s", data)
        now = peak()
        if now - self.peak > MEMORY:
            self.found("MEMORY", f"{now - self.peak:.0f} MiB more", data)
        self.peak = now

    def found(self, kind: str, text: str, data: bytes) -> None:
        """Keep the shortest input of every kind of finding."""
        key = f"{kind} {text.partition(': ')[0]}" if kind.isupper() is False else kind
        known = self.findings.setdefault(
            key, {"kind": kind, "text": text, "count": 0, "input": base64.b64encode(data).decode()}
        )
        known["count"] += 1
        if len(data) < 0.75 * len(known["input"]):
            known |= {"text": text, "input": base64.b64encode(data).decode()}

    def result(self) -> dict[str, Any]:
        """Return all of it as JSON."""
        seconds = max(time.process_time() - self.cpu, 1e-3)
        return {
            "what": self.parser.what,
            "inputs": self.inputs,
            "cpu_seconds": round(seconds, 1),
            "per_second": round(self.inputs / seconds),
            "accepted": self.accepted,
            "refused": dict(self.refused),
            "findings": list(self.findings.values()),
            "slowest_s": round(self.slowest, 3),
            "grown_mib": round(self.peak - self.peak_before),
        }


def peak() -> float:
    """Return the most memory this process has had, MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def through_file(parser: Any) -> Callable[[bytes], Any]:
    """Return what reads the bytes from a file, as users' files are."""
    from tests.durability import parsers as torture_parsers

    return torture_parsers.through_file(parser.read, f"{parser.name}{parser.suffix}")


def ready(name: str) -> tuple[Any, list[bytes]]:
    """Return a parser and its seeds, all of which it must take."""
    from tests.durability import parsers as torture_parsers

    parser = torture_parsers.parsers()[name]
    seeds = parser.seeds()
    for seed in seeds:
        parser.check(parser.parse(seed), seed)
    return parser, seeds


def interrupt() -> None:
    """Let an input that takes too long be interrupted."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise Hang

    signal.signal(signal.SIGVTALRM, stop)


# --- coverage


def lines_of(parser: Any) -> dict[str, set[int]]:
    """Return the lines that can run of the functions that count for ``parser``, by file."""
    found: dict[str, set[int]] = {}
    for name in parser.modules:
        file = importlib.import_module(name).__file__
        assert file is not None
        for code in _codes(compile(Path(file).read_text(), file, "exec")):
            parts = set(code.co_qualname.split("."))
            wanted = not parser.only or parts & set(parser.only)
            if (
                wanted and not parts & set(parser.never) and code.co_flags & 2
            ):  # 2: a function's code, no class's or module's
                found.setdefault(file, set()).update(
                    line for _, _, line in code.co_lines() if line and line != code.co_firstlineno
                )
    return found


def _codes(code: CodeType) -> Iterable[CodeType]:
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            yield inner
            yield from _codes(inner)


def covered(parser: Any, inputs: Iterable[bytes]) -> dict[str, Any]:
    """Return the share of the parser's lines that ``inputs`` run, and the lines that none of them
    does.
    """
    expected = lines_of(parser)
    ran: dict[str, set[int]] = {file: set() for file in expected}

    def local(frame: FrameType, event: str, argument: Any) -> Any:
        ran[frame.f_code.co_filename].add(frame.f_lineno)
        return local

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        return local if frame.f_code.co_filename in ran else None

    read = through_file(parser) if parser.read else parser.parse
    sys.settrace(trace)
    try:
        for i, data in enumerate(inputs):
            with contextlib.suppress(Exception):  # findings are counted elsewhere
                parser.check((read if i % 10 == 0 else parser.parse)(data), data)
    finally:
        sys.settrace(None)
    missed = {
        Path(file).relative_to(ROOT).as_posix(): sorted(lines - ran[file])
        for file, lines in expected.items()
    }
    total = sum(map(len, expected.values()))
    return {
        "lines": total,
        "share": round(1 - sum(map(len, missed.values())) / total, 4),
        "missed": {file: lines for file, lines in missed.items() if lines},
    }


# --- one parser


def by_mutation(
    name: str, inputs: int, seconds: float, seed: int, last: "mmap.mmap | None" = None
) -> dict[str, Any]:
    """Feed mutations of valid inputs; those that take new ways into the parser are not known, so
    the seeds stay what they are.
    """
    parser, seeds = ready(name)
    rng = random.Random(f"{seed} {name}")
    tally = Tally(parser, last)
    while tally.inputs < inputs and time.perf_counter() - tally.began < seconds:
        tally.one(mutate.mutated(seeds, parser.mutation, rng))
    return tally.result()


def by_coverage(
    name: str,
    inputs: int,
    seconds: float,
    seed: int,
    last: "mmap.mmap | None",
    finish: Callable[[dict[str, Any]], None],
) -> None:
    """Feed what atheris makes of valid inputs, half of it by our own mutations. Does not return:
    ``finish`` gets the result, and the process ends.
    """
    import atheris

    with atheris.instrument_imports(include=list(INSTRUMENTED)):
        for module in INSTRUMENTED:
            importlib.import_module(module)
    parser, seeds = ready(name)
    corpus = Path(tempfile.mkdtemp(prefix="corpus-"))
    for i, data in enumerate(seeds):
        (corpus / f"seed{i}").write_bytes(data)
    tally = Tally(parser, last)

    def test(data: bytes) -> None:
        tally.one(data)
        if tally.inputs >= inputs or time.perf_counter() - tally.began >= seconds:
            result = tally.result()
            kept = [path.read_bytes() for path in sorted(corpus.iterdir())]
            result |= {
                "corpus": len(kept),
                "coverage": covered(parser, [*kept, *fresh(parser, seeds, seed)]),
            }
            finish(result)
            os._exit(0)

    def change(data: bytes, most: int, number: int) -> bytes:
        rng = random.Random(number)
        kind = rng.random()
        if kind < 0.2:
            return atheris.Mutate(data, most)[:most]
        return mutate.mutated([data] if kind < 0.5 else seeds, parser.mutation, rng)[
            :most
        ]  # what is left of an input is mostly refused early

    options = [
        f"-max_len={mutate.LONGEST}",
        f"-seed={seed + 1}",
        "-rss_limit_mb=0",
        "-timeout=300",
        "-print_final_stats=0",
        "-verbosity=0",
        "-detect_leaks=0",
    ]
    atheris.Setup(["torture_fuzz", *options, str(corpus)], test, custom_mutator=change)
    atheris.Fuzz()


def fresh(parser: Any, seeds: Sequence[bytes], seed: int) -> Iterable[bytes]:
    """Return mutations for measuring coverage, fewer of what is slow."""
    rng = random.Random(f"coverage {seed}")
    yield from seeds
    for _ in range(int(REPLAYED * max(parser.share, 0.03))):
        yield mutate.mutated(seeds, parser.mutation, rng)


def work(arguments: argparse.Namespace) -> None:
    """Be the process of one parser: write what came of it to --json."""
    import av

    av.logging.set_level(None)
    interrupt()
    with open(arguments.last, "r+b") as file, mmap.mmap(file.fileno(), 0) as last:
        finish = lambda result: Path(arguments.json).write_text(json.dumps(result))
        name = arguments.work
        if arguments.engine == "atheris":
            by_coverage(name, arguments.inputs, arguments.seconds, arguments.seed, last, finish)
        result = by_mutation(name, arguments.inputs, arguments.seconds, arguments.seed, last)
        parser, seeds = ready(name)
        finish(result | {"coverage": covered(parser, fresh(parser, seeds, arguments.seed))})


def apart(name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Run one parser in a process of its own; one that dies is a finding, with the input that it
    died of.
    """
    with tempfile.TemporaryDirectory() as folder:
        last = Path(folder) / "last"
        out = Path(folder) / "out.json"
        last.write_bytes(bytes(mutate.LONGEST + (1 << 16)))
        command = [
            sys.executable,
            "-m",
            "tests.durability.fuzz",
            "--work",
            name,
            "--last",
            str(last),
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
            died = (
                ""
                if done.returncode == 0 and out.exists()
                else f"exit code {done.returncode}: {done.stderr[-1500:]}"
            )
        except subprocess.TimeoutExpired:
            died = "did not end"
        if not died:
            return json.loads(out.read_text())
        data = last.read_bytes()
        data = data[4 : 4 + int.from_bytes(data[:4], "little")]
        finding = {
            "kind": "CRASH",
            "text": died,
            "count": 1,
            "input": base64.b64encode(data).decode(),
        }
        return {
            "what": name,
            "inputs": 0,
            "cpu_seconds": 0,
            "per_second": 0,
            "accepted": 0,
            "refused": {},
            "findings": [finding],
            "slowest_s": 0,
            "grown_mib": 0,
        }


# --- all of them


def show(name: str, r: dict[str, Any]) -> None:
    """Print one parser's line, and its findings."""
    share = (
        f", {100 * r['coverage']['share']:.1f} % of {r['coverage']['lines']} lines"
        if "coverage" in r
        else ""
    )
    refused = ", ".join(f"{n:,} {kind}" for kind, n in sorted(r["refused"].items()))
    print(
        f"{name:12} {r['inputs']:>9,} inputs, {r['per_second']:>6,}/s of processor time:"
        f" {r['accepted']:,} right; {refused}; slowest {r['slowest_s']} s, +{r['grown_mib']}"
        f" MiB{share}",
        flush=True,
    )
    for finding in r["findings"]:
        print(
            f"  FOUND {finding['kind']} ×{finding['count']}: {finding['text']}\n       "
            f" {base64.b64decode(finding['input'])[:300]!r}"
        )
    for file, lines in r.get("coverage", {}).get("missed", {}).items():
        print(f"  not run: {file}: {', '.join(map(str, lines))}")


def rows(path: Path) -> list[dict[str, Any]]:
    """Return what the runs recorded in ``path`` tried, one row for each parser: fault, number
    tried, what happened, coverage of the last run.
    """
    merged: dict[str, dict[str, Any]] = {}
    for run in json.loads(path.read_text())["runs"]:
        for name, r in run["parsers"].items():
            row = merged.setdefault(
                name,
                {
                    "fault": f"damaged {r['what']}",
                    "parser": name,
                    "tried": 0,
                    "right": 0,
                    "refused": 0,
                    "findings": 0,
                    "slowest_s": 0.0,
                    "runs": 0,
                },
            )
            row["tried"] += r["inputs"]
            row["right"] += r["accepted"]
            row["refused"] += r["inputs"] - r["accepted"]
            row["findings"] = len(
                r["findings"]
            )  # of the last run: what an earlier one found is mended, and a test
            row["slowest_s"] = max(row["slowest_s"], r["slowest_s"])
            row["runs"] += 1
            row |= {"coverage": r["coverage"]["share"]} if "coverage" in r else {}
    for row in merged.values():
        found = f"{row['findings']} findings" if row["findings"] else "nothing else"
        row["happened"] = (
            f"{row['right']:,} read rightly, {row['refused']:,} refused with a typed error,"
            f" {found}; slowest {row['slowest_s']} s"
        )
    return list(merged.values())


def record(path: Path, arguments: argparse.Namespace, results: dict[str, Any]) -> None:
    """Add a run to those in ``path``."""
    runs = json.loads(path.read_text())["runs"] if path.exists() else []
    date = datetime.datetime.now(datetime.UTC).date().isoformat()
    runs.append(
        {"date": date, "seed": arguments.seed, "engine": arguments.engine, "parsers": results}
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"runs": runs}, indent=1) + "\n")


def main() -> int:
    """Run the command line; return the exit code."""
    guided = importlib.util.find_spec("atheris") is not None
    parse = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parse.add_argument("--inputs", type=int, default=1_000_000)
    parse.add_argument("--seconds", type=float, default=120.0, help="of one parser")
    parse.add_argument("--parser", action="append", help="only this one; may be repeated")
    parse.add_argument("--seed", type=int, default=0)
    parse.add_argument("--jobs", type=int, default=2)
    parse.add_argument(
        "--engine", choices=("atheris", "mutation"), default="atheris" if guided else "mutation"
    )
    parse.add_argument("--json", help="add the run to those in this file")
    parse.add_argument("--short", action="store_true")
    parse.add_argument("--work", help=argparse.SUPPRESS)
    parse.add_argument("--last", help=argparse.SUPPRESS)
    arguments = parse.parse_args()
    if arguments.work:
        work(arguments)
        return 0
    from tests.durability import parsers as torture_parsers

    names = arguments.parser or list(torture_parsers.parsers())
    results: dict[str, Any] = {}
    if arguments.short:
        import av

        av.logging.set_level(None)
        interrupt()
        arguments.engine = "mutation"
        for name in names:
            results[name] = by_mutation(
                name, arguments.inputs, min(arguments.seconds, 40 / len(names)), arguments.seed
            )
            show(name, results[name])
    else:
        with concurrent.futures.ThreadPoolExecutor(arguments.jobs) as pool:
            for name, result in zip(
                names, pool.map(lambda name: apart(name, arguments), names), strict=True
            ):
                results[name] = result
                show(name, result)
    if arguments.json:
        record(Path(arguments.json), arguments, results)
    return int(any(r["findings"] for r in results.values()))


if __name__ == "__main__":
    sys.exit(main())

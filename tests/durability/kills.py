"""Kill commands at any moment, resume them, and compare their files byte by byte.

Run:   python -m tests.durability.kills [--short] [--json OUT] [--seed N] [--folder DIR]

The commands are `modulate train`, `modulate features` (with and without frames on disk) and
`modulate sweep`, on a real run of the tiny recipe: real host, videos, two stages, validation,
evaluation. The result must equal that of an undisturbed run. The faults:

- **killed**: a forked process exits at its n-th file operation (a file opened for writing, a
  flush, a rename, a removal, a folder created …), for every n;
- **power cut**: the same, and data that was not flushed is lost as on a real disk: a file may end
  anywhere behind its flushed bytes, and of the names created, changed and removed since their
  folder was flushed, only the first few survive;
- **three times in a row**: the resumed process dies as well, at a random operation, and the one
  after it;
- **kill -9**: SIGKILL at a random moment of `modulate train`, `features` or `sweep`, whose child
  processes go on alone; **SIGTERM**, **SIGINT**: the same with a signal that can be handled;
- **altered checkpoint** or shard of features: a random byte is changed, or the end cut off, before
  the command is resumed.
"""

import argparse
import json
import os
import random
import signal
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

from tests.durability.faults import KILLED, Fault
from tests.durability.workloads import (
    Features,
    ScratchFolder,
    Sweeping,
    Training,
    Workload,
    run_command,
    run_forked,
)

Outcome = tuple[int, str]
"""The number of killed processes, and the result of the last one, which ran to the end."""


def kill_at_operations(
    workload: Workload, runs: Path, operations: list[int], cut: str = ""
) -> Outcome:
    """Kill each process in turn at its file operation in ``operations``; let a last one finish."""
    kills = 0
    for at in operations:

        def run_until_killed(at: int = at) -> None:
            Fault(runs, at, random.Random(f"{cut}:{at}") if cut else None).install()
            workload.run(runs)

        code = run_forked(run_until_killed)
        kills += code == KILLED
        if code not in (0, KILLED):
            return kills, f"failed: exit code {code} before operation {at}"
    return compare(workload, runs, kills, run_forked(lambda: workload.run(runs)))


def compare(workload: Workload, runs: Path, kills: int, code: int, part: str = "") -> Outcome:
    """Compare the files below ``part`` with the expected ones, after the last process exited."""
    if code:
        return kills, f"failed: exit code {code} when going on"
    found = workload.files(runs)
    names = {name for name in found.keys() | workload.expected.keys() if name.startswith(part)}
    wrong = sorted(
        name or "checkpoints" for name in names if found.get(name) != workload.expected.get(name)
    )
    return kills, f"differs: {', '.join(wrong)}" if wrong else "identical"


def signal_at_time(workload: Workload, runs: Path, number: signal.Signals, share: float) -> Outcome:
    """Send a signal to the command after a ``share`` of its duration; then run it to the end."""
    pid = os.fork()
    if not pid:
        try:
            # Background jobs of a shell ignore SIGINT, and a fork inherits that.
            signal.signal(signal.SIGINT, signal.default_int_handler)
            run_command(workload, runs)
        except SystemExit as end:
            os._exit(int(end.code or 0))
        except KeyboardInterrupt:  # before any run existed that could save itself
            os._exit(130)
        finally:
            os._exit(1)
    time.sleep(share * workload.seconds)
    os.kill(pid, number)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    # 0: it had finished; 130: interrupted before any run existed.
    if code not in (0, -number, 128 + number, 130):
        return 1, f"failed: exit code {code}"
    return compare(
        workload,
        runs,
        int(code != 0),
        run_forked(lambda: run_command(workload, runs)),
        workload.command_folder,
    )


def corrupt(workload: Workload, runs: Path, rng: random.Random) -> Outcome:
    """Damage a file of a killed process and resume: a warning must say so, the result be right."""
    at = rng.randint(workload.operations // 4, workload.operations // 2)

    def run_until_killed() -> None:
        Fault(runs, at).install()
        workload.run(runs)

    if run_forked(run_until_killed) != KILLED:
        return 0, "failed: not killed"
    path = workload.file_to_corrupt(runs, rng)
    if path is None:
        return corrupt(workload, runs, rng)  # resume, and kill it again at another moment
    content = bytearray(path.read_bytes())
    offset = rng.randrange(len(content))
    if rng.random() < 0.5:
        path.write_bytes(content[:offset])
    else:
        content[offset] ^= 1 << rng.randrange(8)
        path.write_bytes(content)

    def resume() -> None:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            workload.run(runs)
        assert [w for w in caught if " damaged" in str(w.message)], (
            f"{path} was damaged at byte {offset} without a warning"
        )

    return compare(workload, runs, 1, run_forked(resume))


Case = tuple[str, Callable[[Path], Outcome]]


def cases(workload: Workload, seed: int, short: bool, repeats: dict[str, int]) -> list[Case]:
    """Return every case as (name of the fault, function).

    ``repeats`` holds the number of cases for faults that are not tried at every file operation.
    """
    rng = random.Random(seed)
    every = range(1, workload.operations + 1)
    tried = rng.sample(every, repeats["operations"]) if short else every
    found = [
        ("killed at a file operation", partial(kill_at_operations, operations=[at])) for at in tried
    ]
    found += [
        (
            "power cut at a file operation",
            partial(kill_at_operations, operations=[at], cut=f"{seed}:{index}"),
        )
        for index, at in enumerate(tried if short else [*every] * 2)
    ]
    for i in range(repeats["again"]):
        operations = [rng.randint(1, len(every) // 2) for _ in range(3)]
        found.append(
            (
                "power cut three times in a row",
                partial(kill_at_operations, operations=operations, cut=f"{seed}:again:{i}"),
            )
        )
    for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGINT):
        name = "kill -9" if number == signal.SIGKILL else number.name
        found += [
            (
                f"{name} at a random time",
                partial(signal_at_time, number=number, share=rng.uniform(0, 0.8)),
            )
            for _ in range(repeats[number.name])
        ]
    found += [
        (workload.corruption, partial(corrupt, rng=random.Random(f"{seed}:altered:{index}")))
        for index in range(repeats["altered"])
    ]
    return [(workload.name + name, partial(case, workload)) for name, case in found]


REPEATS = {
    Training: {"again": 80, "SIGKILL": 80, "SIGTERM": 10, "SIGINT": 10, "altered": 60},
    Features: {"again": 20, "SIGKILL": 20, "SIGTERM": 5, "SIGINT": 5, "altered": 20},
    Sweeping: {"again": 0, "SIGKILL": 12, "SIGTERM": 4, "SIGINT": 4, "altered": 0},
}
SHORT_REPEATS = {
    Training: {"operations": 4, "again": 1, "SIGKILL": 1, "SIGTERM": 1, "SIGINT": 1, "altered": 1},
    Features: {"operations": 2, "again": 1, "SIGKILL": 1, "SIGTERM": 0, "SIGINT": 0, "altered": 1},
}


def run_cases(folder: Path, plan: Iterable[Case], report: Path) -> None:
    """Try the cases of ``plan``, each in its own folder; append each result to ``report``."""
    with report.open("w") as file:
        for fault, case in plan:
            with ScratchFolder(folder) as runs:
                try:
                    kills, result = case(runs)
                except Exception as error:
                    kills = 0
                    result = f"failed: {error!r}"
            print(json.dumps([fault, kills, result]), file=file, flush=True)


def run_all(
    folder: Path, seed: int = 0, short: bool = False, workers: int = 2
) -> list[dict[str, Any]]:
    """Try every case; return rows {"fault", "tried", "kills", "outcomes": {outcome: count}}."""
    repeats = SHORT_REPEATS if short else REPEATS
    plan = [case for kind in repeats for case in cases(kind(folder), seed, short, repeats[kind])]
    random.Random(seed).shuffle(plan)  # spreads the slow faults evenly over the workers
    reports = [folder / f"worker-{index}.jsonl" for index in range(workers)]
    pids = []
    for i, report in enumerate(reports):
        pid = os.fork()
        if pid:
            pids.append(pid)
            continue
        try:
            run_cases(folder, plan[i::workers], report)
        finally:
            os._exit(0)
    for pid in pids:
        os.waitpid(pid, 0)
    results = [
        json.loads(line) for report in reports for line in report.read_bytes().split(b"\n") if line
    ]
    if len(results) != len(plan):
        raise SystemExit(f"Only {len(results)} of {len(plan)} cases were tried.")
    rows = []
    for fault in dict.fromkeys(fault for fault, _ in plan):
        own = [(kills, result) for name, kills, result in results if name == fault]
        outcomes = Counter(result for _, result in own)
        rows.append(
            {
                "fault": fault,
                "tried": len(own),
                "kills": sum(kills for kills, _ in own),
                "outcomes": dict(outcomes.most_common()),
            }
        )
    return sorted(rows, key=lambda row: -row["tried"])


def main() -> None:
    """Run the command line; exit with 1 if any result is not identical."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--short", action="store_true", help="a sample of the cases")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    parser.add_argument(
        "--folder", type=Path, help="working folder (default: /dev/shm if it exists)"
    )
    args = parser.parse_args()
    start = time.monotonic()
    place = args.folder or (Path("/dev/shm") if Path("/dev/shm").is_dir() else None)
    with tempfile.TemporaryDirectory(prefix="killed-", dir=place) as folder:
        rows = run_all(Path(folder), args.seed, args.short)
    for row in rows:
        print(
            f"{row['fault']:40} {row['tried']:5} {row['kills']:5}  "
            + ", ".join(f"{result}: {count}" for result, count in row["outcomes"].items())
        )
    print(
        f"{sum(row['tried'] for row in rows)} cases, {sum(row['kills'] for row in rows)} kills in"
        f" {time.monotonic() - start:.0f} s"
    )
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n")
    if any(result != "identical" for row in rows for result in row["outcomes"]):
        raise SystemExit(1)


if __name__ == "__main__":
    main()

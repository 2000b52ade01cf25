"""Kills a training, and the computing of features, everywhere and at any time, and a sweep at any
time; lets it go on, and compares what it leaves, byte for
byte, with a run that nothing happened to.

Run:   python -m tests.durability.kills [--short] [--json OUT] [--seed N] [--folder DIR]

Ways to die, on a real run of the tiny recipe (real host, videos, two stages, validation,
evaluation), and on `modulate features` of it (with and without frames on disk), each followed by a
resumption to the end:

- **killed**: a forked child leaves at its n-th file operation (a file opened for writing, a flush,
  a rename, a removal, a folder made …), for every n there is;
- **power cut**: the same, and what was not flushed is lost as a disk loses it: contents of files
  end anywhere behind what was flushed, and of the names
  made, changed and removed since their folder was flushed, only the first few are there;
- **three times in a row**: the process that goes on dies as well, at a random operation, and the
  one after it;
- **kill -9**: SIGKILL at a random moment of `modulate train`, `features` or `sweep`, whose own
  processes go on alone; **SIGTERM**: the same, politely;
- **altered checkpoint**, or shard of features: a random byte of it is changed, or its end cut off,
  before the run goes on.
"""

import argparse
import gc
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterable
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from typing import Any

import torch

from modulate import cli
from modulate.config.recipe import load_recipe
from modulate.data.clip_shards import planned
from modulate.data.feature_extractor import FeatureExtractor
from modulate.data.precompute import FeatureFiller
from modulate.evaluation.evaluate import evaluate
from modulate.inference.pipeline import Pipeline
from modulate.runs.run import Run
from modulate.training.trainer import train
from modulate.utils.atomic_files import LEFT_BEHIND

TINY = [
    "data.params.train=2",
    "data.params.val=1",
    "data.params.test=2",
    "data.params.max_per_split=2",
    "sampling.max_frames=2",
    "training.batch_size=1",
    "training.stages.0.epochs=1",
    "training.stages.1.epochs=1",
    "training.checkpoint_every=1",
    "training.warmup_steps=1",
    "evaluation.conditions=[host]",
    "evaluation.bootstrap=100",
    "name=tiny",
]
KILLED = 9
WRITING = os.O_WRONLY | os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_TRUNC


torch.set_num_threads(1)  # and nothing is left running that a forked process would miss


# --- dying


class Fault:
    """Counts this process's file operations in ``folder``, and ends it before number ``at`` (from
    1), with what was not flushed lost if ``cut`` is given.
    """

    def __init__(self, folder: Path, at: int, cut: random.Random | None = None) -> None:
        self.folder = str(folder.resolve())
        self.at = at
        self.cut = cut
        self.count = 0
        self.flushed: dict[str, int] = {}  # file → bytes of it that are on disk for certain
        self.undo: list[
            tuple[str, Callable[[], object]]
        ] = []  # (folder, what takes a change of a name back), since the folder was flushed
        self.dying = False

    def install(self) -> None:
        """Watch from now on, until the process ends: an audit hook cannot be taken out again."""
        sys.addaudithook(self._hear)
        fsync = os.fsync

        def watched(handle: int) -> None:
            path = os.readlink(f"/proc/self/fd/{handle}")
            if path.startswith(self.folder):
                self._tick()
            fsync(handle)
            if os.path.isdir(path):
                self.undo = [(folder, change) for folder, change in self.undo if folder != path]
            else:
                self.flushed[path] = os.path.getsize(path)

        os.fsync = watched

    def _hear(self, event: str, args: tuple[Any, ...]) -> None:
        if self.dying or event not in (
            "open",
            "os.rename",
            "os.remove",
            "os.mkdir",
            "os.rmdir",
            "os.chmod",
            "os.truncate",
        ):
            return
        path = (
            os.readlink(f"/proc/self/fd/{args[0]}")
            if isinstance(args[0], int)
            else os.path.abspath(os.fsdecode(args[0]))
        )
        if not path.startswith(self.folder) or (
            event == "open" and not (isinstance(args[2], int) and args[2] & WRITING)
        ):
            return
        self._tick()
        if self.cut is not None:
            self.dying = True  # what follows is our own reading
            self._note(event, path, args)
            self.dying = False

    def _note(self, event: str, path: str, args: tuple[Any, ...]) -> None:
        if event == "open":
            self.flushed.setdefault(path, os.path.getsize(path) if os.path.exists(path) else 0)
            if not os.path.exists(path):
                self.undo.append(
                    (os.path.dirname(path), lambda: Path(path).unlink(missing_ok=True))
                )
        elif event == "os.rename":
            new = os.path.abspath(os.fsdecode(args[1]))
            old = Path(new).read_bytes() if os.path.exists(new) else None
            self.flushed[new] = self.flushed.pop(path, os.path.getsize(path))

            def back() -> None:
                os.replace(new, path)
                if old is not None:
                    Path(new).write_bytes(old)

            self.undo.append((os.path.dirname(new), back))
        elif event == "os.remove" and os.path.isfile(path):
            content = Path(path).read_bytes()
            self.undo.append((os.path.dirname(path), lambda: Path(path).write_bytes(content)))
        elif event == "os.rmdir":
            self.undo.append((os.path.dirname(path), Path(path).mkdir))

    def _tick(self) -> None:
        self.count += 1
        if self.count != self.at:
            return
        self.dying = True
        if self.cut is not None:
            self._lose(self.cut)
        os._exit(KILLED)

    def _lose(self, cut: random.Random) -> None:
        for path, size in self.flushed.items():
            if os.path.exists(path) and os.path.getsize(path) > size:
                os.truncate(path, cut.randint(size, os.path.getsize(path)))
        for _, change in reversed(self.undo[cut.randint(0, len(self.undo)) :]):
            change()


# --- the run


class World:
    """What is killed: the tiny recipe, in ``folder``, and what comes of it when nothing happens
    (``expected``).

    ``operations``: how many it makes on files; ``seconds``: that its command takes.
    """

    name = ""  # before the names of its faults
    commanded = ""  # the folder that its command fills
    altered: str  # the fault of a file that is altered

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.overrides = [f"data.params.root={folder}/tabletop", *TINY]
        self.recipe = load_recipe("gazeqwen_tiny", self.overrides)
        self.prepare()
        self.go(folder / f"whole-{type(self).__name__}")
        self.expected = self.left(folder / f"whole-{type(self).__name__}")
        gc.collect()
        # accelerate collects garbage before every stage: nothing of what is loaded by now is any
        gc.freeze()
        self.operations, self.seconds = self._count(), self._time()

    def prepare(self) -> None:
        """Load what all forked processes share."""

    def go(self, runs: Path) -> None:
        """What the command does, without loading everything anew."""
        raise NotImplementedError

    def command(self, runs: Path) -> list[str]:
        """Return the command's arguments."""
        raise NotImplementedError

    def left(self, runs: Path) -> dict[str, bytes]:
        """Return everything that must not depend on how often it was ended."""
        raise NotImplementedError

    def alterable(self, runs: Path, chance: random.Random) -> Path | None:
        """Return a file to alter, if there is one whose damage has to be noticed."""
        raise NotImplementedError

    def _count(self) -> int:
        """Return how many file operations it makes."""
        read, write = os.pipe()
        with scratch(self.folder) as runs:

            def count() -> None:
                fault = Fault(runs, 0)
                fault.install()
                self.go(runs)
                os.write(write, str(fault.count).encode())

            assert child(count) == 0
            if self.left(runs) != self.expected:
                raise SystemExit(
                    "Two runs that nothing happened to differ: there is nothing to compare with."
                )
        return int(os.read(read, 20))

    def _time(self) -> float:
        """Return how long its command takes, s."""
        with scratch(self.folder) as runs:
            start = time.monotonic()
            assert child(lambda: command(self, runs)) == 0
            return time.monotonic() - start


class Training(World):
    """`modulate train`: a run's folder."""

    altered = "last checkpoint altered or cut off"

    def prepare(self) -> None:
        """Load the host, and read the samples."""
        self.pipeline = Pipeline(self.recipe, self.folder / "cache")
        self.pipeline.make_data()

    def go(self, runs: Path) -> None:
        """Train and evaluate."""
        run = Run.create(self.recipe, runs)
        with run.held():
            evaluate(run, self.pipeline, train(run, self.pipeline))

    def command(self, runs: Path) -> list[str]:
        """Return the command's arguments."""
        return [
            "train",
            "gazeqwen_tiny",
            *self.overrides,
            "--runs",
            str(runs),
            "--cache",
            str(self.folder / "cache"),
        ]

    def left(self, runs: Path) -> dict[str, bytes]:
        """Return the run's folder."""
        return left_by(runs / "tiny")

    def alterable(self, runs: Path, chance: random.Random) -> Path | None:
        """Return the last checkpoint of a run that is not finished."""
        checkpoints = sorted((runs / "tiny" / "checkpoint").glob("*.json"))
        if not checkpoints or (runs / "tiny" / "state.json").exists():
            return None
        return checkpoints[-1].with_suffix(chance.choice([".json", ".safetensors"]))


class Features(World):
    """`modulate features`: the folder of a cache, one with frames and one without."""

    name = "features: "
    commanded = "plain/"
    altered = "shard altered or cut off"

    def go(self, runs: Path) -> None:
        """Fill both caches."""
        for name, frames in (("plain", 0), ("frames", 1)):
            recipe = load_recipe(
                "gazeqwen_tiny", [*self.overrides, f"features.frames_gib={frames}"]
            )
            extractor = FeatureExtractor(recipe, runs / name, torch.device("cpu"), require_disk=True)
            extractor.make_data()
            FeatureFiller(extractor).fill(planned(extractor))

    def command(self, runs: Path) -> list[str]:
        """Return the command's arguments, of the cache without frames."""
        return ["features", "gazeqwen_tiny", *self.overrides, "--cache", str(runs / "plain")]

    def left(self, runs: Path) -> dict[str, bytes]:
        """Return all but what is half-written: other processes may be at it, so that it stays for a
        day.
        """
        found = [
            p
            for p in runs.rglob("*")
            if p.is_file() and not any(fnmatch(p.name, pattern) for pattern in LEFT_BEHIND)
        ]
        return {p.relative_to(runs).as_posix(): p.read_bytes() for p in found}

    def alterable(self, runs: Path, chance: random.Random) -> Path | None:
        """Return a shard of features."""
        shards = sorted(runs.glob("*/*.safetensors"))
        return chance.choice(shards) if shards else None


class Sweeping(World):
    """`modulate sweep`: two runs, each a process of its own, which goes on by itself when the sweep
    is killed.
    """

    name = "sweep: "

    def prepare(self) -> None:
        """Write the sweep."""
        self.file = self.folder / "swept.yaml"
        axes = {"alpha": {"one": {}, "two": {"injection": {"alpha": 2.0}}}}
        self.file.write_text(json.dumps({"name": "swept", "base": "gazeqwen_tiny", "axes": axes}))

    def go(self, runs: Path) -> None:
        """Run it, in a process of its own, as it starts others."""
        code = child(lambda: command(self, runs))
        if code:
            raise SystemExit(f"The sweep ended with exit code {code}.")

    def _count(self) -> int:
        """Return 0: what its processes do at their file operations is tried for each by itself."""
        return 0

    def command(self, runs: Path) -> list[str]:
        """Return the command's arguments; changes of the recipe are those of the run alone, under
        the sweep's names.
        """
        changes = [change for change in self.overrides if not change.startswith("name=")]
        return [
            "sweep",
            str(self.file),
            *changes,
            "--jobs",
            "2",
            "--devices",
            "cpu",
            "--runs",
            str(runs),
            "--cache",
            str(self.folder / "cache"),
        ]

    def left(self, runs: Path) -> dict[str, bytes]:
        """Return the runs' folders and the figures made of them."""
        folders = sorted(path.parent for path in (runs / "swept").glob("*/recipe.yaml"))
        found = {
            f"{folder.name}/{name}": content
            for folder in folders
            for name, content in left_by(folder).items()
        }
        figures = json.loads((runs / "swept" / "sweep.json").read_text())
        for run in figures["runs"]:
            run.pop("seconds", None)
        return found | {"sweep.json": json.dumps(figures).encode()}


class scratch:
    """A folder of its own for the length of a block, behind symbolic links resolved."""

    def __init__(self, folder: Path) -> None:
        self.folder = Path(tempfile.mkdtemp(dir=folder)).resolve()

    def __enter__(self) -> Path:
        return self.folder

    def __exit__(self, *args: object) -> None:
        shutil.rmtree(self.folder)


def left_by(folder: Path) -> dict[str, bytes]:
    """Return everything in a run's folder that must not depend on how often it was ended: all but
    times, versions, the checkpoint's own counters.
    """
    found = {
        p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()
    }
    state = json.loads(found.pop("state.json"))
    kept = {
        name: content
        for name, content in found.items()
        if not name.startswith("checkpoint/") and name not in (".lock", "environment.json")
    }
    numbers = sorted(name for name in found if name.startswith("checkpoint/"))
    shape = [len(numbers), *sorted({Path(n).suffix for n in numbers})]
    return kept | {
        "state.json": (
            json.dumps({k: v for k, v in state.items() if k not in ("seconds", "resumed")}).encode()
        ),
        "": repr(shape).encode(),
    }


def child(work: Callable[[], object]) -> int:
    """Do ``work`` in a forked process; return its exit code, negative for the signal that ended it."""
    pid = os.fork()
    if not pid:
        code = 1
        try:
            for text in (
                "damaged",
                "lacks",
                "is not what training wrote",
            ):  # to be said where something was altered, and nowhere else
                warnings.filterwarnings("error", message=f".*{text}")
            work()
            code = 0
        except SystemExit as end:
            code = int(end.code or 0)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


# --- cases


Outcome = tuple[int, str]
"""How many processes were ended, and what a last one made of what they left."""


def died_at(world: World, runs: Path, ats: list[int], cut: str = "") -> Outcome:
    """Kill a run at its ``ats[0]``-th operation, the process that goes on at its ``ats[1]``-th, and
    so on, and let it go on to the end.
    """
    kills = 0
    for at in ats:

        def doomed(at: int = at) -> None:
            Fault(runs, at, random.Random(f"{cut}:{at}") if cut else None).install()
            world.go(runs)

        code = child(doomed)
        kills += code == KILLED
        if code not in (0, KILLED):
            return kills, f"failed: exit code {code} before operation {at}"
    return outcome(world, runs, kills, child(lambda: world.go(runs)))


def outcome(world: World, runs: Path, kills: int, code: int, part: str = "") -> Outcome:
    """Compare what is left, in ``part`` of the folder, after ``kills`` and a last process that
    ended with ``code``.
    """
    if code:
        return kills, f"failed: exit code {code} when going on"
    found = world.left(runs)
    names = {name for name in found.keys() | world.expected.keys() if name.startswith(part)}
    wrong = sorted(
        name or "checkpoints" for name in names if found.get(name) != world.expected.get(name)
    )
    return kills, f"differs: {', '.join(wrong)}" if wrong else "identical"


def command(world: World, runs: Path) -> None:
    """The command, all of it but the imports."""
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    os.dup2(quiet, 2)
    cli.main(world.command(runs))


def shot(world: World, runs: Path, number: signal.Signals, share: float) -> Outcome:
    """Send a signal to the command after a ``share`` of the time that it takes, and let the same
    command go on.
    """
    pid = os.fork()
    if not pid:
        try:
            signal.signal(
                signal.SIGINT, signal.default_int_handler
            )  # a shell's background jobs ignore it
            command(world, runs)
        except SystemExit as end:
            os._exit(int(end.code or 0))
        except KeyboardInterrupt:  # before there was a run that could have saved itself
            os._exit(130)
        finally:
            os._exit(1)
    time.sleep(share * world.seconds)
    os.kill(pid, number)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if code not in (
        0,
        -number,
        128 + number,
        130,
    ):  # 0: it was done; 130: Ctrl-C before there was a run to save
        return 1, f"failed: exit code {code}"
    return outcome(
        world, runs, int(code != 0), child(lambda: command(world, runs)), world.commanded
    )


def altered(world: World, runs: Path, chance: random.Random) -> Outcome:
    """Damage what a killed process left, and let it go on: the damage must be said, and the end be
    the same.
    """
    at = chance.randint(world.operations // 4, world.operations // 2)

    def doomed() -> None:
        Fault(runs, at).install()
        world.go(runs)

    if child(doomed) != KILLED:
        return 0, "failed: not killed"
    path = world.alterable(runs, chance)
    if path is None:
        return altered(world, runs, chance)  # which goes on, to another moment
    content = bytearray(path.read_bytes())
    where = chance.randrange(len(content))
    if chance.random() < 0.5:
        path.write_bytes(content[:where])
    else:
        content[where] ^= 1 << chance.randrange(8)
        path.write_bytes(content)

    def go_on() -> None:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            world.go(runs)
        assert [w for w in said if " damaged" in str(w.message)], (
            f"{path} was altered at {where} and nobody said so"
        )

    return outcome(world, runs, 1, child(go_on))


Case = tuple[str, Callable[[Path], Outcome]]


def cases(world: World, seed: int, short: bool, often: dict[str, int]) -> list[Case]:
    """Return every fault with what does it; ``often``: how many of each that is not tried
    everywhere.
    """
    chance = random.Random(seed)
    every = range(1, world.operations + 1)
    some = chance.sample(every, often["some"]) if short else every
    found = [("killed at a file operation", partial(died_at, ats=[at])) for at in some]
    found += [
        ("power cut at a file operation", partial(died_at, ats=[at], cut=f"{seed}:{i}"))
        for i, at in enumerate(some if short else [*every] * 2)
    ]
    for i in range(often["again"]):
        ats = [chance.randint(1, len(every) // 2) for _ in range(3)]
        found.append(
            ("power cut three times in a row", partial(died_at, ats=ats, cut=f"{seed}:again:{i}"))
        )
    for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGINT):
        name = "kill -9" if number == signal.SIGKILL else number.name
        found += [
            (f"{name} at a random time", partial(shot, number=number, share=chance.uniform(0, 0.8)))
            for _ in range(often[number.name])
        ]
    found += [
        (world.altered, partial(altered, chance=random.Random(f"{seed}:altered:{i}")))
        for i in range(often["altered"])
    ]
    return [(world.name + name, partial(case, world)) for name, case in found]


OFTEN = {
    Training: {"again": 80, "SIGKILL": 80, "SIGTERM": 10, "SIGINT": 10, "altered": 60},
    Features: {"again": 20, "SIGKILL": 20, "SIGTERM": 5, "SIGINT": 5, "altered": 20},
    Sweeping: {"again": 0, "SIGKILL": 12, "SIGTERM": 4, "SIGINT": 4, "altered": 0},
}
OFTEN_IN_SHORT = {
    Training: {"some": 4, "again": 1, "SIGKILL": 1, "SIGTERM": 1, "SIGINT": 1, "altered": 1},
    Features: {"some": 2, "again": 1, "SIGKILL": 1, "SIGTERM": 0, "SIGINT": 0, "altered": 1},
}


def work_off(folder: Path, plan: Iterable[Case], report: Path) -> None:
    """Try the cases of ``plan``, each in a folder of its own, and write what came of them."""
    with report.open("w") as file:
        for fault, case in plan:
            with scratch(folder) as runs:
                try:
                    kills, what = case(runs)
                except Exception as error:
                    kills = 0
                    what = f"failed: {error!r}"
            print(json.dumps([fault, kills, what]), file=file, flush=True)


def torture(
    folder: Path, seed: int = 0, short: bool = False, workers: int = 2
) -> list[dict[str, Any]]:
    """Try every case; return rows {"fault", "tried", "kills", "outcomes": {outcome: count}}."""
    often = OFTEN_IN_SHORT if short else OFTEN
    plan = [case for kind in often for case in cases(kind(folder), seed, short, often[kind])]
    random.Random(seed).shuffle(plan)  # so that any stretch holds some of all
    reports = [folder / f"worker-{i}.jsonl" for i in range(workers)]
    pids = []
    for i, report in enumerate(reports):
        pid = os.fork()
        if pid:
            pids.append(pid)
            continue
        try:
            work_off(folder, plan[i::workers], report)
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
        own = [(kills, what) for name, kills, what in results if name == fault]
        outcomes = Counter(what for _, what in own)
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
    """Parse, torture, print; exit code 1 when anything but identical bytes came out."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--short", action="store_true", help="a sample of the cases")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write the rows there too")
    parser.add_argument(
        "--folder", type=Path, help="where to work (default: memory, if there is /dev/shm)"
    )
    args = parser.parse_args()
    start = time.monotonic()
    place = args.folder or (Path("/dev/shm") if Path("/dev/shm").is_dir() else None)
    with tempfile.TemporaryDirectory(prefix="killed-", dir=place) as folder:
        rows = torture(Path(folder), args.seed, args.short)
    for row in rows:
        print(
            f"{row['fault']:40} {row['tried']:5} {row['kills']:5}  "
            + ", ".join(f"{what}: {n}" for what, n in row["outcomes"].items())
        )
    print(
        f"{sum(row['tried'] for row in rows)} cases, {sum(row['kills'] for row in rows)} kills in"
        f" {time.monotonic() - start:.0f} s"
    )
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n")
    if any(what != "identical" for row in rows for what in row["outcomes"]):
        raise SystemExit(1)


if __name__ == "__main__":
    main()

"""The commands that are killed, on a real run of the tiny recipe, and their undisturbed results."""

import gc
import json
import os
import random
import shutil
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path

import torch

from modulate import cli
from modulate.config.recipe import load_recipe
from modulate.data.clip_shards import planned_clips
from modulate.data.feature_extractor import FeatureExtractor
from modulate.data.precompute import FeatureFiller
from modulate.evaluation.evaluate import evaluate
from modulate.inference.pipeline import Pipeline
from modulate.runs.run import Run
from modulate.training.trainer import train
from modulate.utils.atomic_files import LEFT_BEHIND
from tests.durability.faults import Fault

torch.set_num_threads(1)  # threads of a pool do not survive a fork

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


class Workload:
    """A command on the tiny recipe that is killed, and its files after an undisturbed run.

    ``expected`` holds those files, ``operations`` the number of file operations, ``seconds`` the
    command's duration.
    """

    name = ""
    """Prefix of the names of its faults."""
    command_folder = ""
    """Folder that the command fills, below the folder given to it."""
    corruption: str
    """Name of the fault that damages a file."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.overrides = [f"data.params.root={folder}/tabletop", *TINY]
        self.recipe = load_recipe("gazeqwen_tiny", self.overrides)
        self.prepare()
        undisturbed = folder / f"whole-{type(self).__name__}"
        self.run(undisturbed)
        self.expected = self.files(undisturbed)
        gc.collect()
        # accelerate collects garbage before every stage. Objects loaded by now are no garbage, and
        # scanning them would copy their pages in every forked process.
        gc.freeze()
        self.operations = self._count_operations()
        self.seconds = self._measure_seconds()

    def prepare(self) -> None:
        """Load everything that the forked processes share."""

    def run(self, runs: Path) -> None:
        """Do the command's work with the objects already loaded."""
        raise NotImplementedError

    def arguments(self, runs: Path) -> list[str]:
        """Return the arguments of the command line."""
        raise NotImplementedError

    def files(self, runs: Path) -> dict[str, bytes]:
        """Return the files that must not depend on how often the command was killed."""
        raise NotImplementedError

    def file_to_corrupt(self, runs: Path, rng: random.Random) -> Path | None:
        """Return a file whose damage must be noticed, or None."""
        raise NotImplementedError

    def _count_operations(self) -> int:
        """Return the number of file operations of an undisturbed run."""
        read, write = os.pipe()
        with ScratchFolder(self.folder) as runs:

            def count() -> None:
                fault = Fault(runs, 0)
                fault.install()
                self.run(runs)
                os.write(write, str(fault.count).encode())

            assert run_forked(count) == 0
            if self.files(runs) != self.expected:
                raise SystemExit(
                    "Two undisturbed runs differ, so killed runs cannot be compared with them."
                )
        return int(os.read(read, 20))

    def _measure_seconds(self) -> float:
        """Return the command's duration, s."""
        with ScratchFolder(self.folder) as runs:
            start = time.monotonic()
            assert run_forked(lambda: run_command(self, runs)) == 0
            return time.monotonic() - start


class Training(Workload):
    """`modulate train`, which fills a run's folder."""

    corruption = "last checkpoint altered or cut off"

    def prepare(self) -> None:
        """Load the host, and read the samples."""
        self.pipeline = Pipeline(self.recipe, self.folder / "cache")
        self.pipeline.make_data()

    def run(self, runs: Path) -> None:
        """Train and evaluate."""
        run = Run.create(self.recipe, runs)
        with run.locked():
            evaluate(run, self.pipeline, train(run, self.pipeline))

    def arguments(self, runs: Path) -> list[str]:
        """Return the arguments of the command line."""
        return [
            "train",
            "gazeqwen_tiny",
            *self.overrides,
            "--runs",
            str(runs),
            "--cache",
            str(self.folder / "cache"),
        ]

    def files(self, runs: Path) -> dict[str, bytes]:
        """Return the run's folder."""
        return run_files(runs / "tiny")

    def file_to_corrupt(self, runs: Path, rng: random.Random) -> Path | None:
        """Return a file of the last checkpoint, or None if the run has finished or has none."""
        checkpoints = sorted((runs / "tiny" / "checkpoint").glob("*.json"))
        if not checkpoints or (runs / "tiny" / "state.json").exists():
            return None
        return checkpoints[-1].with_suffix(rng.choice([".json", ".safetensors"]))


class Features(Workload):
    """`modulate features`, which fills two caches: one with frames, one without."""

    name = "features: "
    command_folder = "plain/"
    corruption = "shard altered or cut off"

    def run(self, runs: Path) -> None:
        """Fill both caches."""
        for name, frames in (("plain", 0), ("frames", 1)):
            recipe = load_recipe(
                "gazeqwen_tiny", [*self.overrides, f"features.frames_gib={frames}"]
            )
            extractor = FeatureExtractor(
                recipe, runs / name, torch.device("cpu"), require_disk=True
            )
            extractor.make_data()
            FeatureFiller(extractor).fill(planned_clips(extractor))

    def arguments(self, runs: Path) -> list[str]:
        """Return the arguments that fill the cache without frames."""
        return ["features", "gazeqwen_tiny", *self.overrides, "--cache", str(runs / "plain")]

    def files(self, runs: Path) -> dict[str, bytes]:
        """Return all files except half-written ones.

        Another process might still be writing those, so modulate keeps them for a day.
        """
        found = {}
        for path in runs.rglob("*"):
            half_written = any(fnmatch(path.name, pattern) for pattern in LEFT_BEHIND)
            if path.is_file() and not half_written:
                found[path.relative_to(runs).as_posix()] = path.read_bytes()
        return found

    def file_to_corrupt(self, runs: Path, rng: random.Random) -> Path | None:
        """Return a shard of features."""
        shards = sorted(runs.glob("*/*.safetensors"))
        return rng.choice(shards) if shards else None


class Sweeping(Workload):
    """`modulate sweep`: two runs, each in its own process, which outlives a killed sweep."""

    name = "sweep: "

    def prepare(self) -> None:
        """Write the sweep's file."""
        self.file = self.folder / "swept.yaml"
        axes = {"alpha": {"one": {}, "two": {"injection": {"alpha": 2.0}}}}
        self.file.write_text(json.dumps({"name": "swept", "base": "gazeqwen_tiny", "axes": axes}))

    def run(self, runs: Path) -> None:
        """Run the sweep in its own process, because it starts others."""
        code = run_forked(lambda: run_command(self, runs))
        if code:
            raise SystemExit(f"The sweep ended with exit code {code}.")

    def _count_operations(self) -> int:
        """Return 0: file operations are tried with `train`, which the sweep's processes run."""
        return 0

    def arguments(self, runs: Path) -> list[str]:
        """Return the arguments of the command line; the sweep names its own runs."""
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

    def files(self, runs: Path) -> dict[str, bytes]:
        """Return the files of the runs and the figures computed from them."""
        folders = sorted(path.parent for path in (runs / "swept").glob("*/recipe.yaml"))
        found = {
            f"{folder.name}/{name}": content
            for folder in folders
            for name, content in run_files(folder).items()
        }
        figures = json.loads((runs / "swept" / "sweep.json").read_text())
        for run in figures["runs"]:
            run.pop("seconds", None)
        return found | {"sweep.json": json.dumps(figures).encode()}


class ScratchFolder:
    """A temporary folder for the length of a `with` block, as a path without symbolic links."""

    def __init__(self, folder: Path) -> None:
        self.folder = Path(tempfile.mkdtemp(dir=folder)).resolve()

    def __enter__(self) -> Path:
        return self.folder

    def __exit__(self, *args: object) -> None:
        shutil.rmtree(self.folder)


def run_files(folder: Path) -> dict[str, bytes]:
    """Return the files of a run's folder that must not depend on how often the run was killed.

    Times, versions and the numbers of checkpoints may differ.
    """
    found = {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }
    state = json.loads(found.pop("state.json"))
    comparable = {
        name: content
        for name, content in found.items()
        if not name.startswith("checkpoint/") and name not in (".lock", "environment.json")
    }
    numbers = sorted(name for name in found if name.startswith("checkpoint/"))
    shape = [len(numbers), *sorted({Path(number).suffix for number in numbers})]
    return comparable | {
        "state.json": (
            json.dumps(
                {
                    name: tensor
                    for name, tensor in state.items()
                    if name not in ("seconds", "resumed")
                }
            ).encode()
        ),
        "": repr(shape).encode(),
    }


def run_forked(work: Callable[[], object]) -> int:
    """Do ``work`` in a forked process; return its exit code, or minus the signal that ended it."""
    pid = os.fork()
    if not pid:
        code = 1
        try:
            # These warnings may only appear where a test has damaged a file.
            for text in ("damaged", "lacks", "was changed since training wrote it"):
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


def run_command(workload: Workload, runs: Path) -> None:
    """Run the whole command except for the imports, without output."""
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    os.dup2(quiet, 2)
    cli.main(workload.arguments(runs))

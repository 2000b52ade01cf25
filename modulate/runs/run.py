"""A run: a folder with a training's recipe, environment, log, checkpoints, weights and results."""

import functools
import importlib.metadata
import platform
import shutil
import subprocess
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modulate.config import recipe as recipes
from modulate.config.local_paths import local_paths, relocated
from modulate.config.recipe import Recipe
from modulate.distributed.launch import current
from modulate.errors import CheckpointError, MissingFileError, RecipeError
from modulate.runs.checkpoints import Checkpoints
from modulate.runs.records import Environment, RunState, read_environment, read_metrics, read_state
from modulate.utils.atomic_files import read_hash, write_json, write_text
from modulate.utils.file_lock import folder_lock

PACKAGES = (
    "modulate",
    "torch",
    "transformers",
    "peft",
    "accelerate",
    "safetensors",
    "timm",
    "av",
    "numpy",
    "pydantic",
)


@dataclass(frozen=True)
class Run:
    """One training run's folder.

    It holds recipe.yaml (every default written out), environment.json (versions, git state),
    log.jsonl (training curve), checkpoint/ (from which a killed run continues), modulation/ (the
    trained weights), state.json (written when training is finished: fingerprints, and what was
    skipped or failed), evaluation/ (conditions that an unfinished evaluation has completed),
    metrics.json and predictions.jsonl.
    """

    folder: Path
    recipe: Recipe

    @classmethod
    def create(cls, recipe: Recipe, root: Path) -> "Run":
        """Create or reopen ``root/<recipe name>``.

        Raises :class:`RecipeError` if it holds a run of another recipe that took a step or has
        results.
        """
        run = cls(root / recipe.name, recipe)
        processes = current()
        with processes.fail_together(), run.locked():
            if processes.is_main_process:
                run._begin()
            processes.barrier()
        return run

    def _begin(self) -> None:
        text = recipes.dump(self.recipe)
        existing = self.folder / "recipe.yaml"
        changed = []
        if existing.is_file():
            changed = recipes.differing(recipes.load_saved_recipe(existing), self.recipe)
        # A run that failed before its first step has nothing to lose, and its recipe was wrong.
        if changed and self.has_begun:
            raise RecipeError(
                f"{self.folder} holds a run of another recipe (differs in {', '.join(changed)});"
                " give this one another name with name=…, or remove that folder."
            )
        write_text(existing, text)
        self.write_json("environment.json", environment() | {"paths": local_paths(self.recipe)})

    @property
    def has_begun(self) -> bool:
        """Whether it took a step of training, or holds weights, results or anything to continue."""
        files = ("state.json", "log.jsonl", "metrics*.json", "predictions*.jsonl")
        folders = (self.weights, self.evaluation, self.checkpoints.folder)
        return any(path.stat().st_size for name in files for path in self.folder.glob(name)) or any(
            path.is_file() for folder in folders for path in folder.rglob("*")
        )

    @classmethod
    def open(cls, folder: Path) -> "Run":
        """Open a finished or unfinished run, from any directory.

        Relative paths in its recipe lead where they led when it began. Raises
        :class:`MissingFileError` if the folder holds none.
        """
        path = folder / "recipe.yaml"
        if not path.is_file():
            raise MissingFileError(
                f"{folder} is not a run: recipe.yaml is missing. `modulate train RECIPE` makes one."
            )
        run = cls(folder, recipes.load_saved_recipe(path))
        # A run that was copied without this file has its recipe's own paths.
        if not (folder / "environment.json").is_file():
            return run
        return cls(folder, relocated(run.recipe, run.read_environment().paths))

    @property
    def weights(self) -> Path:
        """Folder of the trained modulation."""
        return self.folder / "modulation"

    @property
    def evaluation(self) -> Path:
        """Folder of the conditions that an unfinished evaluation has completed."""
        return self.folder / "evaluation"

    @property
    def checkpoints(self) -> Checkpoints:
        """The training's checkpoints."""
        return Checkpoints(self.folder / "checkpoint")

    def locked(self) -> AbstractContextManager[None]:
        """Lock the run for the length of a ``with`` block.

        Rank 0 locks it for all processes of the run. Raises :class:`LockedError` if a process of
        another run holds it.
        """
        return folder_lock(self.folder) if current().is_main_process else nullcontext()

    def clear(self) -> None:
        """Remove all results of training and evaluation.

        Checkpoints go first, so that a kill in between leaves a run that is finished, or not begun.
        """
        self.checkpoints.clear()
        for name in ("state.json", "log.jsonl"):
            (self.folder / name).unlink(missing_ok=True)
        for path in [*self.folder.glob("metrics*.json"), *self.folder.glob("predictions*.jsonl")]:
            path.unlink(missing_ok=True)
        for folder in (self.weights, self.evaluation):
            shutil.rmtree(folder, ignore_errors=True)

    def weight_hashes(self) -> dict[str, str]:
        """Return the sha256 (hex) of each file of the trained modulation."""
        return {
            path.relative_to(self.weights).as_posix(): read_hash(path)
            for path in sorted(self.weights.rglob("*"))
            if path.is_file()
        }

    def altered(self) -> list[Path]:
        """Return the modulation's files whose checksums differ from those in state.json."""
        hashes = self.read_state().weights
        found = self.weight_hashes()
        return [self.weights / name for name in sorted(hashes) if found.get(name) != hashes[name]]

    def check_weights(self) -> None:
        """Raise :class:`CheckpointError` if a file of the modulation was changed since training."""
        wrong = self.altered()
        if wrong:
            raise CheckpointError(
                f"{wrong[0]} was changed since training wrote it. `modulate train` with the run's"
                " recipe makes it again from the last checkpoint."
            )

    def write_json(self, name: str, value: Any) -> None:
        """Write one of the run's JSON files atomically."""
        write_json(self.folder / name, value)

    def predictions(self, split: str) -> Path:
        """Return the file of the answers to ``split``.

        The test split's file has the plain name, so that no other split overwrites it.
        """
        return self.folder / f"predictions{_suffix(split)}.jsonl"

    def metrics(self, split: str = "test") -> Path:
        """Return the file of the metrics of ``split``, named likewise."""
        return self.folder / f"metrics{_suffix(split)}.json"

    def read_state(self) -> RunState:
        """Return the training's state.json, validated. Raises :class:`DataError`."""
        return read_state(self.folder / "state.json")

    def read_environment(self) -> Environment:
        """Return environment.json, validated. Raises :class:`DataError`."""
        return read_environment(self.folder / "environment.json")

    def read_json(self, name: str) -> dict[str, Any]:
        """Return a JSON file of the run, validated, as plain data; {} if it does not exist yet.

        Raises :class:`DataError`.
        """
        readers = {"state.json": read_state, "environment.json": read_environment}
        found = readers.get(name, read_metrics)(self.folder / name)
        return found.model_dump(exclude_unset=True) if found is not None else {}


def _suffix(split: str) -> str:
    return "" if split == "test" else f"-{split}"


def environment() -> dict[str, Any]:
    """Return the versions of Python and of the packages that matter, and the git state."""
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {
        "python": platform.python_version(),
        "system": platform.system(),
        "machine": platform.machine(),
        "versions": versions,
        "git": _git_state(),
    }


@functools.cache  # Once per process: commits made while a run is going on are not what it runs.
def _git_state() -> dict[str, Any] | None:
    source = Path(__file__).parent
    try:
        commit = subprocess.run(
            ["git", "-C", str(source), "rev-parse", "HEAD"],
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        ).stdout.strip()
        status = subprocess.run(
            ["git", "-C", str(source), "status", "--porcelain"],
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return None  # Not a checkout, or no git: the versions say what ran.
    return {"commit": commit, "modified": bool(status.strip())}

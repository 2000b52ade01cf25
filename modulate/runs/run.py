"""A run is a folder that explains itself."""

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
    """Where everything about one training run lies.

    recipe.yaml (resolved) · environment.json (versions, git state) · log.jsonl (training curve) ·
    checkpoint/ (from which a killed run goes on) · modulation/ (the trained weights) · state.json
    (written when training is finished: what it is made of, what was skipped or failed) ·
    evaluation/ (conditions that a killed evaluation had finished) · metrics.json ·
    predictions.jsonl
    """

    folder: Path
    recipe: Recipe

    @classmethod
    def create(cls, recipe: Recipe, root: Path) -> "Run":
        """Make or reopen ``root/<recipe name>``.

        Raises :class:`RecipeError` when it holds a run of another recipe.
        """
        run = cls(root / recipe.name, recipe)
        processes = current()
        with processes.fail_together(), run.held():
            if processes.leads:
                run._begin()
            processes.meet()
        return run

    def _begin(self) -> None:
        text = recipes.dump(self.recipe)
        existing = self.folder / "recipe.yaml"
        if existing.is_file() and (
            changed := recipes.differing(recipes.load_saved_recipe(existing), self.recipe)
        ):
            raise RecipeError(
                f"{self.folder} holds a run of another recipe (differs in {', '.join(changed)});"
                " give this one another name with name=…, or remove that folder."
            )
        write_text(existing, text)
        self.write_json("environment.json", environment())

    @classmethod
    def open(cls, folder: Path) -> "Run":
        """Open a finished or unfinished run.

        Raises :class:`MissingFileError` when the folder holds none.
        """
        path = folder / "recipe.yaml"
        if not path.is_file():
            raise MissingFileError(
                f"{folder} is no run: recipe.yaml is missing there. `modulate train RECIPE` makes"
                " one."
            )
        return cls(folder, recipes.load_saved_recipe(path))

    @property
    def weights(self) -> Path:
        """Folder of the trained modulation."""
        return self.folder / "modulation"

    @property
    def evaluation(self) -> Path:
        """Folder of what an evaluation that is not finished has."""
        return self.folder / "evaluation"

    @property
    def checkpoints(self) -> Checkpoints:
        """The checkpoints of its training."""
        return Checkpoints(self.folder / "checkpoint")

    def held(self) -> AbstractContextManager[None]:
        """Hold the run for the length of a ``with`` block.

        Raises :class:`LockedError` when another process does.

        Of several processes of one run the first holds it for all; the others end when it cannot.
        """
        return folder_lock(self.folder) if current().leads else nullcontext()

    def clear(self) -> None:
        """Remove what training and evaluation have made, checkpoints first: a kill meanwhile leaves
        a run that is continued, finished, or not begun.
        """
        self.checkpoints.clear()
        for name in ("state.json", "log.jsonl"):
            (self.folder / name).unlink(missing_ok=True)
        for path in [*self.folder.glob("metrics*.json"), *self.folder.glob("predictions*.jsonl")]:
            path.unlink(missing_ok=True)
        for folder in (self.weights, self.evaluation):
            shutil.rmtree(folder, ignore_errors=True)

    def weight_hashes(self) -> dict[str, str]:
        """Return the files of the trained modulation with their sha256 (hex)."""
        return {
            path.relative_to(self.weights).as_posix(): read_hash(path)
            for path in sorted(self.weights.rglob("*"))
            if path.is_file()
        }

    def altered(self) -> list[Path]:
        """Return the files of the trained modulation that are not what training wrote, by the
        checksums in state.json.
        """
        hashes = self.read_state().weights
        found = self.weight_hashes()
        return [self.weights / name for name in sorted(hashes) if found.get(name) != hashes[name]]

    def check_weights(self) -> None:
        """Raise :class:`CheckpointError` when the trained modulation is not what training wrote."""
        wrong = self.altered()
        if wrong:
            raise CheckpointError(
                f"{wrong[0]} is not what training wrote. `modulate train` with the run's recipe"
                " makes it again from the last checkpoint."
            )

    def write_json(self, name: str, value: Any) -> None:
        """Write one of the run's JSON files atomically."""
        write_json(self.folder / name, value)

    def predictions(self, split: str) -> Path:
        """Return the file of the answers to ``split``. The test split's has the plain name; another
        split's never overwrites it.
        """
        return self.folder / f"predictions{_suffix(split)}.jsonl"

    def metrics(self, split: str = "test") -> Path:
        """Return the file of the figures of ``split``, named likewise."""
        return self.folder / f"metrics{_suffix(split)}.json"

    def read_state(self) -> RunState:
        """Return what state.json says of the training. Raises :class:`DataError`."""
        return read_state(self.folder / "state.json")

    def read_environment(self) -> Environment:
        """Return what the run was made with. Raises :class:`DataError`."""
        return read_environment(self.folder / "environment.json")

    def read_json(self, name: str) -> dict[str, Any]:
        """Return what a JSON file of the run says, checked, as a plain tree; {} when it does not
        exist yet. Raises :class:`DataError`.
        """
        readers = {"state.json": read_state, "environment.json": read_environment}
        found = readers.get(name, read_metrics)(self.folder / name)
        return found.model_dump(exclude_unset=True) if found is not None else {}


def _suffix(split: str) -> str:
    return "" if split == "test" else f"-{split}"


def environment() -> dict[str, Any]:
    """Return versions and git state."""
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {
        "python": platform.python_version(),
        "system": platform.system(),
        "machine": platform.machine(),
        "versions": versions,
        "git": _git_state(),
    }


@functools.cache  # asked when a run begins: what is committed while it goes on is not what it runs
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
        return None  # not a checkout, or no git: the versions above say what ran
    return {"commit": commit, "modified": bool(status.strip())}

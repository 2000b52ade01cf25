"""A run is a folder that explains itself."""

import importlib.metadata
import json
import platform
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modulate import recipe as recipes
from modulate.errors import MissingFileError, RecipeError
from modulate.files import write_atomically
from modulate.parse import parse_yaml, read_yaml
from modulate.recipe import Recipe

PACKAGES = ("modulate", "torch", "transformers", "peft", "accelerate", "safetensors", "timm", "av", "numpy", "pydantic")


@dataclass(frozen=True)
class Run:
    """Where everything about one training run lies.

    recipe.yaml (resolved) · environment.json (versions, git state) · state.json (how far it got, what it is made of: data, host, backbone) · log.jsonl (training
    curve) · modulation/ (the trained weights) · metrics.json · predictions.jsonl
    """

    folder: Path
    recipe: Recipe

    @classmethod
    def create(cls, recipe: Recipe, root: Path) -> "Run":
        """Make or reopen ``root/<recipe name>``. Raises :class:`RecipeError` when it holds a run of another recipe."""
        run = cls(root / recipe.name, recipe)
        text = recipes.dump(recipe)
        existing = run.folder / "recipe.yaml"
        if existing.is_file() and existing.read_text() != text:
            changed = _differences(read_yaml(existing), parse_yaml(text, recipe.name))
            raise RecipeError(
                f"{run.folder} holds a run of another recipe (differs in {', '.join(changed)}); give this one another name with name=…, or remove that folder."
            )
        write_atomically(existing, lambda path: path.write_text(text))
        run.write_json("environment.json", environment())
        return run

    @classmethod
    def open(cls, folder: Path) -> "Run":
        """Open a finished or unfinished run. Raises :class:`MissingFileError` when the folder holds none."""
        path = folder / "recipe.yaml"
        if not path.is_file():
            raise MissingFileError(f"{folder} is no run: recipe.yaml is missing there. `modulate train RECIPE` makes one.")
        return cls(folder, recipes.load_recipe(str(path)))

    @property
    def weights(self) -> Path:
        """Folder of the trained modulation."""
        return self.folder / "modulation"

    def write_json(self, name: str, value: Any) -> None:
        """Write one of the run's JSON files atomically."""
        text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        write_atomically(self.folder / name, lambda path: path.write_text(text))

    def read_json(self, name: str) -> Any:
        """Read one of the run's JSON files; {} when it does not exist yet."""
        path = self.folder / name
        return json.loads(path.read_text()) if path.is_file() else {}


def environment() -> dict[str, Any]:
    """Return versions and git state."""
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {"python": platform.python_version(), "system": platform.system(), "machine": platform.machine(), "versions": versions, "git": _git_state()}


def _git_state() -> dict[str, Any] | None:
    source = Path(__file__).parent
    try:
        commit = subprocess.run(["git", "-C", str(source), "rev-parse", "HEAD"], capture_output=True, text=True, check=True, timeout=10).stdout.strip()
        status = subprocess.run(["git", "-C", str(source), "status", "--porcelain"], capture_output=True, text=True, check=True, timeout=10).stdout
    except (OSError, subprocess.SubprocessError):
        return None  # not a checkout, or no git: the versions above say what ran
    return {"commit": commit, "modified": bool(status.strip())}


def _differences(a: Any, b: Any, prefix: str = "") -> list[str]:
    if isinstance(a, dict) and isinstance(b, dict):
        return [d for key in sorted(a.keys() | b.keys()) for d in _differences(a.get(key), b.get(key), f"{prefix}.{key}".lstrip("."))]
    return [] if a == b else [prefix]

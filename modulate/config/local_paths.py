"""Paths of a recipe's components that start at the working directory, recorded with its runs.

A run then finds its host and its data from any directory.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from modulate.config.recipe import Recipe
from modulate.interfaces.params import ComponentSpec, LocalPath
from modulate.utils.paths import PREFIX


def local_paths(recipe: Recipe) -> dict[str, str]:
    """Return the absolute path behind each relative path of a recipe's components, by key.

    Only parameters marked with :class:`LocalPath` are paths from the working directory.
    """
    found = {}
    for key, kind, spec in recipe.component_specs():
        params = spec.resolved(kind)[1]
        for name, mark in type(params).local_paths().items():
            value = getattr(params, name)
            if _is_relative(value, mark):
                found[f"{key}.params.{name}"] = str(Path(value).absolute())
    return found


def _is_relative(value: Any, mark: LocalPath) -> bool:
    """Return whether a parameter's value is a path from the working directory."""
    text = str(value)
    if value is None or text in mark.words or text.startswith((PREFIX, "~")):
        return False
    if Path(text).is_absolute():
        return False
    # Text may also be a hub id, for which nothing lies here.
    return isinstance(value, Path) or text.startswith(".") or Path(text).exists()


def relocated(recipe: Recipe, recorded: Mapping[str, str]) -> Recipe:
    """Return a run's recipe with the paths that :func:`local_paths` ``recorded`` when it began.

    Where a recorded path is gone and the recipe's own leads somewhere from here, as in a project
    that was moved as a whole, the recipe's own stays.
    """
    inputs = dict(recipe.evaluation.inputs)
    changes: dict[str, Any] = {}
    for key, kind, spec in recipe.component_specs():
        moved = _relocated(spec, kind, key, recorded)
        section, _, name = key.rpartition("inputs.")
        if section:
            inputs[name] = moved
        elif moved is not spec:
            changes[key] = moved
    if inputs != recipe.evaluation.inputs:
        changes["evaluation"] = recipe.evaluation.model_copy(update={"inputs": inputs})
    return recipe.model_copy(update=changes) if changes else recipe


def _relocated(
    spec: ComponentSpec, kind: str, key: str, recorded: Mapping[str, str]
) -> ComponentSpec:
    params = spec.resolved(kind)[1]
    changes = {}
    for name, mark in type(params).local_paths().items():
        path = recorded.get(f"{key}.params.{name}")
        value = str(getattr(params, name))
        if path is None or value in mark.words or Path(value).is_absolute():
            continue
        here = Path(value).absolute()
        if str(here) != path and (Path(path).exists() or not here.exists()):
            changes[name] = path
    return spec.model_copy(update={"params": {**spec.params, **changes}}) if changes else spec

"""How recipes differ in what they train, and the axes along which a set of recipes varies."""

import json
from collections.abc import Sequence
from typing import Any

from modulate.config.recipe import KIND_OF, Recipe

Differences = dict[str, tuple[Any, Any]]
"""Recipe key → its value in the first and in the second recipe, ABSENT where a key is missing."""

ABSENT = "(absent)"


def train_alike(first: Recipe, second: Recipe) -> bool:
    """Return whether two recipes train the same thing and score it alike.

    They may differ in name, seed, trackers, disk quota and evaluated conditions.
    """
    return _comparable(first) == _comparable(second)


def differences(first: Recipe, second: Recipe) -> Differences:
    """Return how two recipes differ, with every default written out.

    Ignores what :func:`train_alike` ignores. A component with another name is one difference,
    whatever its parameters; so is a section that only one recipe has.
    """
    return _tree_differences(_comparable(first), _comparable(second), "")


def _comparable(recipe: Recipe) -> dict[str, Any]:
    """Return the recipe as a tree without the keys that change neither training nor scoring."""
    tree = json.loads(recipe.model_dump_json(exclude={"name", "seed"}))
    # Failed samples change every score; the rest of the section only says what else is measured.
    tree["evaluation"] = {"failed": recipe.evaluation.failed}
    tree["training"].pop("trackers")
    tree["features"].pop("disk_gib")
    for key, kind in KIND_OF.items():
        spec = getattr(recipe, key)
        # Defaults are filled in, so that writing one out makes no difference.
        _, params = spec.resolved(kind)
        tree[key] = {"name": spec.name, "params": json.loads(params.model_dump_json())}
    return tree


def _tree_differences(first: Any, second: Any, path: str) -> Differences:
    if first == second:
        return {}
    both_mappings = isinstance(first, dict) and isinstance(second, dict)
    # The parameters of two different components are not comparable key by key.
    if not both_mappings or ("name" in first and first["name"] != second.get("name")):
        return {path: (first, second)}
    found: Differences = {}
    for key in [*first, *(key for key in second if key not in first)]:
        below = f"{path}.{key}" if path else key
        found |= _tree_differences(first.get(key, ABSENT), second.get(key, ABSENT), below)
    return found


def differing_axes(first: Recipe, second: Recipe) -> Differences:
    """Return :func:`differences` without those that another one forces.

    With LoRA in one recipe only, their stages must differ in training it; that is no second axis.
    """
    found = differences(first, second)
    forced = "lora" in found and "training.stages" in found
    if forced and _stages_without_lora(first) == _stages_without_lora(second):
        del found["training.stages"]
    return found


def _stages_without_lora(recipe: Recipe) -> list[Any]:
    """Return what each stage trains besides LoRA and for how long; drop stages of LoRA alone."""
    stages = [stage for stage in recipe.training.stages if set(stage.train) != {"lora"}]
    return [(sorted(set(stage.train) - {"lora"}), stage.epochs, stage.lr) for stage in stages]


def find_base(recipes: Sequence[Recipe]) -> int:
    """Return the index of the recipe from which most others differ in exactly one axis.

    Ties go to the first.
    """
    counts = [sum(len(differing_axes(base, other)) == 1 for other in recipes) for base in recipes]
    return counts.index(max(counts))


def axis_label(key: str) -> str:
    """Return a short name of an axis: ``modulator.params.sharing`` → ``modulator: sharing``."""
    return key.replace(".params.", ": ", 1)


def format_value(value: Any) -> str:
    """Return a recipe value for a table cell: components by name, None as ``none``."""
    if value is None:
        return "none"
    if isinstance(value, dict):
        if "name" in value:
            return str(value["name"])
        return ", ".join(f"{key} {format_value(item)}" for key, item in value.items())
    if isinstance(value, list):
        if value and all(isinstance(item, dict) and "train" in item for item in value):
            return "; ".join(map(_format_stage, value))
        return ", ".join(map(format_value, value))
    return str(value)


def _format_stage(stage: dict[str, Any]) -> str:
    return f"{' + '.join(stage['train'])} {stage['epochs']:g} epochs, lr {stage['lr']:g}"

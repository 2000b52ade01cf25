"""In what two recipes differ, as far as it matters for what was trained; and the axes along which a
set of recipes varies.
"""

import json
from collections.abc import Sequence
from typing import Any

from modulate.config.recipe import KIND_OF, Recipe

Differences = dict[str, tuple[Any, Any]]
"""Key of a recipe → its value in the first and in the second; ABSENT where one does not have it."""

ABSENT = "(absent)"


def same_trained(a: Recipe, b: Recipe) -> bool:
    """Return whether two recipes train the same thing and score it alike: they differ in name,
    seed, trackers or further conditions only.
    """
    return _tree(a) == _tree(b)


def differences(a: Recipe, b: Recipe) -> Differences:
    """Return in what two recipes differ, beyond name, seed, trackers and the conditions evaluated,
    every default written out.

    A component of another name is one difference, named by its key, whatever its parameters; so is
    a section that only one of them has.
    """
    return _differences(_tree(a), _tree(b), "")


def _tree(recipe: Recipe) -> dict[str, Any]:
    tree = json.loads(recipe.model_dump_json(exclude={"name", "seed"}))
    tree["evaluation"] = {"failed": recipe.evaluation.failed}
    tree["training"].pop("trackers")
    tree["features"].pop("disk_gib")
    for key, kind in KIND_OF.items():
        choice = getattr(recipe, key)
        _, params = choice.resolved(kind)
        tree[key] = {"name": choice.name, "params": json.loads(params.model_dump_json())}
    return tree


def _differences(a: Any, b: Any, at: str) -> Differences:
    if a == b:
        return {}
    if not (isinstance(a, dict) and isinstance(b, dict)) or (
        "name" in a and a["name"] != b.get("name")
    ):
        return {at: (a, b)}
    found: Differences = {}
    for key in [*a, *(k for k in b if k not in a)]:
        found |= _differences(a.get(key, ABSENT), b.get(key, ABSENT), f"{at}.{key}" if at else key)
    return found


def axes(a: Recipe, b: Recipe) -> Differences:
    """Return :func:`differences` without what others of them force: with or without LoRA, the
    stages must differ in training it.
    """
    found = differences(a, b)
    if "lora" in found and "training.stages" in found and _without_lora(a) == _without_lora(b):
        del found["training.stages"]
    return found


def _without_lora(recipe: Recipe) -> list[Any]:
    """What the stages train besides LoRA, and for how long: names and the rates of LoRA left out."""
    stages = [stage for stage in recipe.training.stages if set(stage.train) != {"lora"}]
    return [(sorted(set(stage.train) - {"lora"}), stage.epochs, stage.lr) for stage in stages]


def base_of(recipes: Sequence[Recipe]) -> int:
    """Return the index of the recipe from which most of the others differ in exactly one axis; the
    first of several.
    """
    alone = [sum(len(axes(base, other)) == 1 for other in recipes) for base in recipes]
    return alone.index(max(alone))


def axis_label(key: str) -> str:
    """Return a short name of an axis: ``modulator.params.sharing`` → ``modulator: sharing``."""
    return key.replace(".params.", ": ", 1)


def value_text(value: Any) -> str:
    """Return a value of a recipe for a cell: a component by its name, nothing as ``none``, the rest
    as it is written.
    """
    if isinstance(value, dict) and "name" in value:
        return str(value["name"])
    if value is None:
        return "none"
    if (
        isinstance(value, list)
        and value
        and all(isinstance(v, dict) and "train" in v for v in value)
    ):
        return "; ".join(
            f"{' + '.join(v['train'])} {v['epochs']:g} epochs, lr {v['lr']:g}" for v in value
        )
    if isinstance(value, dict):
        return ", ".join(f"{k} {value_text(v)}" for k, v in value.items())
    return ", ".join(map(value_text, value)) if isinstance(value, list) else str(value)

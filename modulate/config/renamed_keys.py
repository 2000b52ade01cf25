"""Renamed recipe keys: refused in a recipe, with the new name; translated in a saved run."""

from typing import Any

RENAMED = {
    "sampling.told_fps": "processor_fps",
    "features.tower_gib": "vision_tower_cache_gib",
    "features.tower_by": "vision_tower_cache_by",
    "features.states_gib": "hidden_state_cache_gib",
    "training.together": "batch_by",
    "training.ahead": "prefetch_batches",
    "training.recompute": "gradient_checkpointing",
    "evaluation.together": "batch_by",
}
"""Keys of version 0.1 with their section, and the keys that replaced them."""

RENAMED_INPUT_PARAMS = {"dot_colour": "dot_color", "circle_colour": "circle_color"}
"""Renamed parameters of the shipped input transforms."""


def new_name(key: str) -> str | None:
    """Return what the dotted ``key`` is called now, or None if it was never renamed."""
    section, _, _ = key.rpartition(".")
    return f"{section}.{RENAMED[key]}" if key in RENAMED else None


def translate(tree: dict[str, Any]) -> dict[str, Any]:
    """Return a saved recipe's ``tree`` with every old key replaced; values do not change."""
    translated = dict(tree)
    for old, new in RENAMED.items():
        section, _, key = old.rpartition(".")
        settings = translated.get(section)
        if isinstance(settings, dict) and key in settings and new not in settings:
            renamed = {new if name == key else name: value for name, value in settings.items()}
            translated[section] = renamed
    return _translate_inputs(translated)


def _translate_inputs(tree: dict[str, Any]) -> dict[str, Any]:
    evaluation = tree.get("evaluation")
    inputs = evaluation.get("inputs") if isinstance(evaluation, dict) else None
    if not isinstance(evaluation, dict) or not isinstance(inputs, dict):
        return tree
    translated = {}
    for name, spec in inputs.items():
        params = spec.get("params") if isinstance(spec, dict) else None
        if isinstance(params, dict):
            params = {RENAMED_INPUT_PARAMS.get(key, key): value for key, value in params.items()}
            spec = {**spec, "params": params}
        translated[name] = spec
    return {**tree, "evaluation": {**evaluation, "inputs": translated}}

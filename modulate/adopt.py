"""A run of weights that were trained elsewhere: a recipe, a modulation that fits it, and nothing left to train."""

from pathlib import Path
from typing import Any

from modulate.errors import RecipeError
from modulate.modulation import Modulation, ModulationConfig
from modulate.recipe import Recipe
from modulate.run import Run


def adopt(recipe: Recipe, weights: str, root: Path) -> Run:
    """Make ``root/<recipe name>`` a finished run whose modulation is ``weights``, a folder or the name of a hub repository.

    Raises :class:`RecipeError` when the modulation is not what the recipe describes, or the folder holds a training's own weights.
    """
    modulation = Modulation.from_pretrained(weights)
    if wrong := mismatches(recipe, modulation.config):
        raise RecipeError(f"{weights} is no modulation of the recipe {recipe.name!r}:\n" + "\n".join(f"  {line}" for line in wrong))
    run = Run.create(recipe, root)
    with run.held():
        if run.weights.exists() and run.read_state().adopted is None:
            raise RecipeError(f"{run.folder} holds the weights of a training; give this run another name with name=….")
        run.clear()
        modulation.save_pretrained(run.weights)
        run.write_json("state.json", {"finished": True, "adopted": weights, "weights": run.weight_hashes(), "steps": 0})
    return run


def mismatches(recipe: Recipe, config: ModulationConfig) -> list[str]:
    """Return in what a modulation differs from what a recipe describes; the weights' initial values and the host's path do not count."""
    asked: dict[str, tuple[Any, Any]] = {
        "encoder": (_whole(recipe.encoder, "signal_encoder"), _whole(config.encoder, "signal_encoder")),
        "modulator": (_whole(recipe.modulator, "modulator"), _whole(config.modulator, "modulator")),
        "lora": (recipe.lora, config.lora.params if config.lora else None),
        **{f"injection.{key}": (getattr(recipe.injection, key), getattr(config.injection, key)) for key in ("layers", "tokens", "empty")},
    }
    return [f"{key}: the recipe says {wanted}, the modulation has {found}." for key, (wanted, found) in asked.items() if wanted != found]


def _whole(choice: Any, kind: str) -> tuple[str, dict[str, Any]]:
    """Return a component's name and all its parameters, defaults filled in."""
    _, params = choice.resolved(kind)
    return choice.name, params.model_dump()

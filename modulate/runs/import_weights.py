"""A run of weights that were trained elsewhere: a recipe, a modulation that fits it, and nothing
left to train.

Elsewhere may be another run: a trained run's weights, on other data, are a run of their own, whose
recipe says which.
"""

import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from modulate.config.recipe import Recipe, override, validate
from modulate.distributed.launch import current
from modulate.errors import MissingFileError, RecipeError
from modulate.modulation.module import Modulation, ModulationConfig
from modulate.runs.run import Run

ON_OTHER_DATA = ("name", "data", "evaluation", "features")
"""Keys of a recipe that may differ where a run is evaluated on other data: nothing that was trained
depends on them.
"""


def adopt(recipe: Recipe, weights: str, root: Path) -> Run:
    """Make ``root/<recipe name>`` a finished run whose modulation is ``weights``, a folder or the
    name of a hub repository.

    Raises :class:`RecipeError` when the modulation is not what the recipe describes, or the folder
    holds a training's own weights.
    """
    modulation = Modulation.from_pretrained(weights)
    wrong = mismatches(recipe, modulation.config)
    if wrong:
        raise RecipeError(
            f"{weights} is no modulation of the recipe {recipe.name!r}:\n"
            + "\n".join(f"  {line}" for line in wrong)
        )
    run = Run.create(recipe, root)
    with run.held():
        if run.weights.exists() and run.read_state().adopted is None:
            raise RecipeError(
                f"{run.folder} holds the weights of a training; give this run another name with"
                " name=…."
            )
        run.clear()
        modulation.save_pretrained(run.weights)
        run.write_json(
            "state.json",
            {"finished": True, "adopted": weights, "weights": run.weight_hashes(), "steps": 0},
        )
    return run


def on_other_data(run: Run, root: Path, overrides: Sequence[str] = ()) -> Run:
    """Return the finished run of the weights of ``run`` on the data in ``root``, made beside it and
    called ``<its name>-on-<folder>``.

    The data are of the same kind, with what is true of those in ``root``
    (:meth:`modulate.interfaces.components.Dataset.with_root`); ``overrides`` may change
    :data:`ON_OTHER_DATA`. The same call again returns the same run, with what an evaluation has of
    it. Raises :class:`RecipeError` for other overrides, and when the folder holds another run,
    :class:`MissingFileError` before anything was trained, :class:`DataError` for data of another
    kind.
    """
    if not run.weights.is_dir():
        raise MissingFileError(
            f"{run.folder} has no trained weights yet: {run.weights} is missing. `modulate train`"
            " with its recipe makes them."
        )
    made = _recipe_on(run, root, overrides)
    processes = current()
    there = Run.create(made, run.folder.parent)
    with processes.fail_together(), there.held():
        if processes.leads:
            _take(run, there)
        processes.meet()
    return there


def _recipe_on(run: Run, root: Path, overrides: Sequence[str]) -> Recipe:
    recipe = run.recipe
    cls, params = recipe.data.resolved("dataset")
    with recipe.data.blame("dataset", "with_root"):
        moved = cls.with_root(params, root)
    tree = json.loads(recipe.model_dump_json())
    tree["data"]["params"] = moved.model_dump(mode="json", exclude_unset=True)
    folder = re.sub(r"[^A-Za-z0-9_.-]+", "_", root.resolve().name) or "root"
    tree["name"] = f"{recipe.name}-on-{folder}"[:100]
    for text in overrides:
        key = re.split(r"[.=]", text, maxsplit=1)[0]
        if key not in ON_OTHER_DATA:
            raise RecipeError(
                f"Override {text!r}: {key} is what the run was trained with; on other data"
                f" {', '.join(ON_OTHER_DATA)} may differ."
            )
        override(tree, text)
    if tree["name"] == recipe.name:
        raise RecipeError(
            f"The run on other data needs another name than {recipe.name!r}, which is the run's"
            " own."
        )
    return validate(tree, f"{run.folder / 'recipe.yaml'}, on {root}")


def _take(run: Run, there: Run) -> None:
    """Copy a run's weights into another's folder, unless they are there."""
    hashes = run.weight_hashes()
    state = there.read_json("state.json")
    if (state and "adopted" not in state) or there.checkpoints.folder.exists():
        raise RecipeError(
            f"{there.folder} holds the weights of a training; give this run another name with"
            " name=…."
        )
    if state.get("weights") == hashes and not there.altered():
        return
    there.clear()
    shutil.copytree(run.weights, there.weights)
    there.write_json(
        "state.json", {"finished": True, "adopted": str(run.weights), "weights": hashes, "steps": 0}
    )


def mismatches(recipe: Recipe, config: ModulationConfig) -> list[str]:
    """Return in what a modulation differs from what a recipe describes; the weights' initial values
    and the host's path do not count.
    """
    asked: dict[str, tuple[Any, Any]] = {
        "encoder": (
            _whole(recipe.encoder, "signal_encoder"),
            _whole(config.encoder, "signal_encoder"),
        ),
        "modulator": (_whole(recipe.modulator, "modulator"), _whole(config.modulator, "modulator")),
        "lora": (recipe.lora, config.lora.params if config.lora else None),
        **{
            f"injection.{key}": (getattr(recipe.injection, key), getattr(config.injection, key))
            for key in ("layers", "tokens", "empty")
        },
    }
    return [
        f"{key}: the recipe says {wanted}, the modulation has {found}."
        for key, (wanted, found) in asked.items()
        if wanted != found
    ]


def _whole(choice: Any, kind: str) -> tuple[str, dict[str, Any]]:
    """Return a component's name and all its parameters, defaults filled in."""
    _, params = choice.resolved(kind)
    return choice.name, params.model_dump()

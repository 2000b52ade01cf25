"""Runs made from weights that were trained elsewhere, ready to be evaluated.

The weights may come from another run: evaluated on other data, they form a run of their own, whose
recipe names those data.
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
"""Recipe keys that may differ when a run is evaluated on other data: the weights do not depend on
them.
"""


def adopt(recipe: Recipe, weights: str, root: Path) -> Run:
    """Make ``root/<recipe name>`` a finished run with the modulation ``weights``.

    ``weights``: a folder, or the name of a hub repository. Raises :class:`RecipeError` if the
    modulation is not what the recipe describes, or if the run's folder holds weights of a training.
    """
    modulation = Modulation.from_pretrained(weights)
    differences = mismatches(recipe, modulation.config)
    if differences:
        raise RecipeError(
            f"{weights} is not a modulation of the recipe {recipe.name!r}:\n"
            + "\n".join(f"  {line}" for line in differences)
        )
    run = Run.create(recipe, root)
    with run.locked():
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
    """Return a finished run with the weights of ``run`` and the data in ``root``.

    It lies beside ``run`` and is called ``<its name>-on-<folder>``. The data set is of the same
    kind (:meth:`modulate.interfaces.components.Dataset.with_root`); ``overrides`` may change the
    keys in :data:`ON_OTHER_DATA`. Calling this again returns the same run with its evaluations.

    Raises :class:`RecipeError` for other overrides and for a folder that holds another run,
    :class:`MissingFileError` if ``run`` has no weights yet, :class:`DataError` for data of another
    kind.
    """
    if not run.weights.is_dir():
        raise MissingFileError(
            f"{run.folder} has no trained weights yet: {run.weights} is missing. `modulate train`"
            " with its recipe makes them."
        )
    adapted = _recipe_on(run, root, overrides)
    processes = current()
    target = Run.create(adapted, run.folder.parent)
    with processes.fail_together(), target.locked():
        if processes.is_main_process:
            _copy_weights(run, target)
        processes.barrier()
    return target


def _recipe_on(run: Run, root: Path, overrides: Sequence[str]) -> Recipe:
    recipe = run.recipe
    cls, params = recipe.data.resolved("dataset")
    with recipe.data.blame("dataset", "with_root"):
        moved_params = cls.with_root(params, root)
    tree = json.loads(recipe.model_dump_json())
    tree["data"]["params"] = moved_params.model_dump(mode="json", exclude_unset=True)
    folder = re.sub(r"[^A-Za-z0-9_.-]+", "_", root.resolve().name) or "root"
    tree["name"] = f"{recipe.name}-on-{folder}"[:100]
    for text in overrides:
        key = re.split(r"[.=]", text, maxsplit=1)[0]
        if key not in ON_OTHER_DATA:
            raise RecipeError(
                f"Override {text!r}: the run was trained with this {key}; on other data only"
                f" {', '.join(ON_OTHER_DATA)} may differ."
            )
        override(tree, text)
    if tree["name"] == recipe.name:
        raise RecipeError(
            f"The run on other data needs a name other than {recipe.name!r}, which is this run's."
        )
    return validate(tree, f"{run.folder / 'recipe.yaml'}, on {root}")


def _copy_weights(run: Run, target: Run) -> None:
    """Copy a run's weights into another run's folder, unless they are there already."""
    hashes = run.weight_hashes()
    state = target.read_json("state.json")
    if (state and "adopted" not in state) or target.checkpoints.folder.exists():
        raise RecipeError(
            f"{target.folder} holds the weights of a training; give this run another name with"
            " name=…."
        )
    if state.get("weights") == hashes and not target.altered():
        return
    target.clear()
    shutil.copytree(run.weights, target.weights)
    target.write_json(
        "state.json", {"finished": True, "adopted": str(run.weights), "weights": hashes, "steps": 0}
    )


def mismatches(recipe: Recipe, config: ModulationConfig) -> list[str]:
    """Return how a modulation differs from what a recipe describes, one line for each key.

    Initial values of weights and the host's path do not count.
    """
    adapter = config.lora.params if config.lora else None
    compared: dict[str, tuple[Any, Any]] = {
        "encoder": (
            _with_defaults(recipe.encoder, "signal_encoder"),
            _with_defaults(config.encoder, "signal_encoder"),
        ),
        "modulator": (
            _with_defaults(recipe.modulator, "modulator"),
            _with_defaults(config.modulator, "modulator"),
        ),
        "lora": (recipe.lora, adapter),
        **{
            f"injection.{key}": (getattr(recipe.injection, key), getattr(config.injection, key))
            for key in ("layers", "tokens", "empty")
        },
    }
    return [
        f"{key}: the recipe says {wanted}, the modulation has {actual}."
        for key, (wanted, actual) in compared.items()
        if wanted != actual
    ]


def _with_defaults(choice: Any, kind: str) -> tuple[str, dict[str, Any]]:
    """Return a component's name and all its parameters, defaults filled in."""
    _, params = choice.resolved(kind)
    return choice.name, params.model_dump()

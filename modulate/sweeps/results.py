"""What came of a sweep: which runs are finished, and figures of every option pooled over seeds,
compared with the base.
"""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from modulate.config.recipe import Recipe, differing, load_saved_recipe
from modulate.errors import DataError, RecipeError
from modulate.evaluation.metrics import compare, summarize
from modulate.evaluation.predictions import Prediction, read_predictions, scored
from modulate.runs.records import read_metrics
from modulate.runs.run import Run
from modulate.sweeps.sweep import BASE, Planned, Sweep
from modulate.utils.atomic_files import write_atomically

State = Literal["finished", "begun", "waiting"]

RESULTS = "sweep.json"


def states(plan: Sequence[Planned], folder: Path) -> dict[str, State]:
    """Return how far each run in ``folder`` is.

    Raises :class:`RecipeError` for one that was made by another recipe, before anything is started.
    """
    found = {}
    for run in plan:
        own = folder / run.name / "recipe.yaml"
        if own.is_file() and (changed := differing(load_saved_recipe(own), run.recipe)):
            raise RecipeError(
                f"{own.parent} holds a run of another recipe (differs in {', '.join(changed)}): the"
                " sweep or its base was changed since. Give the sweep another name with name=…, or"
                " remove that folder."
            )
        found[run.name] = state(own.parent, run.recipe)
    return found


def state(folder: Path, recipe: Recipe) -> State:
    """Return how far the run in ``folder`` is; finished means trained and evaluated, with no more
    failed samples than the recipe allows.
    """
    if not (folder / "recipe.yaml").is_file():
        return "waiting"
    run = Run(folder, recipe)
    metrics = read_metrics(run.metrics())
    if metrics is None or not run.read_state().finished:
        return "begun"
    return (
        "finished"
        if len(metrics.failed) <= recipe.evaluation.max_failed_share * metrics.signal.samples
        else "begun"
    )


# --- figures


def write_results(
    sweep: Sweep, plan: Sequence[Planned], folder: Path, failed: dict[str, list[str]]
) -> dict[str, Any]:
    """Write :func:`results` to sweep.json in ``folder``, and return them."""
    found = results(sweep, plan, folder, failed)
    write_atomically(
        folder / RESULTS,
        lambda path: path.write_text(
            json.dumps(found, indent=1, ensure_ascii=False, allow_nan=False) + "\n",
            encoding="utf-8",
        ),
    )
    return found


def results(
    sweep: Sweep, plan: Sequence[Planned], folder: Path, failed: dict[str, list[str]]
) -> dict[str, Any]:
    """Return what sweep.json holds.

    ``runs``: each run with its state. ``groups``: runs that differ in seed only, pooled: accuracy
    under the run's own condition with intervals clustered by video, by task, and the paired
    difference from the base over the seeds that both have finished. ``axes``: axis → option → its
    group. ``failed``: last lines of the logs of runs that failed.
    """
    runs = [_run(p, folder, failed) for p in plan]
    finished = {p.name for p, run in zip(plan, runs) if run["state"] == "finished"}
    groups: dict[str, list[Planned]] = {}
    for p in plan:
        groups.setdefault(group_of(p.name), []).append(p)
    axes: dict[str, dict[str, str]] = (
        {axis: {} for axis in sweep.axes} if sweep.mode == "one_at_a_time" else {}
    )
    for name, members in groups.items():
        axes |= {
            axis: axes[axis] | {option: name}
            for axis, option in members[0].options.items()
            if axis in axes
        }
    axes = {
        axis: {option: found[option] for option in sweep.axes[axis]} for axis, found in axes.items()
    }  # as the file has them
    cache: dict[str, list[Prediction]] = {}
    figures = {
        name: _group(members, groups.get(BASE, []), folder, finished, cache)
        for name, members in groups.items()
    }
    return {
        "sweep": sweep.name,
        "base": sweep.base,
        "mode": sweep.mode,
        "seeds": list(sweep.seeds),
        "runs": runs,
        "axes": axes,
        "groups": figures,
    }


def group_of(run: str) -> str:
    """Return a run's name without its seed."""
    return run.rpartition("-s")[0]


def _run(run: Planned, folder: Path, failed: dict[str, list[str]]) -> dict[str, Any]:
    own = folder / run.name
    state_of = "failed" if run.name in failed else state(own, run.recipe)
    row = {
        "name": run.name,
        "role": run.role,
        "seed": run.recipe.seed,
        "options": run.options,
        "beside": list(run.beside),
        "state": state_of,
    }
    if state_of == "finished":
        done = Run(own, run.recipe)
        metrics = read_metrics(done.metrics())
        assert metrics is not None  # or it would not be finished
        row |= metrics.model_dump(include={"condition", "overall", "interval", "n"}) | {
            "seconds": done.read_state().seconds
        }
    return row | ({"log": failed[run.name]} if run.name in failed else {})


def _group(
    members: Sequence[Planned],
    base: Sequence[Planned],
    folder: Path,
    finished: set[str],
    cache: dict[str, list[Prediction]],
) -> dict[str, Any]:
    first = members[0]
    own = [p for p in members if p.name in finished]
    beside = list(dict.fromkeys(group_of(name) for p in members for name in p.beside))
    row: dict[str, Any] = {
        "role": first.role,
        "options": first.options,
        "beside": beside,
        "seeds": [p.recipe.seed for p in own],
    }
    if not own:
        return row
    resamples = first.recipe.evaluation.bootstrap
    pooled = [r for p in own for r in _records(p, folder, cache)]
    row |= {"condition": first.recipe.training.condition, **summarize(pooled, resamples, 0)}
    row["per_seed"] = {
        str(p.recipe.seed): _mean_over_tasks(_records(p, folder, cache)) for p in own
    }
    partners = {p.recipe.seed: p for p in base if p.name in finished}
    if first.role != BASE and (both := [p for p in own if p.recipe.seed in partners]):
        mine = [r for p in both for r in _records(p, folder, cache)]
        theirs = [r for p in both for r in _records(partners[p.recipe.seed], folder, cache)]
        if {(r.id, r.task) for r in mine} == {
            (r.id, r.task) for r in theirs
        }:  # not where an axis changes the data
            row["minus_base"] = compare(mine, theirs, resamples, 0) | {
                "seeds": [p.recipe.seed for p in both]
            }
    return row


def _records(run: Planned, folder: Path, cache: dict[str, list[Prediction]]) -> list[Prediction]:
    """Return a run's predictions under its own condition; a sample has another id for each seed."""
    if run.name not in cache:
        path = Run(folder / run.name, run.recipe).predictions("test")
        condition = run.recipe.training.condition
        answers = scored(read_predictions(path), run.recipe.evaluation.failed).get(condition)
        if not answers:
            raise DataError(
                f"{path} holds no answers under the run's own condition {condition!r} that count."
                f" `modulate eval {path.parent}` writes them."
            )
        cache[run.name] = [replace(r, id=f"{run.recipe.seed}/{r.id}") for r in answers]
    return cache[run.name]


def _mean_over_tasks(rows: Sequence[Prediction]) -> float:
    by_task: dict[str, list[bool]] = {}
    for row in rows:
        by_task.setdefault(row.task, []).append(row.correct)
    return sum(sum(rights) / len(rights) for rights in by_task.values()) / len(by_task)

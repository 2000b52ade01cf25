"""Results of a sweep: states of its runs, and figures pooled over seeds beside the base's."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from modulate.config.recipe import Recipe, differing, load_saved_recipe
from modulate.config.sections import MainMetric
from modulate.errors import DataError, RecipeError
from modulate.evaluation.metrics import compare, summarize
from modulate.evaluation.predictions import Prediction, apply_failed_rule, read_predictions
from modulate.runs.records import read_metrics
from modulate.runs.run import Run
from modulate.sweeps.sweep import BASE, PlannedRun, Sweep
from modulate.utils.atomic_files import write_atomically

State = Literal["finished", "begun", "waiting"]

RESULTS = "sweep.json"
"""Name of the results file in the sweep's folder."""

SEED = 0
"""Seed of the bootstrap; pooled runs share none that could be taken instead."""


# --- state of each run


def run_states(plan: Sequence[PlannedRun], folder: Path) -> dict[str, State]:
    """Return the state of each run in ``folder``.

    Raises :class:`RecipeError` if one took a step with another recipe, before anything is started.
    """
    states = {}
    for run in plan:
        saved = folder / run.name / "recipe.yaml"
        if saved.is_file():
            _check_same_recipe(saved, run.recipe)
        states[run.name] = run_state(saved.parent, run.recipe)
    return states


def _check_same_recipe(saved: Path, recipe: Recipe) -> None:
    changed = differing(load_saved_recipe(saved), recipe)
    if changed and Run(saved.parent, recipe).has_begun:
        raise RecipeError(
            f"{saved.parent} holds a run of another recipe (differs in {', '.join(changed)}): the"
            " sweep or its base was changed since. Give the sweep another name with name=…, or"
            " remove that folder."
        )


def run_state(folder: Path, recipe: Recipe) -> State:
    """Return the state of the run in ``folder``.

    Finished means trained and evaluated, with no more failed samples than the recipe allows.
    """
    if not (folder / "recipe.yaml").is_file():
        return "waiting"
    run = Run(folder, recipe)
    metrics = read_metrics(run.metrics())
    if metrics is None or not run.read_state().finished:
        return "begun"
    allowed = recipe.evaluation.max_failed_share * metrics.signal.samples
    return "finished" if len(metrics.failed) <= allowed else "begun"


# --- figures


def write_results(
    sweep: Sweep, plan: Sequence[PlannedRun], folder: Path, failed: dict[str, list[str]]
) -> dict[str, Any]:
    """Write :func:`collect_results` to sweep.json in ``folder``, and return them."""
    results = collect_results(sweep, plan, folder, failed)
    text = json.dumps(results, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    write_atomically(folder / RESULTS, lambda path: path.write_text(text, encoding="utf-8"))
    return results


def collect_results(
    sweep: Sweep, plan: Sequence[PlannedRun], folder: Path, failed: dict[str, list[str]]
) -> dict[str, Any]:
    """Return the contents of sweep.json.

    ``runs``: each run with its state. ``groups``: runs that differ in seed only, pooled: accuracy
    under their own condition with intervals clustered by video, by task, and the paired difference
    from the base over the seeds that both have finished. ``axes``: axis → option → its group.

    Args:
        sweep: the sweep.
        plan: its runs.
        folder: folder of the runs.
        failed: last lines of the log of each run that failed, by name.
    """
    runs = [_run_row(run, folder, failed) for run in plan]
    finished = {row["name"] for row in runs if row["state"] == "finished"}
    groups: dict[str, list[PlannedRun]] = {}
    for run in plan:
        groups.setdefault(group_name(run.name), []).append(run)
    reader = _Predictions(folder)
    base = [run for run in groups.get(BASE, []) if run.name in finished]
    figures = {
        name: _group_figures(runs_of_group, base, finished, reader)
        for name, runs_of_group in groups.items()
    }
    return {
        "sweep": sweep.name,
        "base": sweep.base,
        "mode": sweep.mode,
        "seeds": list(sweep.seeds),
        "runs": runs,
        "axes": _group_of_option(sweep, groups),
        "groups": figures,
    }


def group_name(run: str) -> str:
    """Return a run's name without its seed."""
    return run.rpartition("-s")[0]


def _group_of_option(
    sweep: Sweep, groups: dict[str, list[PlannedRun]]
) -> dict[str, dict[str, str]]:
    """Return axis → option → group, in the order of the sweep file; nothing for a grid."""
    if sweep.mode != "one_at_a_time":
        return {}
    found: dict[str, dict[str, str]] = {axis: {} for axis in sweep.axes}
    for name, runs in groups.items():
        for axis, option in runs[0].options.items():
            found[axis][option] = name
    return {
        axis: {option: found[axis][option] for option in options}
        for axis, options in sweep.axes.items()
    }


def _run_row(run: PlannedRun, folder: Path, failed: dict[str, list[str]]) -> dict[str, Any]:
    run_folder = folder / run.name
    state = "failed" if run.name in failed else run_state(run_folder, run.recipe)
    row: dict[str, Any] = {
        "name": run.name,
        "role": run.role,
        "seed": run.recipe.seed,
        "options": run.options,
        "beside": list(run.beside),
        "state": state,
    }
    if state == "finished":
        finished = Run(run_folder, run.recipe)
        metrics = read_metrics(finished.metrics())
        assert metrics is not None  # run_state has read them
        row |= metrics.model_dump(include={"condition", "overall", "interval", "n"})
        row["seconds"] = finished.read_state().seconds
    if run.name in failed:
        row["log"] = failed[run.name]
    return row


def _group_figures(
    group: Sequence[PlannedRun],
    base: Sequence[PlannedRun],
    finished: set[str],
    reader: "_Predictions",
) -> dict[str, Any]:
    """Return the figures of one group; ``base``: finished runs of the base."""
    first = group[0]
    runs = [run for run in group if run.name in finished]
    row: dict[str, Any] = {
        "role": first.role,
        "options": first.options,
        "beside": list(dict.fromkeys(group_name(name) for run in group for name in run.beside)),
        "seeds": [run.recipe.seed for run in runs],
    }
    if not runs:
        return row
    resamples = first.recipe.evaluation.bootstrap
    metric = first.recipe.main_metric
    row["condition"] = first.recipe.training.condition
    if metric != "accuracy":
        row["metric"] = metric
    row |= summarize(reader.pooled(runs), resamples, SEED, metric)
    row["per_seed"] = {
        str(run.recipe.seed): _mean_over_tasks(reader.pooled([run]), metric) for run in runs
    }
    difference = None if first.role == BASE else _minus_base(runs, base, resamples, reader)
    if difference is not None:
        row["minus_base"] = difference
    return row


def _minus_base(
    runs: Sequence[PlannedRun],
    base: Sequence[PlannedRun],
    resamples: int,
    reader: "_Predictions",
) -> dict[str, Any] | None:
    """Return the paired difference from the base over shared seeds, None if there is none."""
    base_by_seed = {run.recipe.seed: run for run in base}
    paired = [run for run in runs if run.recipe.seed in base_by_seed]
    if not paired:
        return None
    ours = reader.pooled(paired)
    theirs = reader.pooled([base_by_seed[run.recipe.seed] for run in paired])
    # An axis that changes the data or the form of answers leaves no pairs.
    metrics = {run.recipe.main_metric for run in [*paired, *base]}
    if len(metrics) > 1 or {(record.id, record.task) for record in ours} != {
        (record.id, record.task) for record in theirs
    }:
        return None
    seeds = [run.recipe.seed for run in paired]
    return compare(ours, theirs, resamples, SEED, metrics.pop()) | {"seeds": seeds}


def _mean_over_tasks(records: Sequence[Prediction], metric: MainMetric) -> float:
    by_task: dict[str, list[float]] = {}
    for record in records:
        by_task.setdefault(record.task, []).append(record.score(metric))
    return sum(sum(scores) / len(scores) for scores in by_task.values()) / len(by_task)


class _Predictions:
    """Scored predictions of runs under their own condition, each file read once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._by_run: dict[str, list[Prediction]] = {}

    def pooled(self, runs: Sequence[PlannedRun]) -> list[Prediction]:
        """Return the predictions of all ``runs``; ids become ``seed/id``, so they stay unique."""
        return [record for run in runs for record in self._of(run)]

    def _of(self, run: PlannedRun) -> list[Prediction]:
        if run.name not in self._by_run:
            self._by_run[run.name] = self._read(run)
        return self._by_run[run.name]

    def _read(self, run: PlannedRun) -> list[Prediction]:
        path = Run(self._folder / run.name, run.recipe).predictions("test")
        condition = run.recipe.training.condition
        records = apply_failed_rule(read_predictions(path), run.recipe.evaluation.failed)
        answers = records.get(condition)
        if not answers:
            raise DataError(
                f"{path} holds no answers under the run's own condition {condition!r} that count."
                f" `modulate eval {path.parent}` writes them."
            )
        return [replace(record, id=f"{run.recipe.seed}/{record.id}") for record in answers]

"""Figures from predictions: accuracies with intervals, and paired comparisons of conditions."""

from collections.abc import Sequence
from typing import Any

from modulate.evaluation.intervals import Accuracies, paired_difference, task_accuracies
from modulate.evaluation.predictions import Prediction


def prediction_accuracies(records: Sequence[Prediction], resamples: int, seed: int) -> Accuracies:
    """Return the accuracy of each task and their mean, with intervals that resample groups."""
    return task_accuracies(
        [record.correct for record in records],
        [record.task for record in records],
        [record.group for record in records],
        resamples=resamples,
        seed=seed,
    )


def summarize(records: Sequence[Prediction], resamples: int, seed: int) -> dict[str, Any]:
    """Return {"overall", "interval", "n", "tasks": {task: {"accuracy", "n", "interval"}}}.

    ``overall`` is the unweighted mean over tasks.
    """
    accuracies = prediction_accuracies(records, resamples, seed)
    tasks = {
        name: {"accuracy": task.accuracy, "n": task.n, "interval": [task.low, task.high]}
        for name, task in sorted(accuracies.tasks.items())
    }
    return {
        "overall": accuracies.overall,
        "interval": [accuracies.low, accuracies.high],
        "n": accuracies.n,
        "tasks": tasks,
    }


def compare(
    first: Sequence[Prediction], second: Sequence[Prediction], resamples: int, seed: int
) -> dict[str, Any]:
    """Return the paired difference (first − second) with McNemar's test, overall and by task.

    Both need predictions of the same samples, in any order.
    """
    partners = {record.id: record for record in second}
    pairs = [(record, partners[record.id]) for record in first]
    by_task = {
        task: _difference([pair for pair in pairs if pair[0].task == task], resamples, seed)
        for task in sorted({record.task for record in first})
    }
    return {**_difference(pairs, resamples, seed), "tasks": by_task}


def _difference(
    pairs: Sequence[tuple[Prediction, Prediction]], resamples: int, seed: int
) -> dict[str, Any]:
    found = paired_difference(
        [record.correct for record, _ in pairs],
        [partner.correct for _, partner in pairs],
        [record.group for record, _ in pairs],
        [record.task for record, _ in pairs],
        resamples=resamples,
        seed=seed,
    )
    return {
        "difference": found.mean,
        "interval": [found.low, found.high],
        "n": found.n,
        "mcnemar": found.mcnemar.as_json(),
    }

"""From predictions to figures: accuracy per task and overall with intervals, and paired comparisons
of conditions.
"""

from collections.abc import Sequence
from typing import Any

from modulate.evaluation.intervals import paired_difference, task_accuracies
from modulate.evaluation.predictions import Prediction, read_predictions

__all__ = ["Prediction", "compare", "read_predictions", "summarize"]


def summarize(records: Sequence[Prediction], resamples: int, seed: int) -> dict[str, Any]:
    """Return {"overall", "interval", "n", "tasks": {task: {"accuracy", "n", "interval"}}}; overall
    is the unweighted mean over tasks.
    """
    found = task_accuracies(
        [r.correct for r in records],
        [r.task for r in records],
        [r.group for r in records],
        resamples=resamples,
        seed=seed,
    )
    tasks = {
        name: {"accuracy": t.accuracy, "n": t.n, "interval": [t.low, t.high]}
        for name, t in sorted(found.tasks.items())
    }
    return {
        "overall": found.overall,
        "interval": [found.low, found.high],
        "n": found.n,
        "tasks": tasks,
    }


def compare(
    first: Sequence[Prediction], second: Sequence[Prediction], resamples: int, seed: int
) -> dict[str, Any]:
    """Return the paired difference of two conditions on the same samples, overall and per task,
    with McNemar's test.
    """
    result = _difference(first, second, resamples, seed)
    tasks = sorted({r.task for r in first})
    by_task = {
        t: _difference(
            [r for r in first if r.task == t], [r for r in second if r.task == t], resamples, seed
        )
        for t in tasks
    }
    return {**result, "tasks": by_task}


def _difference(
    first: Sequence[Prediction], second: Sequence[Prediction], resamples: int, seed: int
) -> dict[str, Any]:
    partner = {r.id: r for r in second}
    pairs = [(r, partner[r.id]) for r in first]
    found = paired_difference(
        [a.correct for a, _ in pairs],
        [b.correct for _, b in pairs],
        [a.group for a, _ in pairs],
        [a.task for a, _ in pairs],
        resamples=resamples,
        seed=seed,
    )
    return {
        "difference": found.mean,
        "interval": [found.low, found.high],
        "n": found.n,
        "mcnemar": found.mcnemar.as_json(),
    }

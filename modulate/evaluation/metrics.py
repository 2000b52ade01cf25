"""Figures from predictions: means with intervals, and paired comparisons of conditions."""

from collections.abc import Sequence
from typing import Any

from modulate.config.sections import MainMetric
from modulate.evaluation.graded import GradedDifference, graded_difference
from modulate.evaluation.intervals import Accuracies, paired_difference, task_accuracies, task_means
from modulate.evaluation.predictions import Prediction
from modulate.evaluation.text_scores import METRIC_NAMES

BINARY: frozenset[MainMetric] = frozenset({"accuracy", "exact_match"})
"""Metrics by which an answer is right or wrong."""


def prediction_means(
    records: Sequence[Prediction], resamples: int, seed: int, metric: MainMetric = "accuracy"
) -> Accuracies:
    """Return the mean score of each task and their mean, with intervals that resample groups."""
    tasks = [record.task for record in records]
    groups = [record.group for record in records]
    if metric in BINARY:
        correct = [record.correct for record in records]
        return task_accuracies(correct, tasks, groups, resamples=resamples, seed=seed)
    values = [record.score(metric) for record in records]
    return task_means(values, tasks, groups, resamples=resamples, seed=seed)


def summarize(
    records: Sequence[Prediction], resamples: int, seed: int, metric: MainMetric = "accuracy"
) -> dict[str, Any]:
    """Return {"overall", "interval", "n", "tasks": {task: {"accuracy", "n", "interval"}}}.

    ``overall`` is the unweighted mean over tasks. For answers in text, "accuracy" stands for
    ``metric``, and "scores" has {"overall", "interval"} of each metric.
    """
    means = prediction_means(records, resamples, seed, metric)
    tasks = {
        name: {"accuracy": task.accuracy, "n": task.n, "interval": [task.low, task.high]}
        for name, task in sorted(means.tasks.items())
    }
    figures = {
        "overall": means.overall,
        "interval": [means.low, means.high],
        "n": means.n,
        "tasks": tasks,
    }
    if metric != "accuracy":
        figures["scores"] = {
            name: _mean_and_interval(prediction_means(records, resamples, seed, name))
            for name in METRIC_NAMES
        }
    return figures


def _mean_and_interval(means: Accuracies) -> dict[str, Any]:
    return {"overall": means.overall, "interval": [means.low, means.high]}


def compare(
    first: Sequence[Prediction],
    second: Sequence[Prediction],
    resamples: int,
    seed: int,
    metric: MainMetric = "accuracy",
) -> dict[str, Any]:
    """Return the paired difference (first − second) with its tests, overall and by task.

    Both need predictions of the same samples, in any order. McNemar's test is of the right answers;
    for answers in text, "scores" has each metric's difference with a permutation test that swaps
    whole groups.
    """
    partners = {record.id: record for record in second}
    pairs = [(record, partners[record.id]) for record in first]
    by_task = {
        task: _difference([pair for pair in pairs if pair[0].task == task], resamples, seed, metric)
        for task in sorted({record.task for record in first})
    }
    figures = {**_difference(pairs, resamples, seed, metric), "tasks": by_task}
    if metric != "accuracy":
        figures["scores"] = {name: _graded(pairs, resamples, seed, name) for name in METRIC_NAMES}
    return figures


Pairs = Sequence[tuple[Prediction, Prediction]]


def _difference(pairs: Pairs, resamples: int, seed: int, metric: MainMetric) -> dict[str, Any]:
    found = paired_difference(
        [record.correct for record, _ in pairs],
        [partner.correct for _, partner in pairs],
        [record.group for record, _ in pairs],
        [record.task for record, _ in pairs],
        resamples=resamples,
        seed=seed,
    )
    figures = {
        "difference": found.mean,
        "interval": [found.low, found.high],
        "n": found.n,
        "mcnemar": found.mcnemar.as_json(),
    }
    return figures if metric in BINARY else figures | _graded(pairs, resamples, seed, metric)


def _graded(pairs: Pairs, resamples: int, seed: int, metric: MainMetric) -> dict[str, Any]:
    found = compare_scores(pairs, resamples, seed, metric)
    return {
        "difference": found.mean,
        "interval": [found.low, found.high],
        "p_permutation": found.p_grouped,
    }


def compare_scores(pairs: Pairs, resamples: int, seed: int, metric: MainMetric) -> GradedDifference:
    """Return the paired difference of a metric's scores, first minus second of each pair."""
    return graded_difference(
        [record.score(metric) for record, _ in pairs],
        [partner.score(metric) for _, partner in pairs],
        [record.group for record, _ in pairs],
        [record.task for record, _ in pairs],
        resamples=resamples,
        seed=seed,
    )

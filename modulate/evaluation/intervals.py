"""Accuracies with bootstrap intervals that respect shared videos, and exact paired tests.

Questions about one video are not independent of each other, so intervals resample whole groups
(videos, or viewers), never single questions. Everything is deterministic for a given seed. Results
from correct and wrong answers do not depend on the order of the samples either, because sums of
whole numbers are exact. Imports neither torch nor scipy.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from modulate.errors import DataError

EXACT_UP_TO = 10_000
"""Discordant pairs up to which McNemar's test sums the binomial exactly (about 15 ms there)."""

RESAMPLES = 10_000
LEVEL = 0.95
_MOST_WEIGHTS = 4_000_000
"""Resampled weights held in memory at once: 32 MB."""


class JsonResult:
    """A dataclass that can be written as JSON."""

    def as_json(self) -> dict[str, Any]:
        """Return plain dicts, lists, numbers, booleans and None."""
        return asdict(self)  # type: ignore[call-overload, no-any-return]


@dataclass(frozen=True)
class McNemar(JsonResult):
    """McNemar's test.

    ``b``: samples correct under the first condition only; ``c``: under the second only. ``p``:
    two-sided. ``exact``: whether ``p`` is binomial rather than normal.
    """

    b: int
    c: int
    p: float
    exact: bool


@dataclass(frozen=True)
class Interval(JsonResult):
    """A mean with its bootstrap interval.

    ``low`` and ``high`` are None with a single group, which cannot show how groups vary.
    """

    mean: float
    low: float | None
    high: float | None
    n: int
    groups: int
    level: float
    resamples: int
    seed: int


@dataclass(frozen=True)
class TaskAccuracy(JsonResult):
    """Accuracy of one task in [0, 1] over ``n`` samples, with its :class:`Interval`."""

    accuracy: float
    n: int
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Accuracies(JsonResult):
    """Accuracies by task, and ``overall``, their unweighted mean as StreamGaze scores.

    ``low`` and ``high`` are the interval of ``overall``.
    """

    overall: float
    low: float | None
    high: float | None
    n: int
    groups: int
    level: float
    resamples: int
    seed: int
    tasks: dict[str, TaskAccuracy]


@dataclass(frozen=True)
class Difference(JsonResult):
    """First minus second condition on the same samples, in [-1, 1].

    ``mcnemar``: McNemar's test over all samples.
    """

    mean: float
    low: float | None
    high: float | None
    n: int
    groups: int
    level: float
    resamples: int
    seed: int
    mcnemar: McNemar


# --- tests


def mcnemar(first: ArrayLike, second: ArrayLike) -> McNemar:
    """Test whether two conditions are correct equally often on the same samples.

    Args:
        first: correct (True, 1) or wrong (False, 0) under the first condition, sample by sample.
        second: the same under the second condition.

    Raises :class:`DataError` for different lengths and other values. Source: Q. McNemar,
    Psychometrika 12 (1947) 153–157; the exact form is the sign test on the discordant samples.
    """
    first_correct, second_correct = _paired_flags(first, second)
    first_only = int(np.sum(first_correct & ~second_correct))
    second_only = int(np.sum(~first_correct & second_correct))
    return mcnemar_counts(first_only, second_only)


def mcnemar_counts(b: int, c: int) -> McNemar:
    """Return McNemar's test from its discordant counts.

    Args:
        b: number of samples correct under the first condition only.
        c: number of samples correct under the second condition only.

    Exact two-sided binomial, 2 · P(X ≤ min(b, c)) with X ~ Bin(b + c, ½), at most 1: exact to the
    last bit, in whole numbers. Beyond :data:`EXACT_UP_TO` discordant samples, the normal
    approximation with continuity correction (Edwards, 1948).
    """
    if b < 0 or c < 0:
        raise DataError(f"Numbers of discordant samples cannot be negative; got b = {b}, c = {c}.")
    n = b + c
    if n > EXACT_UP_TO:
        z = max(abs(b - c) - 1, 0) / math.sqrt(n)
        return McNemar(b, c, math.erfc(z / math.sqrt(2)), exact=False)
    # Sum the binomial coefficients n over k as integers: each follows exactly from the one before.
    coefficient = 1
    total = 1
    for k in range(min(b, c)):
        coefficient = coefficient * (n - k) // (k + 1)
        total += coefficient
    return McNemar(b, c, min(1.0, 2 * total / 2**n), exact=True)


def holm(pvalues: Sequence[float]) -> list[float]:
    """Return p-values adjusted for multiple tests, in the given order.

    Reject where the result is below the desired family-wise error rate. Raises :class:`DataError`
    for values outside [0, 1]. Source: S. Holm, Scandinavian Journal of Statistics 6 (1979) 65–70.
    """
    invalid = [p for p in pvalues if not 0 <= p <= 1]
    if invalid:
        raise DataError(f"p-values lie between 0 and 1; got {invalid[0]!r}.")
    adjusted = [0.0] * len(pvalues)
    largest = 0.0
    ascending = sorted(range(len(pvalues)), key=lambda i: pvalues[i])
    for rank, i in enumerate(ascending):
        # The running maximum keeps adjusted values in the order of the original ones.
        largest = max(largest, min(1.0, (len(pvalues) - rank) * float(pvalues[i])))
        adjusted[i] = largest
    return adjusted


# --- intervals


def bootstrap_interval(
    values_by_group: Mapping[str, ArrayLike],
    *,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """Return the mean of all values with its cluster-bootstrap percentile interval.

    Args:
        values_by_group: values of each group (video, viewer). Larger groups weigh more.
        level: share of resamples inside the interval, in (0, 1).
        resamples: number of resamples of whole groups, with replacement; at least 100.
        seed: seed of the resampling.

    With few groups (below about 20) such intervals are too narrow. Raises :class:`DataError` when
    there are no values, or values that are not finite. Source: A. C. Davison, D. V. Hinkley,
    *Bootstrap Methods and their Application* (1997), §3.8 and chapter 5.
    """
    parts = {
        group: np.asarray(values, dtype=np.float64).ravel()
        for group, values in values_by_group.items()
    }
    groups = [group for group, part in parts.items() for _ in part]
    values = np.concatenate(list(parts.values())) if parts else np.zeros(0)
    overall, _ = stratified_intervals(values, groups, None, level, resamples, seed)
    return overall


def paired_difference(
    first: ArrayLike,
    second: ArrayLike,
    groups: Sequence[str],
    tasks: Sequence[str] | None = None,
    *,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Difference:
    """Compare two conditions on the same samples: accuracy of ``first`` minus that of ``second``.

    Args:
        first: correct or wrong under the first condition, sample by sample.
        second: the same under the second condition.
        groups: each sample's group (video, viewer), resampled as a whole.
        tasks: each sample's task. If given, accuracies are unweighted means over tasks; otherwise
            all samples weigh alike.
        level: see :func:`bootstrap_interval`.
        resamples: see :func:`bootstrap_interval`.
        seed: seed of the resampling.

    McNemar's test treats samples as independent and weights all alike, so it may disagree with the
    interval; trust the interval when videos have many questions. Raises :class:`DataError` like
    :func:`mcnemar`.
    """
    first_correct, second_correct = _paired_flags(first, second)
    change = first_correct.astype(np.float64) - second_correct.astype(np.float64)
    overall, _ = stratified_intervals(change, groups, tasks, level, resamples, seed)
    return Difference(**overall.as_json(), mcnemar=mcnemar(first_correct, second_correct))


def task_accuracies(
    correct: ArrayLike,
    tasks: Sequence[str],
    groups: Sequence[str] | None = None,
    *,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Accuracies:
    """Return the accuracy of each task and their unweighted mean, each with its interval.

    Args:
        correct: correct or wrong, sample by sample. Failed samples count as wrong if included.
        tasks: each sample's task.
        groups: each sample's group (video, viewer), resampled as a whole. By default every sample
            is a group of its own.
        level: see :func:`bootstrap_interval`.
        resamples: see :func:`bootstrap_interval`.
        seed: seed of the resampling.

    In a resample that lacks a task, the overall mean is that of the tasks present. Raises
    :class:`DataError` for different lengths, no samples, or values that are not correct/wrong.
    """
    flags = _flags(correct)
    if groups is None:
        groups = [str(i) for i in range(len(flags))]
    return task_means(flags, tasks, groups, level=level, resamples=resamples, seed=seed)


def task_means(
    values: ArrayLike,
    tasks: Sequence[str],
    groups: Sequence[str],
    *,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Accuracies:
    """Return the mean of each task and their unweighted mean, each with its interval.

    ``values``: any finite numbers. See :func:`task_accuracies` for the rest, and for errors.
    """
    overall, parts = stratified_intervals(values, groups, tasks, level, resamples, seed)
    per_task = {
        task: TaskAccuracy(part.mean, part.n, part.low, part.high) for task, part in parts.items()
    }
    return Accuracies(
        overall.mean,
        overall.low,
        overall.high,
        overall.n,
        overall.groups,
        level,
        resamples,
        seed,
        per_task,
    )


def stratified_intervals(
    values: ArrayLike,
    groups: Sequence[str],
    strata: Sequence[str] | None,
    level: float,
    resamples: int,
    seed: int,
) -> tuple[Interval, dict[str, Interval]]:
    """Return intervals of the unweighted mean over strata, and of each stratum's mean.

    All come from the same resamples: a video that serves several tasks moves all of them together.
    """
    array = np.asarray(values, dtype=np.float64)
    if strata is None:
        strata = ["all"] * len(array)
    _check(array, groups, strata, level, resamples)
    names, sums, counts = _tabulate(array, groups, strata)
    drawn = _resampled_means(sums, counts, resamples, seed)
    means = sums.sum(0) / counts.sum(0)
    sizes = counts.sum(0)
    groups_with = (counts > 0).sum(0)
    present = ~np.isnan(drawn)

    def interval(mean: Any, resampled: NDArray[np.float64], n: Any, n_groups: Any) -> Interval:
        low, high = _percentiles(resampled, level) if n_groups > 1 else (None, None)
        return Interval(float(mean), low, high, int(n), int(n_groups), level, resamples, seed)

    by_stratum = {
        name: interval(means[i], drawn[present[:, i], i], sizes[i], groups_with[i])
        for i, name in enumerate(names)
    }
    resampled_overall = np.where(present, drawn, 0).sum(1) / present.sum(1)
    overall = interval(means.mean(), resampled_overall, len(array), len(sums))
    return overall, by_stratum


def _check(
    values: NDArray[np.float64],
    groups: Sequence[str],
    strata: Sequence[str],
    level: float,
    resamples: int,
) -> None:
    if not 0 < level < 1 or resamples < 100:
        raise DataError(
            "An interval needs a level between 0 and 1 and at least 100 resamples; got level"
            f" {level!r}, resamples {resamples!r}."
        )
    if not len(values) == len(groups) == len(strata):
        raise DataError(
            f"Every value needs its group and task; got {len(values)} values, {len(groups)} groups,"
            f" {len(strata)} tasks."
        )
    if not len(values) or not np.isfinite(values).all():
        raise DataError(f"A mean needs at least one value, all of them finite; got {values!r}.")


def _percentiles(means: NDArray[np.float64], level: float) -> tuple[float, float]:
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2]).tolist()
    return low, high


def _tabulate(
    values: NDArray[np.float64], groups: Sequence[str], strata: Sequence[str]
) -> tuple[list[str], NDArray[np.float64], NDArray[np.float64]]:
    """Return the sorted strata, and sums and counts of values, each (group, stratum)."""
    group_names, group_index = _indexed(groups)
    stratum_names, stratum_index = _indexed(strata)
    sums = np.zeros((len(group_names), len(stratum_names)))
    counts = np.zeros_like(sums)
    np.add.at(sums, (group_index, stratum_index), values)
    np.add.at(counts, (group_index, stratum_index), 1)
    return stratum_names, sums, counts


def _indexed(names: Sequence[str]) -> tuple[list[str], NDArray[np.int64]]:
    """Return the distinct names, sorted, and the index of each given name among them."""
    # Not np.unique: numpy strings lose trailing NULs, and all are as long as the longest.
    texts = [str(name) for name in names]
    distinct = sorted(set(texts))
    index = {text: i for i, text in enumerate(distinct)}
    return distinct, np.array([index[text] for text in texts], dtype=np.int64)


def _resampled_means(
    sums: NDArray[np.float64], counts: NDArray[np.float64], resamples: int, seed: int
) -> NDArray[np.float64]:
    """Return the means of each resample, (resample, stratum); NaN where it lacks the stratum.

    ``sums``, ``counts``: (group, stratum).
    """
    rng = np.random.default_rng(seed)
    n_groups = len(sums)
    equal = np.full(n_groups, 1 / n_groups)
    chunk = max(1, _MOST_WEIGHTS // n_groups)
    means = []
    for start in range(0, resamples, chunk):
        size = min(chunk, resamples - start)
        # Drawing groups with replacement: how often each is drawn is multinomial.
        weights = rng.multinomial(n_groups, equal, size=size).astype(np.float64)
        drawn_counts = weights @ counts
        missing = np.full_like(drawn_counts, np.nan)
        means.append(np.divide(weights @ sums, drawn_counts, out=missing, where=drawn_counts > 0))
    return np.concatenate(means)


# --- input


def _flags(values: ArrayLike) -> NDArray[np.bool_]:
    array = np.asarray(values)
    if array.ndim != 1 or not np.isin(array, (0, 1)).all():
        raise DataError(
            "Samples are correct (True, 1) or wrong (False, 0), in one dimension; got"
            f" {str(array)[:80]} of shape {array.shape}."
        )
    return array.astype(bool)


def _paired_flags(
    first: ArrayLike, second: ArrayLike
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    first_flags = _flags(first)
    second_flags = _flags(second)
    if len(first_flags) != len(second_flags):
        raise DataError(
            "Paired conditions need the same samples; got"
            f" {len(first_flags)} and {len(second_flags)}."
        )
    return first_flags, second_flags

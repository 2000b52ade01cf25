"""What may be said about accuracies: exact paired tests, and bootstrap intervals that respect that
questions share videos.

Questions about one video are not independent of each other, so intervals resample whole groups
(videos, or viewers), never single questions. Everything is deterministic for a given seed; what is
made of right and wrong answers does not depend on the order of the samples either, because sums of
whole numbers are exact. No torch, no scipy.
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
_CHUNK = 4_000_000  # resampled weights held at once: 32 MB


class Summary:
    """A result that can be written as JSON."""

    def as_json(self) -> dict[str, Any]:
        """Return plain dicts, lists, numbers, booleans and None."""
        return asdict(self)  # type: ignore[call-overload, no-any-return]


@dataclass(frozen=True)
class McNemar(Summary):
    """``b`` samples right only under the first condition, ``c`` only under the second; two-sided
    ``p``; ``exact``: binomial, not normal.
    """

    b: int
    c: int
    p: float
    exact: bool


@dataclass(frozen=True)
class Interval(Summary):
    """A mean with its bootstrap interval.

    ``low`` and ``high`` are None when one group only gives no idea of the spread between groups.
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
class TaskAccuracy(Summary):
    """Accuracy of one task in [0, 1] over ``n`` samples, with its interval (see :class:`Interval`)."""

    accuracy: float
    n: int
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Accuracies(Summary):
    """``overall`` is the unweighted mean of the tasks' accuracies, as StreamGaze scores; ``low``
    and ``high`` are its interval.
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
class Difference(Summary):
    """First minus second condition on the same samples, in [-1, 1], with interval and McNemar's
    test over all samples.
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


def mcnemar(a: ArrayLike, b: ArrayLike) -> McNemar:
    """Test whether two conditions are right equally often on the same samples.

    Args:
        a, b: right (True, 1) or wrong (False, 0), sample by sample.

    Raises :class:`DataError` when the two differ in length or are not right/wrong. Source: Q.
    McNemar, Psychometrika 12 (1947) 153–157; the exact form is the sign test on the samples that
    changed.
    """
    first, second = _paired(a, b)
    return mcnemar_counts(int(np.sum(first & ~second)), int(np.sum(~first & second)))


def mcnemar_counts(b: int, c: int) -> McNemar:
    """McNemar's test from the numbers of samples right under the first condition only (``b``) and
    under the second only (``c``).

    Exact two-sided binomial, 2 · P(X ≤ min(b, c)) with X ~ Bin(b + c, ½), at most 1: exact to the
    last bit, in whole numbers. Beyond :data:`EXACT_UP_TO` discordant samples the normal
    approximation with continuity correction (Edwards, 1948).
    """
    if b < 0 or c < 0:
        raise DataError(f"Numbers of discordant samples cannot be negative; got b = {b}, c = {c}.")
    n = b + c
    if n > EXACT_UP_TO:
        z = max(abs(b - c) - 1, 0) / math.sqrt(n)
        return McNemar(b, c, math.erfc(z / math.sqrt(2)), exact=False)
    term = total = 1
    for k in range(min(b, c)):
        term = term * (n - k) // (k + 1)
        total += term
    return McNemar(b, c, min(1.0, 2 * total / 2**n), exact=True)


def holm(pvalues: Sequence[float]) -> list[float]:
    """Adjust p-values for several tests, in the order given: reject where the result is below the
    wanted family-wise error rate.

    Source: S. Holm, Scandinavian Journal of Statistics 6 (1979) 65–70. Raises :class:`DataError`
    for values outside [0, 1].
    """
    bad = [p for p in pvalues if not 0 <= p <= 1]
    if bad:
        raise DataError(f"p-values lie between 0 and 1; got {bad[0]!r}.")
    adjusted = [0.0] * len(pvalues)
    worst = 0.0
    for rank, i in enumerate(sorted(range(len(pvalues)), key=lambda i: pvalues[i])):
        worst = max(worst, min(1.0, (len(pvalues) - rank) * float(pvalues[i])))
        adjusted[i] = worst
    return adjusted


def bootstrap_interval(
    values_by_group: Mapping[str, ArrayLike],
    *,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """Percentile interval of the mean of all values, resampling whole groups with replacement.

    Args:
        values_by_group: the values of each group (video, viewer); groups may differ in size, larger ones weigh more.
        level: share of resamples inside the interval, in (0, 1).

    With few groups (below about 20) such intervals are too narrow. Raises :class:`DataError` when
    there are no values, or not finite ones. Source: A. C. Davison, D. V. Hinkley, *Bootstrap
    Methods and their Application* (1997), §3.8 and chapter 5.
    """
    parts = {
        group: np.asarray(values, dtype=np.float64).ravel()
        for group, values in values_by_group.items()
    }
    groups = [group for group, part in parts.items() for _ in part]
    values = np.concatenate(list(parts.values())) if parts else np.zeros(0)
    return _intervals(values, groups, None, level, resamples, seed)[0]


def paired_difference(
    a: ArrayLike,
    b: ArrayLike,
    groups: Sequence[str],
    tasks: Sequence[str] | None = None,
    *,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Difference:
    """Compare two conditions on the same samples: accuracy of ``a`` minus accuracy of ``b``.

    Args:
        a, b: right or wrong, sample by sample.
        groups: each sample's group (video, viewer), resampled as a whole.
        tasks: each sample's task; if given, the difference is that of the unweighted means over tasks, else of all samples alike.

    McNemar's test treats samples as independent and weighs all alike, so it may disagree with the
    interval; trust the interval when videos have many questions. Raises :class:`DataError` as
    :func:`mcnemar` does.
    """
    first, second = _paired(a, b)
    change = first.astype(np.float64) - second.astype(np.float64)
    found, _ = _intervals(change, groups, tasks, level, resamples, seed)
    return Difference(**found.as_json(), mcnemar=mcnemar(first, second))


def task_accuracies(
    correct: ArrayLike,
    tasks: Sequence[str],
    groups: Sequence[str] | None = None,
    *,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Accuracies:
    """Accuracy per task and their unweighted mean, each with its interval.

    Args:
        correct: right or wrong, sample by sample; a failed sample that is among them is wrong.
        tasks: each sample's task.
        groups: each sample's group (video, viewer), resampled as a whole; without, every sample is a group of its own.

    In a resample that happens to lack a task, the overall mean is that of the tasks present. Raises
    :class:`DataError` for lengths that differ, no samples, or values that are not right/wrong.
    """
    right = _flags(correct)
    groups = groups if groups is not None else [str(i) for i in range(len(right))]
    whole, parts = _intervals(right, groups, tasks, level, resamples, seed)
    per_task = {
        task: TaskAccuracy(part.mean, part.n, part.low, part.high) for task, part in parts.items()
    }
    return Accuracies(
        whole.mean, whole.low, whole.high, whole.n, whole.groups, level, resamples, seed, per_task
    )


def _intervals(
    values: ArrayLike,
    groups: Sequence[str],
    strata: Sequence[str] | None,
    level: float,
    resamples: int,
    seed: int,
) -> tuple[Interval, dict[str, Interval]]:
    """Interval of the unweighted mean over ``strata`` of their means, and of each stratum's mean,
    from the same resamples.
    """
    array = np.asarray(values, dtype=np.float64)
    strata = strata if strata is not None else ["all"] * len(array)
    if not 0 < level < 1 or resamples < 100:
        raise DataError(
            "An interval needs a level between 0 and 1 and at least 100 resamples; got level"
            f" {level!r}, resamples {resamples!r}."
        )
    if not len(array) == len(groups) == len(strata):
        raise DataError(
            f"Every value needs its group and task; got {len(array)} values, {len(groups)} groups,"
            f" {len(strata)} tasks."
        )
    if not len(array) or not np.isfinite(array).all():
        raise DataError(f"A mean needs at least one value, all of them finite; got {array!r}.")
    names, sums, counts = _tables(array, groups, strata)
    drawn = _resampled_means(sums, counts, resamples, seed)

    def interval(mean: Any, means: NDArray[np.float64], n: Any, n_groups: int) -> Interval:
        low, high = (
            np.quantile(means, [(1 - level) / 2, (1 + level) / 2]).tolist()
            if n_groups > 1
            else (None, None)
        )
        return Interval(float(mean), low, high, int(n), n_groups, level, resamples, seed)

    present = ~np.isnan(drawn)
    overall = np.where(present, drawn, 0).sum(1) / present.sum(1)
    means = sums.sum(0) / counts.sum(0)
    sizes = counts.sum(0)
    parts = {
        name: interval(means[s], drawn[present[:, s], s], sizes[s], int((counts[:, s] > 0).sum()))
        for s, name in enumerate(names)
    }
    return interval(means.mean(), overall, len(array), len(sums)), parts


def _tables(
    values: NDArray[np.float64], groups: Sequence[str], strata: Sequence[str]
) -> tuple[list[str], NDArray[np.float64], NDArray[np.float64]]:
    """Names of the strata, sorted; sums and numbers of values, (group, stratum) each."""
    group_names, g = _numbered(groups)
    stratum_names, s = _numbered(strata)
    tables = np.zeros((2, len(group_names), len(stratum_names)))
    np.add.at(tables[0], (g, s), values)
    np.add.at(tables[1], (g, s), 1)
    return stratum_names, tables[0], tables[1]


def _numbered(names: Sequence[str]) -> tuple[list[str], NDArray[np.int64]]:
    """The different names, sorted, and each one's number.

    Not by numpy's texts, which lose NULs at the end, and are all as long as the longest.
    """
    texts = [str(name) for name in names]
    different = sorted(set(texts))
    number = {text: i for i, text in enumerate(different)}
    return different, np.array([number[text] for text in texts], dtype=np.int64)


def _resampled_means(
    sums: NDArray[np.float64], counts: NDArray[np.float64], resamples: int, seed: int
) -> NDArray[np.float64]:
    """Each resample's mean of each stratum, (resample, stratum); NaN where the resample lacks the
    stratum.

    Drawing groups with replacement is a multinomial over how often each is drawn.
    """
    rng = np.random.default_rng(seed)
    n = len(sums)
    chunk = max(1, _CHUNK // n)
    means = []
    for start in range(0, resamples, chunk):
        weights = rng.multinomial(n, np.full(n, 1 / n), size=min(chunk, resamples - start)).astype(
            np.float64
        )
        numbers = weights @ counts
        means.append(
            np.divide(weights @ sums, numbers, out=np.full_like(numbers, np.nan), where=numbers > 0)
        )
    return np.concatenate(means)


def _flags(values: ArrayLike) -> NDArray[np.bool_]:
    array = np.asarray(values)
    if array.ndim != 1 or not np.isin(array, (0, 1)).all():
        raise DataError(
            "Samples are right (True, 1) or wrong (False, 0), in one dimension; got"
            f" {str(array)[:80]} of shape {array.shape}."
        )
    return array.astype(bool)


def _paired(a: ArrayLike, b: ArrayLike) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    first = _flags(a)
    second = _flags(b)
    if len(first) != len(second):
        raise DataError(
            f"Paired conditions need the same samples; got {len(first)} and {len(second)}."
        )
    return first, second

"""Paired differences of graded scores, with bootstrap intervals and permutation tests.

For answers that are not just right or wrong, such as generated text. Values of 0 and 1 give the
same means and intervals as :mod:`modulate.evaluation.intervals`. Imports neither torch nor scipy.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from modulate.errors import DataError
from modulate.evaluation.intervals import (
    LEVEL,
    RESAMPLES,
    JsonResult,
    stratified_intervals,
)

EXACT_GROUPS = 16
"""Groups that differ up to which all sign patterns are counted: 65,536."""

FLIPS = 20_000
"""Random sign patterns beyond that: the smallest p-value is 5e-5."""

_CHUNK = 4_000_000
"""Random signs held in memory at once."""


@dataclass(frozen=True)
class GradedDifference(JsonResult):
    """First minus second condition on the same samples.

    ``wins``, ``losses``: samples with a higher score under the first, or the second. ``p``: test
    that treats samples as independent. ``p_grouped``: test that swaps the conditions in whole
    groups.
    """

    mean: float
    low: float | None
    high: float | None
    n: int
    wins: int
    losses: int
    p: float
    p_grouped: float


def graded_difference(
    first: ArrayLike,
    second: ArrayLike,
    groups: Sequence[str],
    tasks: Sequence[str] | None = None,
    *,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> GradedDifference:
    """Compare two conditions on the same samples: mean of ``first`` minus that of ``second``.

    The arguments are those of :func:`modulate.evaluation.intervals.paired_difference`, with any
    finite numbers as values. The tests weight all samples alike. Raises :class:`DataError`.
    """
    values = [np.asarray(side, dtype=np.float64) for side in (first, second)]
    if values[0].shape != values[1].shape:
        raise DataError(
            f"Paired conditions need the same samples; got {len(values[0])} and {len(values[1])}."
        )
    changes = values[0] - values[1]
    overall, _ = stratified_intervals(changes, groups, tasks, level, resamples, seed)
    return GradedDifference(
        overall.mean,
        overall.low,
        overall.high,
        overall.n,
        wins=int((changes > 0).sum()),
        losses=int((changes < 0).sum()),
        p=permutation_p(changes, [str(i) for i in range(len(changes))], seed),
        p_grouped=permutation_p(changes, groups, seed),
    )


def permutation_p(changes: ArrayLike, groups: Sequence[str], seed: int = 0) -> float:
    """Return the p-value of a permutation test that swaps two conditions in whole groups.

    If both conditions were alike, each group's sum of changes could as well have the other sign.
    Two-sided. All sign patterns count while at most :data:`EXACT_GROUPS` groups changed; beyond
    that :data:`FLIPS` random ones, the observed one included, so that p is never 0.

    Args:
        changes: score under the first condition minus that under the second, sample by sample.
        groups: each sample's group; every sample its own for a test of independent samples.
        seed: seed of the random patterns.

    Raises :class:`DataError` for different lengths. Source: R. A. Fisher, *The Design of
    Experiments* (1935), §21; B. Phipson, G. K. Smyth, Stat. Appl. Genet. Mol. Biol. 9 (2010) 39.
    """
    values = np.asarray(changes, dtype=np.float64)
    if values.ndim != 1 or len(values) != len(groups) or not np.isfinite(values).all():
        raise DataError(
            f"Every change is a finite number and has its group; got {values.size} changes and"
            f" {len(groups)} groups."
        )
    sums = _group_sums(values, groups)
    observed = abs(sums.sum())
    # Sums of the same changes in another order differ by rounding.
    threshold = observed - 1e-9 * max(1.0, np.abs(sums).sum())
    if len(sums) <= EXACT_GROUPS:
        signs = _all_signs(len(sums))
        return float((np.abs(signs @ sums) >= threshold).mean())
    rng = np.random.default_rng(seed)
    chunk = max(1, _CHUNK // len(sums))
    extreme = 0
    for start in range(0, FLIPS, chunk):
        size = min(chunk, FLIPS - start)
        signs = rng.integers(0, 2, (size, len(sums)), dtype=np.int8).astype(np.float64) * 2 - 1
        extreme += int((np.abs(signs @ sums) >= threshold).sum())
    return (1 + extreme) / (1 + FLIPS)


def _group_sums(values: NDArray[np.float64], groups: Sequence[str]) -> NDArray[np.float64]:
    """Return the sum of each group's changes, without those that are 0."""
    index: dict[str, int] = {}
    places = [index.setdefault(str(group), len(index)) for group in groups]
    sums = np.zeros(len(index))
    np.add.at(sums, places, values)
    return sums[np.abs(sums) > 1e-12]


def _all_signs(count: int) -> NDArray[np.float64]:
    """Return all patterns of ``count`` signs, (2^count, count)."""
    patterns = np.arange(2**count)[:, None] >> np.arange(count)[None, :]
    return (patterns & 1).astype(np.float64) * 2 - 1

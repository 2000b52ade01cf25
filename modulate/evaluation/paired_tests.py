"""Paired tests beyond McNemar's: one that respects groups, and the power of McNemar's test.

Imports neither torch nor scipy.
"""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from modulate.errors import DataError

EXACT_DISCORDANT = 200
"""Expected discordant pairs up to which power is summed exactly (about 20 ms there)."""

ALPHA = 0.05
POWER = 0.8

_PRECISION = 1e-4
"""Width at which the bisection of a detectable difference ends."""

_NEGLIGIBLE = 1e-9
"""Probability below which a number of discordant pairs is left out of the power."""


# --- the grouped test


def grouped_p(changes: Sequence[int], groups: Sequence[str]) -> float:
    """Return the p-value of a randomization test that swaps two conditions in whole groups.

    Tests whether the conditions are correct equally often when samples of one group (video, viewer)
    depend on each other. If they were, each group's sum of changes could as well have the other
    sign. All 2^groups sign patterns count, by convolution. Two-sided; with one sample per group
    this is McNemar's exact test.

    Args:
        changes: 1 for a sample correct under the first condition only, −1 under the second only,
            otherwise 0.
        groups: each sample's group.

    Raises :class:`DataError` for different lengths and other values. Source: R. A. Fisher, *The
    Design of Experiments* (1935), §21.
    """
    if len(changes) != len(groups) or any(change not in (-1, 0, 1) for change in changes):
        raise DataError(
            f"Every change is 1, 0 or -1 and has its group; got {len(changes)} changes and"
            f" {len(groups)} groups."
        )
    sums: Counter[str] = Counter()
    for change, group in zip(changes, groups, strict=True):
        sums[group] += int(change)
    sizes = [abs(total) for total in sums.values() if total]
    largest = sum(sizes)
    # Index i holds the probability of the total i − largest.
    probabilities = np.zeros(2 * largest + 1)
    probabilities[largest] = 1.0
    for size in sizes:
        # np.roll cannot wrap around here: totals so far leave room for the sizes to come.
        up = np.roll(probabilities, size)
        down = np.roll(probabilities, -size)
        probabilities = (up + down) / 2
    observed = abs(sum(sums.values()))
    extreme = np.abs(np.arange(-largest, largest + 1)) >= observed
    return min(1.0, float(probabilities[extreme].sum()))


# --- power of McNemar's test


def mcnemar_power(n: int, discordance: float, difference: float, alpha: float = ALPHA) -> float:
    """Return the probability that McNemar's test of ``n`` independent pairs gives p ≤ ``alpha``.

    Args:
        n: number of pairs.
        discordance: share ψ of pairs that are correct under one condition only, in (0, 1].
        difference: first minus second accuracy δ, |δ| ≤ ψ.
        alpha: level of the test, in (0, 1).

    Exact for the exact test while nψ ≤ :data:`EXACT_DISCORDANT`: the number of discordant pairs is
    Bin(n, ψ), of which the first condition wins Bin(·, (1 + δ/ψ)/2) (S. W. Duffy, Biometrics 40
    (1984) 1005–1015). Beyond that R. J. Connor's normal approximation, Biometrics 43 (1987)
    207–211: Φ((|δ|√n − z_{α/2}√ψ) / √(ψ − δ²)). Raises :class:`DataError` for values outside these
    ranges.
    """
    if n < 1 or not 0 < discordance <= 1 or abs(difference) > discordance or not 0 < alpha < 1:
        raise DataError(
            f"Power needs n ≥ 1, 0 < ψ ≤ 1, |δ| ≤ ψ and 0 < α < 1; got n = {n}, ψ = {discordance},"
            f" δ = {difference}, α = {alpha}."
        )
    if n * discordance > EXACT_DISCORDANT:
        return _approximate_power(n, discordance, difference, alpha)
    return _exact_power(n, discordance, difference, alpha)


def _approximate_power(n: int, discordance: float, difference: float, alpha: float) -> float:
    # All pairs may change to one side (δ = ψ = 1); then the variance vanishes.
    spread = math.sqrt(max(discordance - difference**2, 1e-12))
    threshold = _upper_quantile(alpha / 2) * math.sqrt(discordance)
    return _normal_cdf((abs(difference) * math.sqrt(n) - threshold) / spread)


def _exact_power(n: int, discordance: float, difference: float, alpha: float) -> float:
    critical = _critical_wins(n, alpha)
    probabilities = _binomial_probabilities(n, discordance)
    # Numbers of discordant pairs that are likely enough, and at which the test can reject at all.
    likely = np.arange(n + 1)[(probabilities > _NEGLIGIBLE) & (critical >= 0)]
    if not len(likely):
        return 0.0
    first_share = (1 + difference / discordance) / 2
    wins = np.arange(int(critical[likely].max()) + 1)
    log_coefficients = _log_choose(likely[:, None], wins[None, :])
    rejected = wins[None, :] <= critical[likely][:, None]
    # Two-sided: either condition may be the one that wins rarely.
    tails = sum(
        np.where(rejected, np.exp(log_coefficients + _log_powers(likely, wins, share)), 0.0).sum(1)
        for share in (first_share, 1 - first_share)
    )
    return float(min(1.0, (probabilities[likely] * tails).sum()))


@lru_cache(maxsize=4096)
def detectable_difference(
    n: int, discordance: float, alpha: float = ALPHA, power: float = POWER
) -> float | None:
    """Return the smallest difference that McNemar's test of ``n`` pairs detects with ``power``.

    ``discordance``: share of pairs that are correct under one condition only; no difference exceeds
    it. None when even that difference is not detected. See :func:`mcnemar_power` for method and
    sources.
    """
    if discordance <= 0 or mcnemar_power(n, discordance, discordance, alpha) < power:
        return None
    return _smallest(
        lambda difference: mcnemar_power(n, discordance, difference, alpha) >= power, discordance
    )


@lru_cache(maxsize=4096)
def least_detectable(n: int, alpha: float = ALPHA, power: float = POWER) -> float | None:
    """Return the smallest difference detectable at any discordance: all changes go one way.

    None when not even a change of all ``n`` pairs is detected.
    """
    if mcnemar_power(n, 1.0, 1.0, alpha) < power:
        return None
    return _smallest(
        lambda difference: mcnemar_power(n, difference, difference, alpha) >= power, 1.0
    )


def _smallest(detected: Callable[[float], bool], upper: float) -> float:
    """Bisect for the smallest detected difference up to ``upper``, which is detected itself."""
    low = 0.0
    high = upper
    while high - low > _PRECISION:
        middle = (low + high) / 2
        if detected(middle):
            high = middle
        else:
            low = middle
    return high


# --- binomial and normal distributions


@lru_cache(maxsize=64)
def _critical_wins(n: int, alpha: float) -> NDArray[np.int64]:
    """Return the largest number of wins of the rarer side at which the exact test rejects.

    (n + 1,): for every number of discordant pairs up to ``n``; −1 where the test never rejects.
    """
    critical = np.full(n + 1, -1)
    wins = -1
    tail = 0.0  # P(X ≤ wins) with X ~ Bin(pairs, ½)
    for pairs in range(1, n + 1):
        # One pair more: from Bin(pairs − 1, ½) to Bin(pairs, ½), the tail loses half of its end.
        if wins >= 0:
            tail -= 0.5 * _fair_probability(pairs - 1, wins)
        longer_tail = tail + _fair_probability(pairs, wins + 1)
        # The critical value grows by at most one per pair.
        if 2 * longer_tail <= alpha:
            wins += 1
            tail = longer_tail
        critical[pairs] = wins
    return critical


def _fair_probability(n: int, k: int) -> float:
    """Return P(X = k) with X ~ Bin(n, ½)."""
    log_choose = math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
    return math.exp(log_choose - n * math.log(2))


def _log_choose(n: NDArray[np.int64], k: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the logarithm of n over k; −inf where k > n."""
    logs = np.log(np.arange(1, int(n.max()) + 1))
    factorials = np.concatenate([[0.0], np.cumsum(logs)])
    log_choose = factorials[n] - factorials[np.minimum(k, n)] - factorials[np.maximum(n - k, 0)]
    return np.where(k <= n, log_choose, -np.inf)


def _log_powers(n: NDArray[np.int64], k: NDArray[np.int64], q: float) -> NDArray[np.float64]:
    """Return the logarithm of q^k (1 − q)^(n − k), (n, k)."""
    losses = np.maximum(n[:, None] - k[None, :], 0)
    # log(0) is needed at both ends, where one count is certain and all others are impossible.
    if q <= 0:
        return np.where((k[None, :] == 0) & (losses >= 0), 0.0, -np.inf)
    if q >= 1:
        return np.where(losses == 0, 0.0, -np.inf)
    return k[None, :] * math.log(q) + losses * math.log(1 - q)


def _binomial_probabilities(n: int, q: float) -> NDArray[np.float64]:
    """Return P(X = k) with X ~ Bin(n, q), for k from 0 to n."""
    counts = np.arange(n + 1)
    log_coefficients = _log_choose(np.full(n + 1, n), counts)
    probabilities: NDArray[np.float64] = np.exp(
        log_coefficients + _log_powers(np.array([n]), counts, q)[0]
    )
    return probabilities


def _normal_cdf(z: float) -> float:
    return 0.5 * math.erfc(-z / math.sqrt(2))


def _upper_quantile(tail: float) -> float:
    """Return z with P(Z > z) = ``tail``, by bisection."""
    low = -10.0
    high = 10.0
    for _ in range(80):
        middle = (low + high) / 2
        if _normal_cdf(-middle) > tail:
            low = middle
        else:
            high = middle
    return low

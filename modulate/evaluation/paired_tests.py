"""Paired comparisons beyond McNemar's test: one that respects groups, and what a sample of this
size could have shown at all. No torch, no scipy.
"""

import math
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from modulate.errors import DataError

EXACT_DISCORDANT = 200
"""Expected discordant samples up to which power is summed exactly (about 20 ms there)."""

ALPHA = 0.05
POWER = 0.8


def grouped_p(changes: Sequence[int], groups: Sequence[str]) -> float:
    """Test whether two conditions are right equally often, when samples of one group (video,
    viewer) depend on each other.

    Args:
        changes: for each sample 1 (right under the first condition only), −1 (under the second only) or 0.
        groups: each sample's group.

    Two-sided p of the randomization test that exchanges the two conditions in whole groups: were
    they alike, each group's sum might as well have the other sign. All 2^groups outcomes count, by
    convolution; with one sample to a group this is McNemar's exact test. Raises :class:`DataError`
    for lengths that differ and other values. Source: R. A. Fisher, *The Design of Experiments*
    (1935), §21.
    """
    if len(changes) != len(groups) or any(c not in (-1, 0, 1) for c in changes):
        raise DataError(
            f"Every change is 1, 0 or -1 and has its group; got {len(changes)} changes and"
            f" {len(groups)} groups."
        )
    sums: Counter[str] = Counter()
    for change, group in zip(changes, groups, strict=True):
        sums[group] += int(change)
    reach = sum(abs(s) for s in sums.values())
    chances = np.zeros(2 * reach + 1)  # of every sum from −reach to reach
    chances[reach] = 1.0
    for size in (abs(s) for s in sums.values() if s):
        chances = (
            np.roll(chances, size) + np.roll(chances, -size)
        ) / 2  # nothing wraps: the sums so far leave that much room
    seen = abs(sum(sums.values()))
    far = np.abs(np.arange(-reach, reach + 1)) >= seen
    return min(1.0, float(chances[far].sum()))


def mcnemar_power(n: int, discordance: float, difference: float, alpha: float = ALPHA) -> float:
    """Return the probability that McNemar's test of ``n`` independent pairs gives p ≤ ``alpha``.

    Args:
        n: pairs.
        discordance: share ψ of pairs that are right under one condition only, in (0, 1].
        difference: first minus second accuracy, |δ| ≤ ψ.

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
        spread = math.sqrt(max(discordance - difference**2, 1e-12))
        return _phi(
            (abs(difference) * math.sqrt(n) - _upper(alpha / 2) * math.sqrt(discordance)) / spread
        )
    critical = _critical(n, alpha)
    number = _binomial(n, discordance)
    pairs = np.arange(n + 1)
    likely = pairs[(number > 1e-9) & (critical >= 0)]
    if not len(likely):
        return 0.0
    share = (1 + difference / discordance) / 2
    wins = np.arange(int(critical[likely].max()) + 1)
    table = _log_choose(likely[:, None], wins[None, :])
    rejected = wins[None, :] <= critical[likely][:, None]
    tails = sum(
        np.where(rejected, np.exp(table + _powers(likely, wins, q)), 0.0).sum(1)
        for q in (share, 1 - share)
    )
    return float(min(1.0, (number[likely] * tails).sum()))


@lru_cache(maxsize=4096)
def detectable_difference(
    n: int, discordance: float, alpha: float = ALPHA, power: float = POWER
) -> float | None:
    """Return the smallest difference of accuracies that McNemar's test of ``n`` pairs finds with
    probability ``power``; None when it finds none.

    ``discordance``: share of pairs that are right under one condition only; no difference exceeds
    it. See :func:`mcnemar_power` for method and sources.
    """
    if discordance <= 0 or mcnemar_power(n, discordance, discordance, alpha) < power:
        return None
    low = 0.0
    high = discordance
    while high - low > 1e-4:
        middle = (low + high) / 2
        low, high = (
            (low, middle)
            if mcnemar_power(n, discordance, middle, alpha) >= power
            else (middle, high)
        )
    return high


@lru_cache(maxsize=4096)
def least_detectable(n: int, alpha: float = ALPHA, power: float = POWER) -> float | None:
    """Return the smallest difference that McNemar's test of ``n`` pairs can find at all with
    probability ``power``: when every change is to one side.

    None when not even a change of all ``n`` is found.
    """
    if mcnemar_power(n, 1.0, 1.0, alpha) < power:
        return None
    low = 0.0
    high = 1.0
    while high - low > 1e-4:
        middle = (low + high) / 2
        low, high = (
            (low, middle) if mcnemar_power(n, middle, middle, alpha) >= power else (middle, high)
        )
    return high


@lru_cache(maxsize=64)
def _critical(n: int, alpha: float) -> NDArray[np.int64]:
    """For every number of discordant pairs up to ``n`` the most wins of the rarer side at which the
    exact test rejects; −1: it never does.
    """
    found = np.full(n + 1, -1)
    most = -1
    below = 0.0
    for m in range(1, n + 1):
        if most >= 0:  # P(X ≤ c) of one toss more
            below -= 0.5 * math.exp(_log_choose_one(m - 1, most) - (m - 1) * math.log(2))
        more = below + math.exp(_log_choose_one(m, most + 1) - m * math.log(2))
        if 2 * more <= alpha:
            most = most + 1
            below = more
        found[m] = most
    return found


def _log_choose_one(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)


def _log_factorials(most: int) -> NDArray[np.float64]:
    return np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, most + 1)))])


def _log_choose(n: NDArray[np.int64], k: NDArray[np.int64]) -> NDArray[np.float64]:
    """Logarithm of n over k; −inf where k > n."""
    logs = _log_factorials(int(n.max()))
    return np.where(k <= n, logs[n] - logs[np.minimum(k, n)] - logs[np.maximum(n - k, 0)], -np.inf)


def _powers(n: NDArray[np.int64], k: NDArray[np.int64], q: float) -> NDArray[np.float64]:
    """Logarithm of q^k (1 − q)^(n − k), (n, k)."""
    losses = np.maximum(n[:, None] - k[None, :], 0)
    if q <= 0 or q >= 1:
        certain = (k[None, :] == 0) & (losses >= 0) if q <= 0 else losses == 0
        return np.where(certain, 0.0, -np.inf)
    return k[None, :] * math.log(q) + losses * math.log(1 - q)


def _binomial(n: int, q: float) -> NDArray[np.float64]:
    every = np.arange(n + 1)
    chances: NDArray[np.float64] = np.exp(
        _log_choose(np.full(n + 1, n), every) + _powers(np.array([n]), every, q)[0]
    )
    return chances


def _phi(z: float) -> float:
    return 0.5 * math.erfc(-z / math.sqrt(2))


def _upper(tail: float) -> float:
    """Return z with P(Z > z) = ``tail``."""
    low = -10.0
    high = 10.0
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if _phi(-middle) > tail else (low, middle)
    return low

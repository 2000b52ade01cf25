"""Means and paired tests of graded scores, against the exact ones and against brute force."""

import itertools

import numpy as np
import pytest

from modulate.errors import DataError
from modulate.evaluation.graded import graded_difference, permutation_p
from modulate.evaluation.intervals import paired_difference, task_accuracies, task_means
from modulate.evaluation.paired_tests import grouped_p


def drawn(seed, n=40, groups=8):
    rng = np.random.default_rng(seed)
    return rng.random(n), rng.random(n), [f"v{group}" for group in rng.integers(0, groups, n)]


def test_right_and_wrong_answers_give_the_same_means_and_intervals_as_accuracies():
    first, second, groups = drawn(1)
    first, second = first > 0.4, second > 0.6
    tasks = ["a", "b"] * 20
    assert task_means(first, tasks, groups, resamples=300) == task_accuracies(
        first, tasks, groups, resamples=300
    )
    graded = graded_difference(first, second, groups, tasks, resamples=300)
    binary = paired_difference(first, second, groups, tasks, resamples=300)
    assert (graded.mean, graded.low, graded.high) == (binary.mean, binary.low, binary.high)
    assert (graded.wins, graded.losses) == (binary.mcnemar.b, binary.mcnemar.c)


@pytest.mark.parametrize("seed", range(3))
def test_few_groups_are_tested_exactly(seed):
    first, second, groups = drawn(seed)
    changes = first - second
    sums = [changes[np.array(groups) == name].sum() for name in sorted(set(groups))]
    observed = abs(sum(sums)) - 1e-12
    patterns = list(itertools.product((-1, 1), repeat=len(sums)))
    expected = np.mean([abs(np.dot(signs, sums)) >= observed for signs in patterns])
    assert permutation_p(changes, groups) == pytest.approx(expected)


def test_whole_numbers_give_the_p_value_of_the_exact_test_of_groups():
    rng = np.random.default_rng(5)
    changes = rng.integers(-1, 2, 120)
    few = [f"v{index % 12}" for index in range(120)]
    assert permutation_p(changes, few) == pytest.approx(grouped_p(changes.tolist(), few))
    many = [f"v{index}" for index in range(120)]
    assert permutation_p(changes, many) == pytest.approx(
        grouped_p(changes.tolist(), many), abs=0.02
    )


def test_p_values_are_small_for_a_real_difference_large_for_none_and_never_zero():
    rng = np.random.default_rng(2)
    noise = rng.normal(size=200)
    groups = [f"v{index % 50}" for index in range(200)]
    assert permutation_p(noise + 1.0, groups) == pytest.approx(1 / 20_001)
    assert permutation_p(np.zeros(200), groups) == 1.0
    assert permutation_p(noise - noise.mean(), groups) > 0.9


def test_the_test_has_its_level_when_answers_of_a_group_go_together():
    """Samples of a group share their change: a test of single samples rejects far too often."""
    rejected = np.zeros(2)
    for seed in range(60):
        rng = np.random.default_rng(seed)
        changes = np.repeat(rng.normal(size=12), 10)
        groups = [f"v{index // 10}" for index in range(120)]
        found = graded_difference(changes, np.zeros(120), groups, resamples=100, seed=seed)
        rejected += [found.p_grouped <= 0.05, found.p <= 0.05]
    assert rejected[0] <= 8 < 20 < rejected[1]


def test_a_seed_gives_the_same_p_value_again():
    rng = np.random.default_rng(3)
    changes = rng.normal(size=100) + 0.1
    groups = [str(index) for index in range(100)]
    assert permutation_p(changes, groups, 4) == permutation_p(changes, groups, 4)
    assert permutation_p(changes, groups, 4) != permutation_p(changes, groups, 5)


def test_what_cannot_be_paired_is_refused():
    with pytest.raises(DataError, match="got 3 and 2"):
        graded_difference([1.0, 0.5, 0.0], [1.0, 0.0], ["a", "b", "c"])
    with pytest.raises(DataError, match="got 2 changes and 1 groups"):
        permutation_p([0.5, 0.5], ["a"])
    with pytest.raises(DataError, match="finite"):
        permutation_p([float("nan")], ["a"])

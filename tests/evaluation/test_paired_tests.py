"""Expected values come from enumeration, simulation and other tests, not from the tested code."""

import itertools
from math import comb

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modulate.errors import DataError
from modulate.evaluation import paired_tests as paired
from modulate.evaluation.intervals import mcnemar_counts
from modulate.evaluation.paired_tests import (
    detectable_difference,
    grouped_p,
    least_detectable,
    mcnemar_power,
)


@given(st.lists(st.tuples(st.sampled_from([-1, 0, 1]), st.sampled_from("abcdefgh")), max_size=40))
@settings(max_examples=60)
def test_the_grouped_test_counts_every_swap_of_whole_groups(samples):
    changes = [change for change, _ in samples]
    groups = [group for _, group in samples]
    sums = [sum(change for change, group in samples if group == name) for name in "abcdefgh"]
    totals = [
        sum(sign * value for sign, value in zip(signs, sums, strict=True))
        for signs in itertools.product([1, -1], repeat=len(sums))
    ]
    expected = np.mean([abs(total) >= abs(sum(sums)) for total in totals])
    assert grouped_p(changes, groups) == pytest.approx(expected, abs=1e-12)


@given(st.integers(0, 30), st.integers(0, 30), st.integers(0, 5))
def test_the_grouped_test_of_groups_of_one_is_mcnemars(b, c, unchanged):
    changes = [1] * b + [-1] * c + [0] * unchanged
    assert grouped_p(changes, [str(index) for index in range(len(changes))]) == pytest.approx(
        mcnemar_counts(b, c).p, rel=1e-9
    )


def test_samples_of_one_group_count_as_one():
    assert grouped_p([1] * 30, ["a"] * 15 + ["b"] * 15) == 0.5  # two videos: 4 outcomes, 2 as far


def test_the_grouped_test_refuses_invalid_changes():
    with pytest.raises(DataError, match="got 2 changes and 1 groups"):
        grouped_p([1, 0], ["a"])
    with pytest.raises(DataError, match="1, 0 or -1"):
        grouped_p([2], ["a"])


def enumerated_power(n, discordance, difference, alpha):
    first = (discordance + difference) / 2
    second = (discordance - difference) / 2
    outcomes = (
        (b, c) for b in range(n + 1) for c in range(n + 1 - b) if mcnemar_counts(b, c).p <= alpha
    )
    return sum(
        comb(n, b) * comb(n - b, c) * first**b * second**c * (1 - discordance) ** (n - b - c)
        for b, c in outcomes
    )


@pytest.mark.parametrize(
    ("n", "discordance", "difference", "alpha"),
    [
        (20, 0.5, 0.3, 0.05),
        (35, 1.0, -0.4, 0.05),
        (12, 0.6, 0.6, 0.05),
        (30, 0.3, 0.2, 0.01),
        (4, 0.9, 0.9, 0.05),
        (25, 0.4, 0.0, 0.05),
    ],
)
def test_power_is_the_sum_over_all_outcomes(n, discordance, difference, alpha):
    assert mcnemar_power(n, discordance, difference, alpha) == pytest.approx(
        enumerated_power(n, discordance, difference, alpha), abs=1e-7
    )


def test_power_of_a_large_sample_agrees_with_simulation():
    n = 1200
    discordance = 0.3
    difference = 0.05
    assert n * discordance > paired.EXACT_DISCORDANT  # so Connor's approximation is used
    drawn = np.random.default_rng(0).multinomial(
        n,
        [(discordance + difference) / 2, (discordance - difference) / 2, 1 - discordance],
        size=2000,
    )
    found = np.mean([mcnemar_counts(int(b), int(c)).p <= 0.05 for b, c, _ in drawn])
    assert mcnemar_power(n, discordance, difference) == pytest.approx(found, abs=0.035)


def test_exact_and_approximate_power_agree(monkeypatch):
    exact = mcnemar_power(1000, 0.19, 0.04)
    monkeypatch.setattr(paired, "EXACT_DISCORDANT", 50)
    approximate = mcnemar_power(1000, 0.19, 0.04)
    assert approximate == pytest.approx(exact, abs=0.02) and approximate != exact


@pytest.mark.parametrize(("n", "discordance"), [(30, 0.4), (60, 0.25), (401, 0.7)])
def test_the_detectable_difference_is_where_power_reaches_eighty_per_cent(n, discordance):
    found = detectable_difference(n, discordance)
    assert (
        mcnemar_power(n, discordance, found) >= 0.8 > mcnemar_power(n, discordance, found - 0.001)
    )


def test_too_few_answers_can_show_nothing():
    # Five discordant answers on one side give p = 1/16.
    assert detectable_difference(5, 0.8) is None
    assert detectable_difference(400, 0.0) is None


def test_the_least_detectable_difference_needs_every_change_on_one_side():
    assert least_detectable(5) is None  # p = 1/16 at best
    # Six of 18 questions must change, all to one side: P(Bin(18, δ) ≥ 6) = 0.8.
    least = least_detectable(18)
    power = sum(
        comb(18, index) * least**index * (1 - least) ** (18 - index) for index in range(6, 19)
    )
    assert power == pytest.approx(0.8, abs=2e-3)
    for discordance in (0.5, 0.7, 0.9):
        assert detectable_difference(18, discordance) >= least


def test_power_refuses_a_difference_beyond_the_discordance():
    with pytest.raises(DataError, match=r"ψ = 0\.2, δ = 0\.3"):
        mcnemar_power(10, 0.2, 0.3)


@pytest.mark.parametrize(
    ("n", "discordance", "difference", "alpha"),
    [
        (0, 0.5, 0.1, 0.05),
        (5, 0.0, 0.0, 0.05),
        (5, 1.1, 0.1, 0.05),
        (5, 0.5, -0.6, 0.05),
        (5, 0.5, 0.1, 0.0),
        (5, 0.5, 0.1, 1.0),
    ],
)
def test_power_refuses_each_value_out_of_its_range(n, discordance, difference, alpha):
    with pytest.raises(
        DataError, match=f"got n = {n}, ψ = {discordance}, δ = {difference}, α = {alpha}"
    ):
        mcnemar_power(n, discordance, difference, alpha)


def test_power_reaches_to_the_edges_of_its_ranges():
    assert mcnemar_power(1, 1.0, 1.0) == 0.0 and mcnemar_power(1, 1.0, -1.0, 0.999) == 0.0
    assert mcnemar_power(6, 1.0, 1.0) == mcnemar_power(6, 1.0, -1.0) == 1.0  # 2 / 2^6 < 0.05


def test_a_difference_detected_exactly_as_often_as_required_is_detected():
    power = mcnemar_power(6, 1.0, 1.0)
    assert least_detectable(6, power=power) == pytest.approx(1.0, abs=1e-3)
    assert detectable_difference(6, 1.0, power=power) == pytest.approx(1.0, abs=1e-3)
    assert detectable_difference(6, 0.0) is None

"""Expected values come from hand counts and full enumeration, not from the code under test."""

import itertools
import json
import subprocess
import sys
from fractions import Fraction
from math import comb

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modulate.errors import DataError
from modulate.evaluation import intervals
from modulate.evaluation.intervals import (
    bootstrap_interval,
    holm,
    mcnemar,
    mcnemar_counts,
    paired_difference,
    task_accuracies,
)


def test_mcnemar_counts_the_samples_that_changed():
    result = mcnemar([1, 1, 1, 0, 0, 1, 0], [1, 0, 0, 1, 0, 0, 0])
    assert (result.b, result.c, result.exact) == (3, 1, True)
    assert result.p == 0.625  # 2 · (1 + 4) / 16


@pytest.mark.parametrize(
    ("b", "c", "p"),
    [(0, 0, 1.0), (0, 5, 0.0625), (5, 0, 0.0625), (1, 9, 0.021484375), (4, 4, 1.0), (0, 1, 1.0)],
)
def test_mcnemar_equals_known_binomial_values(b, c, p):
    assert mcnemar_counts(b, c).p == p


@given(st.integers(0, 60), st.integers(0, 60))
def test_mcnemar_equals_the_sum_over_all_coin_tosses(b, c):
    n = b + c
    # The definition: all outcomes at least as far from n / 2 as the observed one.
    extreme = [index for index in range(n + 1) if abs(2 * index - n) >= abs(b - c)]
    expected = sum(Fraction(comb(n, k), 2**n) for k in extreme)
    assert mcnemar_counts(b, c).p == pytest.approx(float(expected), rel=1e-14)


def test_mcnemar_beyond_the_exact_range_agrees_with_the_exact_form(monkeypatch):
    exact = mcnemar_counts(4900, 5100)
    monkeypatch.setattr(intervals, "EXACT_UP_TO", 100)
    approximate = mcnemar_counts(4900, 5100)
    assert (exact.exact, approximate.exact) == (True, False)
    assert approximate.p == pytest.approx(exact.p, rel=1e-3)


def test_mcnemar_refuses_unpaired_samples_and_values_that_are_not_correct_or_wrong():
    with pytest.raises(DataError, match="got 2 and 3"):
        mcnemar([1, 0], [1, 0, 1])
    with pytest.raises(DataError, match=r"correct .* or wrong .*0\.5"):
        mcnemar([0.5, 1], [1, 0])
    with pytest.raises(DataError, match="b = -1"):
        mcnemar_counts(-1, 2)


def test_holm_equals_the_worked_example():
    # smallest first: 4 · .005 = .02, 3 · .01 = .03, 2 · .03 = .06, then .04 raised to .06
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []
    with pytest.raises(DataError, match=r"got 1\.5"):
        holm([1.5])


@given(st.lists(st.floats(0, 1), max_size=12))
def test_holm_never_lowers_and_keeps_the_order(pvalues):
    adjusted = holm(pvalues)
    assert all(before <= after <= 1 for before, after in zip(pvalues, adjusted, strict=True))
    ascending = sorted(range(len(pvalues)), key=lambda i: pvalues[i])
    assert [adjusted[i] for i in ascending] == sorted(adjusted)


def test_the_bootstrap_equals_enumeration_for_three_groups():
    data = {"a": [0, 0, 1], "b": [1], "c": [0, 1, 1, 1]}
    means = []
    for draw in itertools.product("abc", repeat=3):
        values = [v for group in draw for v in data[group]]
        means.append(sum(values) / len(values))
    # Many copies of the 27 outcomes leave nothing to interpolate; .13 and .87 lie inside steps.
    low, high = np.quantile(np.repeat(means, 1000), [0.13, 0.87])
    result = bootstrap_interval(data, level=0.74, resamples=20_000, seed=3)
    assert result.mean == 5 / 8
    assert (result.low, result.high) == pytest.approx((low, high), abs=1e-12)
    assert (result.n, result.groups) == (8, 3)


def test_two_groups_that_disagree_give_the_widest_interval():
    result = bootstrap_interval({"a": [0, 0], "b": [1, 1]})
    assert (result.low, result.mean, result.high) == (0.0, 0.5, 1.0)
    # Half of all resamples take one group of each.
    narrow = bootstrap_interval({"a": [0, 0], "b": [1, 1]}, level=0.3)
    assert (narrow.low, narrow.high) == (0.5, 0.5)


def test_one_group_has_no_interval():
    result = bootstrap_interval({"only": [1, 0, 1, 1]})
    assert (result.mean, result.low, result.high) == (0.75, None, None)


def test_clustering_widens_the_interval_of_dependent_samples():
    values = np.repeat([1, 0] * 10, 20)
    videos = np.repeat(np.arange(20), 20).astype(str)
    clustered = task_accuracies(values, ["t"] * 400, list(videos))
    single = task_accuracies(values, ["t"] * 400)
    assert clustered.high - clustered.low > 3 * (single.high - single.low)


def test_clustered_intervals_cover_the_truth_about_as_often_as_they_claim():
    rng = np.random.default_rng(11)
    hits = 0
    runs = 150
    for run in range(runs):
        # Clipping moves the mean by less than .003.
        accuracies = np.clip(rng.normal(0.6, 0.2, 40), 0, 1)
        groups = {
            str(index): rng.random(int(rng.integers(3, 12))) < accuracy
            for index, accuracy in enumerate(accuracies)
        }
        interval = bootstrap_interval(groups, resamples=400, seed=run)
        hits += interval.low <= 0.597 <= interval.high
    assert 0.87 <= hits / runs <= 0.99


def test_tasks_have_equal_weight():
    result = task_accuracies(
        [1, 0, 1, 1, 1, 1], ["a", "a", "b", "b", "b", "b"], ["u", "v", "u", "v", "w", "w"]
    )
    assert result.overall == 0.75
    assert {task: (part.accuracy, part.n) for task, part in result.tasks.items()} == {
        "a": (0.5, 2),
        "b": (1.0, 4),
    }
    assert (result.tasks["b"].low, result.tasks["b"].high) == (1.0, 1.0)
    assert json.loads(json.dumps(result.as_json())) == result.as_json()
    assert result.as_json()["tasks"]["a"] == {"accuracy": 0.5, "n": 2, "low": 0.0, "high": 1.0}


def test_a_task_seen_in_one_group_only_has_no_interval():
    result = task_accuracies([1, 0, 1], ["a", "a", "b"], ["u", "u", "v"])
    assert result.tasks["a"].low is None
    assert result.low is not None


def test_the_paired_difference_of_equal_conditions_is_zero():
    result = paired_difference([1, 0, 1], [1, 0, 1], ["u", "v", "w"])
    assert (result.mean, result.low, result.high, result.mcnemar.p) == (0.0, 0.0, 0.0, 1.0)


def test_paired_difference_by_hand():
    first = [1, 1, 1, 1, 0, 1]
    second = [0, 1, 0, 1, 1, 0]
    videos = ["u", "u", "v", "v", "w", "w"]
    result = paired_difference(first, second, videos)
    assert result.mean == pytest.approx(2 / 6)
    assert (result.mcnemar.b, result.mcnemar.c, result.mcnemar.p) == (3, 1, 0.625)
    # The videos' mean changes are 1/2, 1/2 and 0.
    assert (result.low, result.high) == (0.0, 0.5)
    mcnemar_json = json.loads(json.dumps(result.as_json()))["mcnemar"]
    assert mcnemar_json == {"b": 3, "c": 1, "p": 0.625, "exact": True}
    # Task x changes by 1 and 0 (mean 1/2), task y by 1, 0, -1 and 1 (mean 1/4).
    tasks = ["x", "x", "y", "y", "y", "y"]
    assert paired_difference(first, second, videos, tasks).mean == pytest.approx(0.375)


@settings(max_examples=25)
@given(
    st.lists(
        st.tuples(st.booleans(), st.booleans(), st.sampled_from("xyz"), st.sampled_from("uvw")),
        min_size=1,
        max_size=30,
    ),
    st.randoms(),
)
def test_results_depend_on_the_seed_but_not_on_the_order(rows, random):
    def results(rows):
        first, second, tasks, groups = zip(*rows, strict=True)
        options = {"resamples": 200, "seed": 5}
        return (
            task_accuracies(first, tasks, groups, **options),
            paired_difference(first, second, groups, tasks, **options),
        )

    mixed = list(rows)
    random.shuffle(mixed)
    assert results(rows) == results(mixed)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: bootstrap_interval({}), "at least one value"),
        (lambda: bootstrap_interval({"a": [float("nan")], "b": [1]}), "all of them finite"),
        (lambda: bootstrap_interval({"a": [1]}, level=1.0), r"level 1\.0"),
        (lambda: bootstrap_interval({"a": [1]}, resamples=10), "resamples 10"),
        (lambda: task_accuracies([1, 0], ["a"]), "2 values, 2 groups, 1 tasks"),
        (lambda: paired_difference([1], [0], ["u", "v"]), "1 values, 2 groups"),
    ],
)
def test_invalid_input_is_refused(call, text):
    with pytest.raises(DataError, match=text):
        call()


def test_intervals_import_no_torch():
    code = "import sys, modulate.evaluation.intervals; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_resamples_drawn_in_parts_are_those_drawn_at_once(monkeypatch):
    values = {f"v{index}": [index % 2, index % 3 == 0, 1] for index in range(7)}
    whole = bootstrap_interval(values, resamples=500, seed=3)
    for most in (7 * 64, 7 * 500, 3):  # eight parts, one part, and one resample at a time
        monkeypatch.setattr(intervals, "_MOST_WEIGHTS", most)
        drawn = intervals._resampled_means(np.ones((7, 1)), np.ones((7, 1)), 500, 3)
        assert drawn.shape == (500, 1)
        assert bootstrap_interval(values, resamples=500, seed=3) == whole


def test_a_result_says_how_it_was_drawn():
    options = {"level": 0.9, "resamples": 300, "seed": 7}
    accuracies = task_accuracies([1, 0, 1, 1], [*"aabb"], [*"vwvw"], **options)
    interval = bootstrap_interval({"v": [1, 0], "w": [1]}, **options)
    difference = paired_difference([1, 0], [0, 0], ["v", "w"], **options)
    for result, n in ((accuracies, 4), (interval, 3), (difference, 2)):
        assert (result.level, result.resamples, result.seed) == (0.9, 300, 7)
        assert (result.n, result.groups) == (n, 2)


def test_a_hundred_resamples_are_enough_and_fewer_are_not():
    assert bootstrap_interval({"v": [1], "w": [0]}, resamples=100).resamples == 100
    with pytest.raises(DataError, match="resamples 99"):
        bootstrap_interval({"v": [1], "w": [0]}, resamples=99)


@pytest.mark.parametrize("level", [0.0, 1.0, -0.5, 1.5])
def test_a_level_lies_between_none_and_all(level):
    with pytest.raises(DataError, match=f"got level {level}"):
        bootstrap_interval({"v": [1], "w": [0]}, level=level)


@pytest.mark.parametrize("correct", [0, 1])
def test_a_resample_that_lacks_a_task_has_the_mean_of_the_others(correct):
    # About a third of the resamples have no sample of task b.
    result = task_accuracies([correct] * 6, [*"aaaaab"], [*"uvwxyz"], resamples=300)
    assert (result.overall, result.low, result.high) == (correct, correct, correct)

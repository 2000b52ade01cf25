"""Figures of a report, counted by hand."""

from dataclasses import replace

import pytest

from modulate.report.results import compare_groups, count_coverage
from modulate.report.runs import group_runs
from tests.report.helpers import (
    EASY,
    HARD,
    SIGNAL,
    predictions,
    results_of_first,
    write_run,
    write_text_run,
)


def test_counts_are_exact_and_tests_are_adjusted_over_the_tasks(three_runs):
    results = results_of_first(three_runs)
    easy = results.main.tasks[EASY]
    hard = results.main.tasks[HARD]
    assert (easy.correct, easy.n, hard.correct, hard.n) == (15, 16, 12, 12)
    assert results.main.overall.accuracy == pytest.approx((15 / 16 + 1) / 2)
    assert easy.chance == 0.25 and hard.low == hard.high == 1.0
    none = next(found for found in results.controls if found.second == "none")
    easy_test = none.tasks[EASY]
    hard_test = none.tasks[HARD]
    assert (easy_test.first_only, easy_test.second_only, easy_test.p) == (11, 0, 2 / 2**11)
    assert (hard_test.p, hard_test.p_holm, easy_test.p_holm) == (2 / 2**9, 2 / 2**9, 4 / 2**11)
    assert hard_test.p_grouped == 2 / 2**5  # nine changed questions of five videos


def test_a_signal_run_is_compared_with_its_companions(three_runs):
    (_, against_lora), (_, against_blank) = results_of_first(three_runs).companions
    assert against_lora.tasks[EASY].difference == pytest.approx(7 / 16)
    assert against_lora.overall.difference == pytest.approx((7 / 16 + 1) / 2)
    easy = against_blank.tasks[EASY]
    assert (easy.first_only, easy.second_only) == (10, 0)


def test_different_questions_are_not_paired(tmp_path, three_runs):
    digits = {"signal": {EASY: "1" * 10, HARD: "1" * 12}}
    fewer = write_run(tmp_path, "fewer-0", digits, "encoder.name=coord_pe")
    first, second = group_runs([three_runs[0], fewer])
    found = compare_groups(first, "signal", second, "signal", "x")
    assert found.overall is None and found.why_not == "different questions, so not paired"


def test_runs_without_a_shared_seed_are_not_paired(tmp_path, three_runs):
    other_seed = write_run(tmp_path, "ours-5", SIGNAL, "encoder.name=coord_pe", seed=5)
    first, second = group_runs([three_runs[0], other_seed])
    found = compare_groups(first, "signal", second, "signal", "x")
    assert found.overall is None and found.why_not == "no shared seed: 0 and 5"


def test_coverage_counts_answers_that_the_signal_reached(three_runs):
    three_runs[0].records["signal"][:] = [
        *predictions("signal", "1" * 6, EASY, active_steps=3),
        *predictions("signal", "1" * 12, HARD, active_steps=0),
    ]
    (group,) = group_runs(three_runs[:1])
    easy, hard = count_coverage(group)
    assert (easy.task, easy.with_signal, easy.samples, easy.steps) == (EASY, 6, 6, 18)
    assert (hard.task, hard.with_signal, hard.samples, hard.steps) == (HARD, 0, 12, 0)


TEXTS = {"signal": "1" * 12 + "0" * 8, "none": "1" * 4 + "0" * 8 + "-" * 8}


def test_free_text_is_scored_and_tested_by_its_main_metric(tmp_path):
    result = results_of_first([write_text_run(tmp_path, "words-0", TEXTS)])
    score = result.main.tasks[EASY]
    # "red cup" has one word of two in common with "the red plate", "cup" none.
    assert score.accuracy == pytest.approx((12 + 8 * 0.5) / 20)
    assert (score.correct, score.n, score.chance) == (12, 20, None)
    (none,) = result.controls
    test = none.tasks[EASY]
    assert test.difference == pytest.approx((12 + 4) / 20 - (4 + 4) / 20)
    assert (test.first_only, test.second_only, test.detectable) == (16, 0, None)
    assert 0 < test.p_grouped < 0.01 and test.p < test.p_grouped


def test_exact_match_as_main_metric_has_the_tests_of_accuracy(tmp_path):
    overrides = "evaluation.main_metric=exact_match"
    result = results_of_first([write_text_run(tmp_path, "words-0", TEXTS, overrides)])
    assert result.main.overall.accuracy == pytest.approx(12 / 20)
    (none,) = result.controls
    assert (none.overall.first_only, none.overall.p) == (8, 2 / 2**8)
    assert none.overall.detectable is not None


def test_runs_with_other_main_figures_are_not_compared(tmp_path, three_runs):
    words = write_text_run(tmp_path, "words-0", TEXTS)
    first, second = group_runs([three_runs[0], words])
    found = compare_groups(first, "signal", second, "signal", "words")
    assert found.overall is None and "other main figures" in found.why_not


def test_other_accepted_answers_are_another_question(tmp_path):
    first = write_text_run(tmp_path, "words-0", TEXTS)
    second = write_text_run(tmp_path, "words-1", TEXTS, "encoder.name=coord_pe")
    changed = [replace(record, answers=("a cup",)) for record in second.records["signal"]]
    second = replace(second, records={**second.records, "signal": changed})
    groups = group_runs([first, second])
    found = compare_groups(groups[0], "signal", groups[1], "signal", "other")
    assert found.why_not == "different questions, so not paired"

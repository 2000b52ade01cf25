"""Figures from predictions."""

import pytest

from modulate.errors import DataError
from modulate.evaluation.intervals import mcnemar_counts
from modulate.evaluation.metrics import compare, summarize
from modulate.evaluation.predictions import Prediction


def predictions(correct, condition="signal"):
    """Predictions of questions of two tasks on four videos."""
    tasks = ["b", "a", "b", "b", "a", "b"]
    return [
        Prediction(
            f"q{index}",
            tasks[index],
            f"v{index % 4}",
            condition,
            0,
            0 if ok else 1,
            ok,
            (1.0, 0.0),
            1,
        )
        for index, ok in enumerate(correct)
    ]


def test_overall_is_the_unweighted_mean_over_tasks_which_are_sorted():
    figures = summarize(predictions([True, True, False, False, False, True]), 200, 3)
    assert list(figures["tasks"]) == ["a", "b"] and figures["n"] == 6
    counts = {name: (task["accuracy"], task["n"]) for name, task in figures["tasks"].items()}
    assert counts == {"a": (0.5, 2), "b": (0.5, 4)}
    figures = summarize(predictions([True, True, False, False, True, True]), 200, 3)
    assert figures["overall"] == 0.75
    low, high = figures["interval"]
    assert low <= figures["overall"] <= high
    for task in figures["tasks"].values():
        low, high = task["interval"]
        assert low <= task["accuracy"] <= high


def test_conditions_are_compared_sample_by_sample_whatever_their_order():
    first = predictions([True, True, True, True, False, True])
    second = predictions([True, False, False, True, True, False], "blank")
    figures = compare(first, second[::-1], 200, 3)
    assert figures["difference"] == pytest.approx((0.0 + 0.5) / 2) and figures["n"] == 6
    assert figures["mcnemar"] == mcnemar_counts(3, 1).as_json()
    by_task = {
        name: (task["difference"], task["n"], task["mcnemar"]["b"], task["mcnemar"]["c"])
        for name, task in figures["tasks"].items()
    }
    assert by_task == {"a": (0.0, 2, 1, 1), "b": (0.5, 4, 2, 0)}
    assert list(by_task) == ["a", "b"]
    low, high = figures["interval"]
    assert low <= figures["difference"] <= high
    assert compare(second, first, 200, 3)["difference"] == -figures["difference"]


def texts(scores, condition="signal"):
    """Answers in text on three videos; 1 is an exact match."""
    return [
        Prediction(
            f"q{index}",
            "a",
            f"v{index % 3}",
            condition,
            None,
            None,
            score == 1,
            (),
            1,
            text="x",
            answers=("y",),
            token_f1=score,
            bleu=score / 2,
            rouge_l=1.0,
        )
        for index, score in enumerate(scores)
    ]


def test_answers_in_text_have_figures_of_every_score_and_a_main_one():
    first = texts([1.0, 0.5, 0.5, 1.0, 0.0, 0.0])
    second = texts([0.5, 0.5, 0.0, 0.5, 0.0, 0.0], "blank")
    figures = summarize(first, 200, 3, "token_f1")
    assert figures["overall"] == figures["tasks"]["a"]["accuracy"] == 0.5
    assert {name: score["overall"] for name, score in figures["scores"].items()} == {
        "exact_match": pytest.approx(2 / 6),
        "token_f1": 0.5,
        "bleu": 0.25,
        "rouge_l": 1.0,
    }
    compared = compare(first, second, 200, 3, "token_f1")
    assert compared["difference"] == pytest.approx(1.5 / 6)
    assert compared["mcnemar"] == mcnemar_counts(2, 0).as_json()
    # Of three videos one is unchanged, and two changed to the same side: 2 of 4 patterns.
    assert compared["p_permutation"] == 0.5 == compared["scores"]["token_f1"]["p_permutation"]
    assert compared["scores"]["bleu"]["difference"] == pytest.approx(0.75 / 6)
    assert compared["scores"]["rouge_l"]["p_permutation"] == 1.0
    assert "scores" not in summarize(predictions([True] * 6), 200, 3)


def test_exact_match_as_main_metric_is_an_accuracy():
    first = texts([1.0, 0.5, 0.5, 1.0, 0.0, 0.0])
    figures = summarize(first, 200, 3, "exact_match")
    assert figures["overall"] == pytest.approx(2 / 6)
    assert "p_permutation" not in compare(first, first, 200, 3, "exact_match")


def test_too_few_resamples_are_refused():
    some = predictions([True] * 6)
    with pytest.raises(DataError, match="resamples 99"):
        summarize(some, 99, 3)
    with pytest.raises(DataError, match="resamples 99"):
        compare(some, some, 99, 3)


def test_intervals_depend_on_the_seed_alone():
    def many(condition, correct):
        return [
            Prediction(
                f"q{index}",
                "a",
                f"v{index % 9}",
                condition,
                0,
                1 - correct(index),
                correct(index),
                (1.0,),
                1,
            )
            for index in range(81)
        ]

    signal = many("signal", lambda i: i % 9 < i // 9)
    blank = many("blank", lambda i: False)
    for figures in (
        lambda seed: summarize(signal, 100, seed),
        lambda seed: compare(signal, blank, 100, seed),
    ):
        assert figures(3) == figures(3)
        assert len({tuple(figures(seed)["interval"]) for seed in range(6)}) > 1

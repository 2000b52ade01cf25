"""From predictions to figures."""

import re

import pytest

from modulate.errors import DataError, MissingFileError
from modulate.evaluation.intervals import mcnemar_counts
from modulate.evaluation.metrics import compare, summarize
from modulate.evaluation.predictions import Prediction, as_lines, read_predictions


def made(right, condition="signal"):
    """Answers to questions of two tasks on four videos, right as told."""
    tasks = ["b", "a", "b", "b", "a", "b"]
    return [
        Prediction(f"q{i}", tasks[i], f"v{i % 4}", condition, 0, 0 if ok else 1, ok, (1.0, 0.0), 1)
        for i, ok in enumerate(right)
    ]


def test_overall_is_the_unweighted_mean_over_tasks_which_are_in_order():
    found = summarize(made([True, True, False, False, False, True]), 200, 3)
    assert list(found["tasks"]) == ["a", "b"] and found["n"] == 6
    assert (
        found["tasks"]["a"]["accuracy"],
        found["tasks"]["a"]["n"],
        found["tasks"]["b"]["accuracy"],
        found["tasks"]["b"]["n"],
    ) == (0.5, 2, 0.5, 4)
    found = summarize(made([True, True, False, False, True, True]), 200, 3)
    assert found["overall"] == 0.75
    for part in (found, *found["tasks"].values()):
        low, high = part["interval"]
        assert low <= part.get("overall", part.get("accuracy")) <= high
    with pytest.raises(DataError, match="resamples 99"):
        summarize(made([True] * 6), 99, 3)


def test_conditions_are_compared_sample_by_sample_whatever_their_order():
    first = made([True, True, True, True, False, True])
    second = made([True, False, False, True, True, False], "blank")
    found = compare(first, second[::-1], 200, 3)
    assert found["difference"] == pytest.approx((0.0 + 0.5) / 2) and found["n"] == 6
    assert found["mcnemar"] == mcnemar_counts(3, 1).as_json()
    assert list(found["tasks"]) == ["a", "b"]
    a = found["tasks"]["a"]
    b = found["tasks"]["b"]
    assert (a["difference"], a["n"], a["mcnemar"]["b"], a["mcnemar"]["c"]) == (0.0, 2, 1, 1)
    assert (b["difference"], b["n"], b["mcnemar"]["b"], b["mcnemar"]["c"]) == (0.5, 4, 2, 0)
    low, high = found["interval"]
    assert low <= found["difference"] <= high
    assert compare(second, first, 200, 3)["difference"] == -found["difference"]
    with pytest.raises(DataError, match="resamples 99"):
        compare(first, second, 99, 3)


def test_predictions_are_read_by_condition_in_the_file_s_order(tmp_path):
    records = [*made([True, False, True]), *made([False] * 3, "blank")]
    (tmp_path / "predictions.jsonl").write_text(as_lines(records), encoding="utf-8")
    found = read_predictions(tmp_path / "predictions.jsonl")
    assert (
        list(found) == ["signal", "blank"]
        and [[r.id for r in of] for of in found.values()] == [["q0", "q1", "q2"]] * 2
    )


def test_what_is_no_prediction_is_named_by_line(tmp_path):
    path = tmp_path / "predictions.jsonl"
    with pytest.raises(MissingFileError, match=re.escape(f"`modulate eval {tmp_path}`")):
        read_predictions(path)
    path.write_text(as_lines(made([True, True])) + '{"id": "x"}\n')
    with pytest.raises(
        DataError, match=r"predictions\.jsonl, line 3: invalid prediction: task: Field required, got"
    ):
        read_predictions(path)


def test_intervals_are_drawn_by_the_seed():
    many = [
        Prediction(f"q{i}", "a", f"v{i % 9}", "signal", 0, 0, i % 9 < i // 9, (1.0,), 1)
        for i in range(81)
    ]
    none = [
        Prediction(f"q{i}", "a", f"v{i % 9}", "blank", 0, 1, False, (1.0,), 1) for i in range(81)
    ]
    for figures in (
        lambda seed: summarize(many, 100, seed),
        lambda seed: compare(many, none, 100, seed),
    ):
        assert (
            figures(3) == figures(3)
            and len({tuple(figures(seed)["interval"]) for seed in range(6)}) > 1
        )

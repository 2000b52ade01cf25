"""Predictions of finished conditions: used by the same evaluation only, and never when damaged."""

from dataclasses import replace

import pytest

from modulate.evaluation.finished_conditions import FinishedConditions
from modulate.evaluation.predictions import Prediction

RECORDS = [
    Prediction("a\u2028b", "task", "v1", "signal", 2, 1, False, (0.5, -1.25, 3.0), 4),
    Prediction("é", "task", "v2", "signal", 0, None, False, (), 0, "DataError: too\nlong"),
]
IDS = [record.id for record in RECORDS]
INPUTS = {"recipe": 1, "weights": 2}


def test_predictions_are_read_back_whatever_the_order_of_the_inputs(tmp_path):
    finished = FinishedConditions(tmp_path / "evaluation", "test", INPUTS)
    assert finished.read("signal", IDS) is None
    finished.write("signal", RECORDS)
    reordered = dict(reversed(INPUTS.items()))
    again = FinishedConditions(tmp_path / "evaluation", "test", reordered)
    assert again.read("signal", IDS) == RECORDS and again.read("none", IDS) is None


@pytest.mark.parametrize(("split", "inputs"), [("val", INPUTS), ("test", INPUTS | {"weights": 3})])
def test_predictions_of_another_evaluation_are_ignored(split, inputs, tmp_path):
    FinishedConditions(tmp_path, "test", INPUTS).write("signal", RECORDS)
    other = FinishedConditions(tmp_path, split, inputs)
    assert other.read("signal", IDS) is None
    assert other.key != FinishedConditions(tmp_path, "test", INPUTS).key


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text.replace("-1.25", "-1.26"),
        lambda text: text[:-5],
        lambda text: text + "x",
        lambda text: "",
        lambda text: "{}\n",
        lambda text: "[]\n",
        lambda text: text.replace('"sha256"', '"other"'),
    ],
)
def test_damaged_predictions_are_reported_and_not_used(tmp_path, damage):
    finished = FinishedConditions(tmp_path, "test", 1)
    finished.write("signal", RECORDS)
    [path] = tmp_path.iterdir()
    path.write_text(damage(path.read_text(encoding="utf-8")), encoding="utf-8")
    message = r"The predictions in .* are damaged \(.*\); the condition 'signal' is evaluated again"
    with pytest.warns(UserWarning, match=message):
        assert finished.read("signal", IDS) is None
    assert path.exists()


def test_clearing_removes_one_split_and_then_the_empty_folder(tmp_path):
    folder = tmp_path / "evaluation"
    test = FinishedConditions(folder, "test", 1)
    val = FinishedConditions(folder, "val", 2)
    for condition in ("signal", "my own/input"):
        records = [replace(record, condition=condition) for record in RECORDS]
        test.write(condition, records)
        val.write(condition, records)
    assert len(list(folder.iterdir())) == 4
    FinishedConditions(folder, "test", None).clear()
    assert test.read("signal", IDS) is None and val.read("my own/input", IDS) == records
    val.clear()
    assert not folder.exists()
    val.clear()  # nothing is left to clear

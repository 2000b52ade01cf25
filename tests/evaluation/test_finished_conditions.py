"""Answers of conditions that are finished: kept for the same evaluation alone, damage noticed."""

from dataclasses import replace

import pytest

from modulate.evaluation.finished_conditions import FinishedConditions
from modulate.evaluation.predictions import Prediction, as_lines, from_lines

RECORDS = [
    Prediction("a\u2028b", "task", "v1", "signal", 2, 1, False, (0.5, -1.25, 3.0), 4),
    Prediction("é", "task", "v2", "signal", 0, None, False, (), 0, "DataError: too\nlong"),
]

IDS = [record.id for record in RECORDS]


def test_lines_give_the_predictions_back_whatever_their_texts_hold():
    lines = as_lines(RECORDS)
    assert (
        from_lines(lines) == RECORDS
        and lines.count("\n") == 2
        and lines.endswith("\n")
        and "é" in lines
    )
    assert as_lines([]) == "" and from_lines("") == []


def test_what_is_kept_is_found_by_the_same_evaluation_alone(tmp_path):
    kept = FinishedConditions(tmp_path / "evaluation", "test", {"recipe": 1, "weights": 2})
    assert kept.read("signal", IDS) is None
    kept.write("signal", RECORDS)
    assert (
        FinishedConditions(tmp_path / "evaluation", "test", {"weights": 2, "recipe": 1}).read(
            "signal", IDS
        )
        == RECORDS
    )
    assert kept.read("none", IDS) is None
    for split, made_of in (
        ("val", {"recipe": 1, "weights": 2}),
        ("test", {"recipe": 1, "weights": 3}),
    ):
        assert (
            FinishedConditions(tmp_path / "evaluation", split, made_of).read("signal", IDS) is None
        )
    assert FinishedConditions(tmp_path, "test", 1).key != FinishedConditions(tmp_path, "val", 1).key


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t.replace("-1.25", "-1.26"),
        lambda t: t[:-5],
        lambda t: t + "x",
        lambda t: "",
        lambda t: "{}\n",
        lambda t: "[]\n",
        lambda t: t.replace('"sha256"', '"other"'),
    ],
)
def test_damaged_answers_are_said_and_not_used(tmp_path, change):
    kept = FinishedConditions(tmp_path, "test", 1)
    kept.write("signal", RECORDS)
    [path] = tmp_path.iterdir()
    path.write_text(change(path.read_text(encoding="utf-8")), encoding="utf-8")
    with pytest.warns(
        UserWarning,
        match=r"The predictions in .* are damaged \(.*\); the condition 'signal' is evaluated again",
    ):
        assert kept.read("signal", IDS) is None
    assert path.exists()


def test_a_split_s_answers_are_removed_and_the_folder_once_it_is_empty(tmp_path):
    folder = tmp_path / "evaluation"
    first = FinishedConditions(folder, "test", 1)
    second = FinishedConditions(folder, "val", 2)
    for condition in ("signal", "my own/input"):
        records = [replace(record, condition=condition) for record in RECORDS]
        first.write(condition, records)
        second.write(condition, records)
    assert len(list(folder.iterdir())) == 4
    FinishedConditions(folder, "test", None).clear()
    assert first.read("signal", IDS) is None and second.read("my own/input", IDS) == records
    second.clear()
    assert not folder.exists()
    second.clear()

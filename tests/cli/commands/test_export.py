"""`modulate export`."""

import csv
import json

import pytest

from modulate.evaluation.export import PREDICTION_COLUMNS, QUESTION_COLUMNS, RUN_COLUMNS


def test_all_answers_of_a_run_are_written(work, modulate, tmp_path):
    folder, _, _ = work
    (run,) = (folder / "runs").iterdir()
    code, out, _ = modulate("export", run, "-o", tmp_path / "answers.csv", "--questions")
    assert code == 0
    with (tmp_path / "answers.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    answers = (run / "predictions.jsonl").read_text().splitlines()
    assert len(rows) == len(answers) and f"{len(answers)} rows of 1 runs" in out
    assert list(rows[0]) == [*RUN_COLUMNS, *PREDICTION_COLUMNS, *QUESTION_COLUMNS]
    first = json.loads(answers[0])
    assert rows[0]["id"] == first["id"] and json.loads(rows[0]["logits"]) == first["logits"]
    options = json.loads(rows[0]["options"])
    assert rows[0]["right_answer"] == options[first["answer"]]


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_the_format_may_be_named(work, modulate, tmp_path, form):
    folder, _, _ = work
    (run,) = (folder / "runs").iterdir()
    args = ["export", run, "--format", form, "-o", tmp_path / "answers", "--condition", "blank"]
    assert modulate(*args)[0] == 0 and (tmp_path / "answers").stat().st_size


def test_an_unknown_format_is_refused(modulate, tmp_path):
    code, _, err = modulate("export", tmp_path, "-o", tmp_path / "answers.xlsx")
    assert code == 1 and "unknown format 'xlsx'" in err and "Known: csv, jsonl, parquet" in err


def test_the_help_names_every_column(modulate):
    _, out, _ = modulate("export", "--help")
    text = " ".join(out.split())
    for column in (*RUN_COLUMNS, *PREDICTION_COLUMNS, *QUESTION_COLUMNS):
        assert column in text

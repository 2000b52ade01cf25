"""Predictions as one table: rows, questions in words, and the three formats."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet
import pytest

from modulate.config.recipe import load_recipe
from modulate.errors import DataError, MissingFileError
from modulate.evaluation.export import (
    PREDICTION_COLUMNS,
    QUESTION_COLUMNS,
    RUN_COLUMNS,
    export_rows,
    write_rows,
)
from modulate.evaluation.predictions import Prediction, as_lines
from modulate.interfaces.sample import Sample, SampleClip
from modulate.runs.run import Run

FIRST = Prediction("q1", "t", "v1", "signal", 1, 0, False, (2.5, -1.0), 3)
FAILED = replace(FIRST, id="q2", prediction=None, logits=(), active_steps=0, error="no video")
BLANK = [
    replace(FIRST, condition="blank", prediction=1, correct=True),
    replace(FAILED, condition="blank"),
]
CLIPS = (SampleClip(Path("/videos/a.mp4"), (0.0, 1.0)),)
SAMPLES = [
    Sample("q1", "t", CLIPS, "Which?", ("cup", "knife"), 1, extra={"source": "q.csv, line 2"}),
    Sample("q2", "t", CLIPS, "Which?", ("cup", "knife"), 0),
]


@pytest.fixture
def run(tmp_path):
    run = Run.create(load_recipe("gazeqwen_tiny", ["name=a", "seed=3"]), tmp_path)
    run.predictions("test").write_text(as_lines([FIRST, FAILED, *BLANK]))
    return run


def test_every_answer_is_a_row(run):
    rows = export_rows(run)
    assert [(row["id"], row["condition"]) for row in rows] == [
        ("q1", "signal"),
        ("q2", "signal"),
        ("q1", "blank"),
        ("q2", "blank"),
    ]
    assert list(rows[0]) == [*RUN_COLUMNS, *PREDICTION_COLUMNS]
    head = {name: rows[0][name] for name in RUN_COLUMNS}
    assert head == {
        "run": str(run.folder),
        "recipe": "a",
        "seed": 3,
        "trained_with": "signal",
        "split": "test",
    }
    assert rows[1]["error"] == "no video" and rows[1]["prediction"] is None


def test_one_condition_only(run):
    assert {row["condition"] for row in export_rows(run, conditions=["blank"])} == {"blank"}
    with pytest.raises(DataError, match=r"has no answers under 'blnk'. Did you mean 'blank'"):
        export_rows(run, conditions=["blnk"])
    with pytest.raises(MissingFileError, match="not evaluated on that split"):
        export_rows(run, "val")


def test_questions_in_words(run):
    rows = export_rows(run, samples=SAMPLES)
    assert list(rows[0]) == [*RUN_COLUMNS, *PREDICTION_COLUMNS, *QUESTION_COLUMNS]
    assert {name: rows[0][name] for name in QUESTION_COLUMNS} == {
        "question": "Which?",
        "options": ["cup", "knife"],
        "right_answer": "knife",
        "given_answer": "cup",
        "files": ["a.mp4"],
        "source": "q.csv, line 2",
    }
    assert rows[1]["given_answer"] is None
    with pytest.raises(DataError, match="answers q2, which the data set does not ask"):
        export_rows(run, samples=SAMPLES[:1])


def test_the_formats_hold_the_same(run, tmp_path):
    rows = export_rows(run, samples=SAMPLES)
    for form in ("jsonl", "csv", "parquet"):
        write_rows(rows, tmp_path / f"out.{form}", form)
    lines = (tmp_path / "out.jsonl").read_text().splitlines()
    expected = [json.loads(json.dumps(row)) for row in rows]
    assert [json.loads(line) for line in lines] == expected
    assert pyarrow.parquet.read_table(tmp_path / "out.parquet").to_pylist() == expected
    with (tmp_path / "out.csv").open(newline="") as file:
        first, second, *_ = csv.DictReader(file)
    assert json.loads(first["logits"]) == [2.5, -1.0] and first["correct"] == "false"
    assert second["prediction"] == "" and second["error"] == "no video"
    assert list(first) == list(rows[0])


def test_answers_in_text(run, tmp_path):
    text = Prediction(
        "q3",
        "t",
        "v1",
        "signal",
        None,
        None,
        False,
        (),
        1,
        text="a cup",
        answers=("red cup", "cup"),
        token_f1=0.5,
        bleu=0.1,
        rouge_l=0.5,
    )
    run.predictions("val").write_text(as_lines([text]))
    sample = Sample("q3", "t", CLIPS, "What?", answers=("red cup", "cup"))
    (row,) = export_rows(run, "val", samples=[sample])
    assert (row["given_answer"], row["right_answer"]) == ("a cup", "red cup")
    assert row["answers"] == ("red cup", "cup") and row["token_f1"] == 0.5
    write_rows([row], tmp_path / "out.parquet", "parquet")
    (read,) = pyarrow.parquet.read_table(tmp_path / "out.parquet").to_pylist()
    assert read["answers"] == ["red cup", "cup"] and read["prediction"] is None

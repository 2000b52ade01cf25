"""Predictions: written, read back, and scored."""

import json
import re
from dataclasses import replace

import pytest

from modulate.errors import DataError, MissingFileError
from modulate.evaluation.predictions import (
    Prediction,
    apply_failed_rule,
    as_lines,
    from_lines,
    read_predictions,
)

RECORDS = [
    # Line separators other than the line feed must not end a line.
    Prediction("a\u2028b", "task", "v1", "signal", 2, 1, False, (0.5, -1.25, 3.0), 4),
    Prediction("é", "task", "v2", "signal", 0, None, False, (), 0, "DataError: too\nlong"),
]


def predictions(condition, *ids):
    return [Prediction(id_, "task", "v", condition, 0, 0, True, (1.0, 0.0), 1) for id_ in ids]


def test_lines_give_the_predictions_back_whatever_their_texts_hold():
    lines = as_lines(RECORDS)
    assert from_lines(lines) == RECORDS
    assert lines.count("\n") == 2 and lines.endswith("\n") and "é" in lines
    assert as_lines([]) == "" and from_lines("") == []


def test_numbers_that_are_not_finite_are_not_written():
    with pytest.raises(ValueError, match="JSON"):
        as_lines([Prediction("a", "t", "v", "signal", 0, 0, True, (float("nan"),), 1)])


def test_predictions_are_read_by_condition_in_the_order_of_the_file(tmp_path):
    path = tmp_path / "predictions.jsonl"
    records = [*predictions("signal", "b", "a"), *predictions("blank", "b", "a")]
    path.write_text(as_lines(records), encoding="utf-8")
    found = read_predictions(path)
    assert list(found) == ["signal", "blank"]
    assert [[record.id for record in answers] for answers in found.values()] == [["b", "a"]] * 2


def test_a_missing_file_names_the_command_that_writes_it(tmp_path):
    with pytest.raises(MissingFileError, match=re.escape(f"`modulate eval {tmp_path}`")):
        read_predictions(tmp_path / "predictions.jsonl")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"id": "x"}', r"line 3: invalid prediction: task: Field required, got"),
        ("{", r"line 3 is not valid JSON"),
        (as_lines(predictions("signal", "a")).strip(), r"line 3: a second answer to 'a' under"),
        (
            as_lines(RECORDS[:1]).strip().replace('"correct": false', '"correct": true'),
            r"line 3: invalid prediction: .*correct is True, although prediction is 1 and answer 2",
        ),
        (
            as_lines(RECORDS[:1]).strip().replace('"error": null', '"error": "DataError"'),
            r"line 3: invalid prediction: .*needs either a prediction or an error",
        ),
    ],
)
def test_an_invalid_line_is_named(line, message, tmp_path):
    path = tmp_path / "predictions.jsonl"
    path.write_text(as_lines(predictions("signal", "a", "b")) + line + "\n", encoding="utf-8")
    with pytest.raises(DataError, match=rf"predictions\.jsonl, {message}"):
        read_predictions(path)


def test_an_empty_file_is_refused(tmp_path):
    path = tmp_path / "predictions.jsonl"
    path.write_text("")
    with pytest.raises(DataError, match="holds no predictions"):
        read_predictions(path)


def test_a_failed_sample_counts_as_wrong_or_is_left_out_of_every_condition():
    failed = Prediction("b", "task", "v", "signal", 0, None, False, (), 0, "DataError: lost")
    records = {
        "signal": [*predictions("signal", "a"), failed],
        "blank": predictions("blank", "a", "b"),
    }
    assert apply_failed_rule(records, "wrong") == records
    scored = apply_failed_rule(records, "left_out")
    assert {name: [record.id for record in answers] for name, answers in scored.items()} == {
        "signal": ["a"],
        "blank": ["a"],
    }


TEXT = Prediction(
    "a",
    "task",
    "v1",
    "signal",
    None,
    None,
    False,
    (),
    4,
    text="a réd cup",
    answers=("red cup",),
    token_f1=0.5,
    bleu=0.25,
    rouge_l=0.75,
)


def test_answers_in_text_are_written_and_read_with_their_scores():
    failed = replace(TEXT, id="b", text=None, error="DataError: no", token_f1=0.0, bleu=0.0)
    assert from_lines(as_lines([TEXT, failed])) == [TEXT, failed]
    assert [TEXT.score(name) for name in ("exact_match", "token_f1", "bleu", "rouge_l")] == [
        0.0,
        0.5,
        0.25,
        0.75,
    ]
    assert replace(TEXT, correct=True).score("exact_match") == 1.0
    with pytest.raises(DataError, match="has no bleu: it is not in text"):
        RECORDS[0].score("bleu")


def test_lines_of_options_have_no_keys_of_text():
    assert set(json.loads(as_lines(RECORDS[:1]))) == {
        "id",
        "task",
        "group",
        "condition",
        "answer",
        "prediction",
        "correct",
        "logits",
        "active_steps",
        "error",
    }


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"answers": ()}, "has a text, but no accepted answers"),
        ({"answer": 1}, "has accepted answers, and options too"),
        ({"logits": (1.0,)}, "has accepted answers, and options too"),
        ({"bleu": None}, "not all scores of a text"),
        ({"text": None}, "needs either a prediction or an error"),
        ({"text": None, "error": "no", "correct": True}, "there is no text"),
        ({"token_f1": 1.5}, "token_f1: .* less than or equal to"),
    ],
)
def test_an_inconsistent_answer_in_text_is_refused(changes, message):
    with pytest.raises(DataError, match=message):
        from_lines(as_lines([replace(TEXT, **changes)]) or "{}\n")


def test_a_choice_without_a_right_answer_is_refused():
    with pytest.raises(DataError, match="has a prediction, but no right answer"):
        from_lines(as_lines([replace(RECORDS[0], answer=None)]))

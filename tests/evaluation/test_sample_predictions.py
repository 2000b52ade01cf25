"""Predictions made of a host's answers, and of errors."""

import math
from dataclasses import replace

import pytest

from modulate.errors import DataError
from modulate.evaluation import sample_predictions
from modulate.evaluation.predictions import as_lines, from_lines
from tests.samples import one_clip_sample

FREE = replace(one_clip_sample("a"), options=(), answer=None, answers=("the red plate", "plate"))


def written(record):
    """The record as it is read back from a file, which validates it."""
    (found,) = from_lines(as_lines([record]))
    return found


def test_the_option_with_the_largest_score_is_chosen():
    record = written(sample_predictions.choice(one_clip_sample("a"), "none", [1.0, 2.00004], 3))
    assert (record.prediction, record.answer, record.correct) == (1, 0, False)
    assert record.logits == (1.0, 2.0) and record.active_steps == 3
    assert record.condition == "none"


@pytest.mark.parametrize("scores", [[math.nan, 1.0], [math.inf, 1.0], [1.0, -math.inf]])
def test_an_answer_whose_scores_are_not_finite_has_failed(scores):
    record = written(sample_predictions.choice(one_clip_sample("a"), "signal", scores, 3))
    assert record.prediction is None and not record.correct and record.logits == ()
    assert record.error.startswith("DataError: the host's scores of the options are not all finite")


def test_a_question_whose_right_option_is_not_known_has_failed():
    unknown = replace(one_clip_sample("a"), answer=None)
    record = written(sample_predictions.choice(unknown, "signal", [1.0, 0.0], 3))
    assert record.answer is None and record.prediction is None and not record.correct
    assert "right option is not known" in record.error


def test_a_generated_text_is_scored_against_all_accepted_answers():
    record = written(sample_predictions.text(FREE, "signal", "A plate.", 2))
    assert record.correct and record.token_f1 == 1.0 and record.answers == FREE.answers
    assert record.answer is None and record.prediction is None
    other = written(sample_predictions.text(FREE, "signal", "red cup", 2))
    assert not other.correct and other.token_f1 == 0.5


def test_a_question_with_options_is_answered_in_text_by_the_right_one():
    record = written(sample_predictions.text(one_clip_sample("a"), "signal", "One", 2))
    assert record.correct and record.answers == ("one",)


def test_an_error_text_is_cut_and_can_be_written_as_utf_8():
    error = DataError("v\udcff.mp4 " + "x" * 20_000)
    record = sample_predictions.failure(one_clip_sample("a"), "signal", error)
    assert record.error.startswith("DataError: v\\udcff.mp4 ")
    assert len(record.error) < 10_100 and record.error.encode()


def test_a_failed_text_has_its_accepted_answers_and_no_score():
    record = written(sample_predictions.failure(FREE, "signal", DataError("lost"), "text"))
    assert record.text is None and record.answers == FREE.answers
    assert (record.token_f1, record.bleu, record.rouge_l, record.correct) == (0, 0, 0, False)
    without = replace(FREE, answers=())
    record = written(sample_predictions.failure(without, "signal", DataError("lost"), "text"))
    assert record.answers == () and record.score("token_f1") == 0.0

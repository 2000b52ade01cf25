"""Numbers of questions, and whether their answers are balanced."""

import sys
from pathlib import Path

import pytest

from modulate.checks.data_answers import check_answers
from modulate.evaluation import text_scores
from modulate.interfaces.inspection import Inspection
from modulate.interfaces.sample import Sample, SampleClip
from tests.checks.conftest import texts
from tests.checks.tables import STEPS, found

CLIP = (SampleClip(Path("a.mp4"), (0.0, 1.0)),)


def choice(number, answer, options=("cup", "knife")):
    return Sample(str(number), "t", CLIP, "?", options, answer)


def checked(samples, split="test"):
    inspection = Inspection(STEPS)
    check_answers(inspection, {split: samples})
    return inspection


def test_the_figures_of_a_task():
    samples = [choice(number, number % 2) for number in range(6)]
    samples += [choice(9, 2, ("a", "b", "cup")), Sample("t", "t", CLIP, "?", answers=("cup",))]
    inspection = checked(samples)
    assert inspection.figures["questions"]["t"]["test"] == {
        "number": 8,
        "files": 1,
        "free_text": 1,
        "options": {2: 6, 3: 1},
        "right_option": [3, 3, 1],
        "different_answers": 2,
        "commonest_answer": ["cup", 5],
        "chance": (6 / 2 + 1 / 3) / 7,
    }
    (table,) = inspection.tables
    assert table.rows == (("t", "test", "8", "1", "2, 3 and free text", "3 3 1", "cup (62 %)"),)
    assert any("1 of 8 questions have no options" in text for text in found(inspection, "warning"))


def test_a_position_that_is_right_too_often_is_a_warning():
    even = checked([choice(number, number % 2) for number in range(100)])
    assert found(even, "warning") == {}
    skewed = checked([choice(number, number % 5 == 0) for number in range(100)])
    (text,) = found(skewed, "warning")
    assert text.startswith("t, test: option 1 is right in 80 % of 100 questions; chance is 50 %.")
    few = checked([choice(number, 0) for number in range(5)])
    assert found(few, "warning") == {}, "five in a row happen"


def test_unknown_answers_and_many_options():
    many = tuple("abcdefghi")
    inspection = checked([choice(1, None), choice(2, 1, many)])
    assert list(found(inspection, "error")) == ["1 of 2 questions have no known answer."]
    assert any("more than 8 options" in text for text in found(inspection, "info"))


TWO_WORDS = "data.params.tasks=[past_scene_recall]"


def test_a_recipe_that_scores_its_answers_has_their_numbers_of_tokens(checked):
    report = checked("answer=likelihood", TWO_WORDS)
    assert report.ok, report.findings
    assert report.figures["tokens of an answer"] == "2.0 on average, 2 at most (options)"
    report = checked("answer=text", TWO_WORDS)
    assert report.ok, report.findings
    assert "3.0 on average, 3 at most" in report.figures["tokens of an answer"]
    assert "Costs are those of the prompts" in texts(report, "info")


@pytest.mark.parametrize("meta", [False, True])
def test_options_of_two_words_are_refused_as_words(checked, meta):
    report = checked("answer=word", TWO_WORDS, meta=meta)
    for split in ("train", "val", "test"):
        n = report.samples[split]
        message = f"{n} of {n} samples of the split {split} cannot be answered under `answer: word`"
        assert message in texts(report, "error")
    assert "is not one known token" in texts(report, "error")


def test_what_may_fail_is_a_warning(checked):
    report = checked("answer=word", TWO_WORDS, "evaluation.max_failed_share=1", meta=True)
    assert "cannot be answered under `answer: word`" in texts(report, "warning")
    assert "cannot be answered" not in texts(report, "error")


def test_options_that_begin_alike_are_refused_for_their_first_token(checked):
    report = checked("answer=likelihood", "likelihood=first", TWO_WORDS, meta=True)
    assert "begin with the same token" in texts(report, "error")


def test_texts_that_the_host_cannot_give_in_time_are_a_warning(checked):
    report = checked("answer=text", "evaluation.max_new_tokens=2", TWO_WORDS, meta=True)
    assert "longer than evaluation.max_new_tokens (2)" in texts(report, "warning")
    assert "raise it to 3" in texts(report, "warning")


def test_a_missing_library_of_text_scores_is_an_error(checked, monkeypatch):
    monkeypatch.setattr(text_scores, "_bleu", text_scores._bleu.__wrapped__)
    for name in [name for name in sys.modules if name.partition(".")[0] == "sacrebleu"]:
        monkeypatch.setitem(sys.modules, name, None)
    report = checked("answer=text", TWO_WORDS, meta=True)
    assert "pip install 'modulate[text]'" in texts(report, "error")

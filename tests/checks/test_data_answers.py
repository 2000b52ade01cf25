"""Numbers of questions, and whether their answers are balanced."""

from pathlib import Path

from modulate.checks.data_answers import check_answers
from modulate.interfaces.inspection import Inspection
from modulate.interfaces.sample import Sample, SampleClip
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

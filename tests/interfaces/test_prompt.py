"""modulate.interfaces.prompt."""

import pytest

from modulate.errors import DataError
from modulate.interfaces.prompt import LETTERS, TEMPLATES, fill_template, without_letters


def test_options_follow_the_question_each_after_its_letter():
    text = fill_template(TEMPLATES["letter"], "Which?", ("a cup", "a plate"))
    assert text == "Question: Which?\nOptions:\nA. a cup\nB. a plate\n\nThe best option is:"


def test_braces_in_questions_and_options_stay_as_they_are():
    text = fill_template(TEMPLATES["letter"], "Is it {options} or {question}?", ("{question}", "b"))
    assert "Question: Is it {options} or {question}?\n" in text
    assert "A. {question}\nB. b" in text


def test_more_options_than_letters_are_refused_only_where_they_are_shown():
    many = [str(number) for number in range(len(LETTERS) + 1)]
    with pytest.raises(DataError, match="9 options are offered; there are letters for 8"):
        fill_template(TEMPLATES["letter"], "Which?", many)
    assert fill_template(TEMPLATES["likelihood"], "Which?", many).endswith("The answer is:")


def test_letters_that_options_have_are_not_written_twice():
    expected = fill_template(TEMPLATES["letter"], "Which?", ("a cup", "a plate"))
    for options in (
        ("A. a cup", "B. a plate"),
        ("(A) a cup", "(B) a plate"),
        ("A: a cup", "B) a plate"),
    ):
        assert fill_template(TEMPLATES["letter"], "Which?", options) == expected
    # Not all of them, or not from A on: part of the text.
    for options in (("A. a cup", "a plate"), ("B. a cup", "C. a plate")):
        lines = f"A. {options[0]}\nB. {options[1]}"
        assert lines in fill_template(TEMPLATES["letter"], "Which?", options)
    with pytest.raises(DataError, match="must run from A in order"):
        fill_template(TEMPLATES["letter"], "Which?", ("B. a cup", "A. a plate"))
    # Not shown, so nothing to write.
    fill_template(TEMPLATES["word"], "Which?", ("B. a cup", "A. a plate"))


def test_a_template_may_hold_the_options_first():
    assert fill_template("{options}\n{question}", "Which?", ("x",)) == "A. x\nWhich?"


def test_letters_of_options_are_removed_only_where_all_have_them_in_order():
    assert without_letters(("A. a cup", "(B) a plate")) == (("a cup", "a plate"), True)
    for plain in (("A. a cup", "a plate"), ("a cup", "a plate"), ("B. b", "C. c")):
        assert without_letters(plain) == (plain, False)
    with pytest.raises(DataError, match="must run from A in order; got 'BA'"):
        without_letters(("B. a cup", "A. a plate"))

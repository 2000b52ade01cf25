"""modulate.inference.answer."""

import pytest

from modulate.errors import RecipeError
from modulate.inference.answer import WITHOUT, Answer


def test_each_way_without_the_signal_has_its_word():
    others = [Answer(condition, f"by {condition}") for condition in WITHOUT]
    answer = Answer("signal", "a plate").beside(others)
    assert answer.without_signal.text == "by none"
    assert answer.blank_signal.text == "by blank"
    assert answer.bare_host.text == "by host"
    assert list(answer.without) == ["none", "blank", "host"]


def test_an_answer_without_the_signal_is_its_own_comparison():
    answer = Answer("none", "a plate")
    assert answer.without_signal is answer


def test_a_comparison_that_was_not_asked_for_is_an_error_that_says_how():
    with pytest.raises(RecipeError, match=r"ask it with compare=\('host',\)"):
        _ = Answer("signal", "a plate").bare_host

"""modulate.inference.option_tokens, with the shipped host's tokenizer."""

import pytest

from modulate.errors import DataError
from modulate.inference.option_tokens import letter_ids, single_token_ids


def test_letters_are_those_of_the_options_or_at_least_four(tokenizer):
    assert tokenizer.convert_ids_to_tokens(letter_ids(tokenizer, 2)) == ["A", "B"]
    four = letter_ids(tokenizer, 2, at_least_four=True)
    assert tokenizer.convert_ids_to_tokens(four) == ["A", "B", "C", "D"]
    with pytest.raises(DataError, match="9 options are offered"):
        letter_ids(tokenizer, 9)


def test_words_must_be_one_known_token_each(tokenizer):
    ids = single_token_ids(tokenizer, ["plate", "bowl"])
    assert tokenizer.convert_ids_to_tokens(ids) == ["plate", "bowl"]
    for answer in ("zebra", "red plate"):
        with pytest.raises(DataError, match=f"the answer '{answer}' is not one known token"):
            single_token_ids(tokenizer, [answer])

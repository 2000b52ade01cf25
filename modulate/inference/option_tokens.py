"""Token ids of answers that are a single token each: options' letters, or words."""

from collections.abc import Sequence
from typing import Any

from modulate.errors import DataError
from modulate.interfaces.prompt import LETTERS


def letter_ids(tokenizer: Any, count: int, at_least_four: bool = False) -> list[int]:
    """Return the token ids of the letters of ``count`` options.

    ``at_least_four``: of A to D even for fewer options. Raises :class:`DataError` for more options
    than there are letters.
    """
    if count > len(LETTERS):
        raise DataError(f"{count} options are offered; there are letters for {len(LETTERS)}.")
    letters = LETTERS[: max(4, count) if at_least_four else count]
    return single_token_ids(tokenizer, letters)


def single_token_ids(tokenizer: Any, answers: Sequence[str]) -> list[int]:
    """Return the token id of each answer.

    Raises :class:`DataError` for an answer that is not a single known token.
    """
    ids = []
    for answer in answers:
        tokens = tokenizer.encode(answer, add_special_tokens=False)
        if len(tokens) != 1 or tokens[0] == tokenizer.unk_token_id:
            raise DataError(
                f"the answer {answer!r} is not one known token of the host's tokenizer (ids"
                f" {tokens}); offer options of one known word each, or score letters (`answer:"
                " letter`) or the likelihood of whole options (`answer: likelihood`)."
            )
        ids.append(int(tokens[0]))
    return ids

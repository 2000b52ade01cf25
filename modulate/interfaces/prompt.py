"""Templates of prompts: how a question and its options become the text of a user's turn.

Imports no torch.
"""

import re
import string
from collections.abc import Sequence
from typing import Literal

from modulate.errors import DataError, shown

AnswerForm = Literal["letter", "word", "likelihood", "text"]
"""What a host answers with: an option's letter, an option itself, or free text."""

LETTERS = "ABCDEFGH"
"""Letters of a question's options, in order."""

TEMPLATES: dict[AnswerForm, str] = {
    # The prompt of GazeQwen's code.
    "letter": "Question: {question}\nOptions:\n{options}\n\nThe best option is:",
    "word": "Question: {question}\nThe answer is:",
    "likelihood": "Question: {question}\nThe answer is:",
    "text": "{question}",
}
"""Default template of each form of answer."""


def fill_template(template: str, question: str, options: Sequence[str] = ()) -> str:
    """Return ``template`` with ``{question}`` and ``{options}`` filled in.

    The options are written one to a line, each after its letter; letters that all of them have
    already are not written twice. Raises :class:`DataError` for more options than there are
    letters, and for letters in another order, where the template shows them.
    """
    shows_options = "{options}" in template
    if shows_options and len(options) > len(LETTERS):
        raise DataError(
            f"{len(options)} options are offered; there are letters for {len(LETTERS)} at most."
        )
    plain, _ = without_letters(options) if shows_options else ((), False)
    lines = "\n".join(f"{letter}. {text}" for letter, text in zip(LETTERS, plain, strict=False))
    # Split at the placeholders before filling: a question may hold text in braces itself.
    before, found, after = template.partition("{question}")
    parts = [before, question if found else "", after]
    parts[0] = parts[0].replace("{options}", lines)
    parts[2] = parts[2].replace("{options}", lines)
    return "".join(parts)


_LETTER = re.compile(r"\s*\(?([A-Z])[.):]\s*")


def without_letters(options: Sequence[str]) -> tuple[tuple[str, ...], bool]:
    """Return the options without letters such as "A. cup", and whether they had them.

    Prompts add letters of their own. Letters count only if all options have them, from A on without
    a gap. Raises :class:`DataError` for all letters in another order, since an answer's letter
    would then be ambiguous.
    """
    matches = [_LETTER.match(option) for option in options]
    found = "".join(match[1] for match in matches if match)
    expected = string.ascii_uppercase[: len(options)]
    if len(found) < len(options):
        return tuple(options), False
    if found == expected:
        return tuple(
            option[match.end() :].strip()
            for option, match in zip(options, matches, strict=True)
            if match
        ), True
    if sorted(found) == list(expected):
        raise DataError(
            f"The options' letters must run from A in order; got {found!r} in"
            f" {shown(list(options), 300)}."
        )
    return tuple(options), False

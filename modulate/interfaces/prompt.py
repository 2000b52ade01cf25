"""Templates of prompts: how a question and its options become the text of a user's turn.

Imports no torch.
"""

from collections.abc import Sequence
from typing import Literal

from modulate.errors import DataError

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

    The options are written one to a line, each after its letter. Raises :class:`DataError` for more
    options than there are letters, where the template shows them.
    """
    shows_options = "{options}" in template
    if shows_options and len(options) > len(LETTERS):
        raise DataError(
            f"{len(options)} options are offered; there are letters for {len(LETTERS)} at most."
        )
    lines = "\n".join(f"{letter}. {text}" for letter, text in zip(LETTERS, options, strict=False))
    # Split at the placeholders before filling: a question may hold text in braces itself.
    before, found, after = template.partition("{question}")
    parts = [before, question if found else "", after]
    parts[0] = parts[0].replace("{options}", lines)
    parts[2] = parts[2].replace("{options}", lines)
    return "".join(parts)

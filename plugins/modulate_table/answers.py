"""Which option is right: by text, letter or index, in one way for the whole table. No torch."""

import re
from collections.abc import Mapping, Sequence
from typing import Literal

from modulate.errors import DataError, shown
from modulate_table.readers import Problem
from modulate_table.rows import Question

Form = Literal["text", "letter", "index", "index_from_1"]

FORMS: tuple[Form, ...] = ("text", "letter", "index", "index_from_1")

_LETTER = re.compile(r"\(?([A-Za-z])[.):]?")
"""An answer by letter: B, b, B. or (B)."""

_LETTERED = re.compile(r"\(?([A-Za-z])[.):]\s*(.+)")
"""An answer by letter and text: B. plate."""


def resolve_answers(
    questions: Sequence[Question], form: Form | None
) -> tuple[list[Question], list[Problem]]:
    """Set ``answer`` of the questions with options; return those that have one, and the others.

    ``form``: how the table names right options. If None, it is the one way that fits all rows, or
    the most. Questions of free text are returned unchanged. Raises :class:`DataError` if several
    ways fit all rows, but give different answers.
    """
    readings = {id(question): _readings(question) for question in questions if question.options}
    chosen = form or _form([question for question in questions if question.options], readings)
    good: list[Question] = []
    bad: list[Problem] = []
    for question in questions:
        if question.options:
            question.answer = readings[id(question)][chosen]
            if question.answer is None:
                bad.append(Problem(question.place, _refusal(question, chosen)))
                continue
        good.append(question)
    return good, bad


def _form(questions: Sequence[Question], readings: Mapping[int, Mapping[Form, int | None]]) -> Form:
    """Return the form that fits most rows. Raises :class:`DataError` if that is ambiguous."""
    fits = {
        form: sum(readings[id(question)][form] is not None for question in questions)
        for form in FORMS
    }
    best = [form for form in FORMS if fits[form] == max(fits.values())]
    for question in questions:
        found = {readings[id(question)][form] for form in best}
        if len(found) > 1 and fits[best[0]]:
            ways = " or ".join(
                f"{form} ({shown(question.options[answer])})"
                for form in best
                if (answer := readings[id(question)][form]) is not None
            )
            raise DataError(
                f"{question.place}: the answer {shown(question.given)} can be read as {ways}. Say"
                " which it is with `answers_are`."
            )
    return best[0]


def _readings(question: Question) -> dict[Form, int | None]:
    """Return the index of the right option by each form, None where the form does not fit."""
    number = _number(question.given)
    count = len(question.options)
    return {
        "text": _by_text(question),
        "letter": _by_letter(question.given, count),
        "index": number if number is not None and 0 <= number < count else None,
        "index_from_1": number - 1 if number is not None and 1 <= number <= count else None,
    }


def _by_text(question: Question) -> int | None:
    if isinstance(question.given, bool | float):
        return None
    given = str(question.given).strip()
    match = _LETTERED.fullmatch(given) if question.had_letters else None
    for place, option in enumerate(question.options):
        own_letter = match is not None and _place_of(match[1]) == place
        if given == option or (match is not None and own_letter and match[2] == option):
            return place
    return None


def _by_letter(given: object, count: int) -> int | None:
    match = _LETTER.fullmatch(given.strip()) if isinstance(given, str) else None
    place = _place_of(match[1]) if match else count
    return place if place < count else None


def _place_of(letter: str) -> int:
    return ord(letter.upper()) - ord("A")


def _number(given: object) -> int | None:
    if isinstance(given, int) and not isinstance(given, bool):
        return given
    text = given.strip() if isinstance(given, str) else ""
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 10 else None


def _refusal(question: Question, form: Form) -> str:
    options = ", ".join(map(shown, question.options))
    ways = {
        "text": f"is none of the options {options}",
        "letter": f"is no letter of the {len(question.options)} options {options}",
        "index": f"is no index, from 0, of the {len(question.options)} options {options}",
        "index_from_1": f"is no index, from 1, of the {len(question.options)} options {options}",
    }
    return f"the answer {shown(question.given)} {ways[form]}"

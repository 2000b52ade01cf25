"""All rows of a table as questions: each read on its own, then compared. Imports no torch."""

from dataclasses import dataclass

from modulate.errors import ModulateError
from modulate_table.answers import Form, resolve_answers
from modulate_table.readers import Problem, RowTable
from modulate_table.rows import Question, RowReader


@dataclass(frozen=True)
class ReadRows:
    """The rows of a table that can be used, and those that cannot."""

    questions: tuple[Question, ...]
    problems: tuple[Problem, ...]


def read_rows(table: RowTable, reader: RowReader, form: Form | None) -> ReadRows:
    """Return the table's rows as questions; ``form``: how answers name options.

    Raises :class:`~modulate.errors.DataError` if answers can be read in several ways.
    """
    questions: list[Question] = []
    problems = list(table.problems)
    places: dict[str, str] = {}
    for row in table.rows:
        try:
            question = reader.read(row)
        except ModulateError as error:
            problems.append(Problem(row.place, str(error).rstrip(".")))
            continue
        earlier = places.setdefault(question.id, row.place)
        if earlier == row.place:
            questions.append(question)
        else:
            problems.append(Problem(row.place, f"the id {question.id} is that of {earlier}"))
    questions, unanswered = resolve_answers(questions, form)
    return ReadRows(tuple(questions), (*problems, *unanswered))

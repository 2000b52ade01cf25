"""Answers of an evaluation, sample by sample, and the one reader of them. Imports no torch."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, Strict, TypeAdapter

from modulate.errors import DataError, MissingFileError, shown
from modulate.utils.safe_load import parse_json, read_lines
from modulate.utils.schema import Count, Flag, Real, Text, checked, warn_of_key

MOST_OPTIONS = 256
"""Most options of one question."""

Rule = Literal["wrong", "left_out"]
"""How samples that fail count, as a recipe's ``evaluation.failed`` says."""

FATES: Mapping[Rule, str] = {
    "wrong": "counted as wrong",
    "left_out": "left out of all figures, under every condition",
}
"""What comes of a sample that failed, by rule, in words."""

Option = Annotated[int, Strict(), Field(ge=0, lt=MOST_OPTIONS)]


@dataclass(frozen=True)
class Prediction:
    """One sample's answer under one condition. A failed sample has ``error``, and no answer; how it
    counts, the recipe says.

    ``answer``, ``prediction``: index of the right option, and of the one with the largest of
    ``logits``. ``active_steps``: time steps that the signal reached. The types are checked where
    predictions are read, not where they are made.
    """

    id: Text
    task: Text
    group: Text
    condition: Text
    answer: Option
    prediction: Option | None
    correct: Flag
    logits: Annotated[tuple[Real, ...], Field(max_length=MOST_OPTIONS)]
    active_steps: Count
    error: Text | None = None


def _consistent(record: Prediction) -> Prediction:
    if (record.prediction is None) != bool(record.error):
        raise ValueError("either there is a prediction, or an error that says why there is none")
    if record.correct != (record.prediction == record.answer):
        raise ValueError(
            f"correct is {record.correct}, although prediction is {record.prediction} and answer"
            f" {record.answer}"
        )
    return record


_ADAPTER: TypeAdapter[Prediction] = TypeAdapter(Annotated[Prediction, AfterValidator(_consistent)])
_KEYS = [field.name for field in fields(Prediction)]


def read_predictions(path: Path) -> dict[str, list[Prediction]]:
    """Return what a file of predictions holds: condition → its samples' answers, both in the order
    of the file.

    A key that this version does not know is ignored, with one warning for the file. Raises
    :class:`MissingFileError`, and :class:`DataError` naming file, line and key for what is no
    prediction, or answers a sample twice under one condition.
    """
    if not path.exists():
        raise MissingFileError(
            f"{path} does not exist: the run was not evaluated on that split. `modulate eval"
            f" {path.parent}` does it."
        )
    advice = f"`modulate eval {path.parent}` writes the file anew."
    found: dict[str, list[Prediction]] = {}
    for record in parse_predictions(
        (line for _, line in read_lines(path, "Predictions")), str(path), 1, advice
    ):
        found.setdefault(record.condition, []).append(record)
    if not found:
        raise DataError(f"{path} holds no predictions. {advice}")
    return found


def parse_predictions(
    lines: Iterable[bytes], source: str, first: int = 1, advice: str = ""
) -> Iterator[Prediction]:
    """Yield the predictions in ``lines`` of JSON; ``source`` and the number of the ``first`` line
    name them in errors, ``advice`` says what to do.

    Raises :class:`DataError` as :func:`read_predictions` does.
    """
    seen: dict[tuple[str, str], int] = {}
    warned: set[str] = set()
    for number, line in enumerate(lines, first):
        where = f"{source}, line {number}"
        try:
            tree = parse_json(line, where)
        except DataError as error:
            raise DataError(f"{error} {advice}") from error
        record = checked(_ADAPTER, tree, where, "prediction", advice)
        for key in tree.keys() - {*_KEYS} - warned:
            warned.add(key)
            warn_of_key(where, key, _KEYS)
        before = seen.setdefault((record.condition, record.id), number)
        if before != number:
            raise DataError(
                f"{where}: a second answer to {shown(record.id)} under {shown(record.condition)};"
                f" the first is in line {before}. {advice}"
            )
        yield record


def as_lines(records: Sequence[Prediction]) -> str:
    """Return predictions as lines of JSON. Numbers that are not finite are a ValueError."""
    dumps = partial(json.dumps, ensure_ascii=False, allow_nan=False)
    return "".join(dumps(asdict(record)) + "\n" for record in records)


def from_lines(lines: str, source: str = "Predictions") -> list[Prediction]:
    """Return the predictions that :func:`as_lines` was given. Raises :class:`DataError`."""
    return list(parse_predictions(lines.encode().split(b"\n")[:-1], source))


def scored(records: Mapping[str, Sequence[Prediction]], rule: Rule) -> dict[str, list[Prediction]]:
    """Return the answers that count, by condition.

    By the rule ``left_out``, a sample that failed under any condition is left out of all.
    """
    if rule == "wrong":
        return {name: list(answers) for name, answers in records.items()}
    failed = {record.id for answers in records.values() for record in answers if record.error}
    return {
        name: [record for record in answers if record.id not in failed]
        for name, answers in records.items()
    }

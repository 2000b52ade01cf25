"""Predictions: one answer per sample and condition, and their one reader. Imports no torch."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, Strict, TypeAdapter

from modulate.config.sections import MainMetric
from modulate.errors import DataError, MissingFileError, shown
from modulate.utils.safe_load import parse_json, read_lines
from modulate.utils.schema import Count, Flag, Real, Share, Text, checked, warn_of_key

MOST_OPTIONS = 256
"""Largest number of options of one question, and of accepted answers."""

TEXT_KEYS = ("text", "answers", "token_f1", "bleu", "rouge_l")
"""Keys of answers in text; lines of other answers do not have them."""

FailedRule = Literal["wrong", "left_out"]
"""How failed samples are scored: the value of a recipe's ``evaluation.failed``."""

FAILED_RULES: Mapping[FailedRule, str] = {
    "wrong": "counted as wrong",
    "left_out": "excluded from all figures, under every condition",
}
"""What each rule does to a failed sample, in words."""

Option = Annotated[int, Strict(), Field(ge=0, lt=MOST_OPTIONS)]


@dataclass(frozen=True)
class Prediction:
    """The answer to one sample under one condition.

    A failed sample has an ``error`` and neither ``prediction`` nor ``text``; the recipe says how it
    is scored. Types are validated when predictions are read, not when they are created.

    Attributes:
        group: video or viewer; samples of one group are not independent of each other.
        answer: index of the correct option; None for a question without options.
        prediction: index of the option with the largest logit; None for a failed sample, and for
            an answer in text.
        correct: whether the right option was chosen, or the text matches an accepted answer.
        logits: one for each option; the scores of options of several tokens.
        active_steps: number of time steps that the signal reached.
        text: the generated text.
        answers: the accepted answers; empty for a question with options.
        token_f1: F1 of the text's words; this and the other scores are the best over the accepted
            answers, in [0, 1], and 0 for a failed sample.
        bleu: sentence BLEU of the text.
        rouge_l: ROUGE-L of the text.
    """

    id: Text
    task: Text
    group: Text
    condition: Text
    answer: Option | None
    prediction: Option | None
    correct: Flag
    logits: Annotated[tuple[Real, ...], Field(max_length=MOST_OPTIONS)]
    active_steps: Count
    error: Text | None = None
    text: Text | None = None
    answers: Annotated[tuple[Text, ...], Field(max_length=MOST_OPTIONS)] = ()
    token_f1: Share | None = None
    bleu: Share | None = None
    rouge_l: Share | None = None

    @property
    def is_free_text(self) -> bool:
        """Whether the question is answered in text; also true of one that failed."""
        return bool(self.answers)

    def score(self, metric: MainMetric) -> float:
        """Return the answer's score in [0, 1]; 0 for a failed sample, whatever the metric."""
        if self.error or metric in ("accuracy", "exact_match"):
            return float(self.correct)
        value = getattr(self, metric)
        if value is None:
            raise DataError(f"The answer to {self.id} has no {metric}: it is not in text.")
        return float(value)


def _consistent(record: Prediction) -> Prediction:
    given = record.prediction is not None or record.text is not None
    if given == bool(record.error):
        raise ValueError("needs either a prediction or an error that says why there is none")
    if record.is_free_text:
        _check_text(record)
    elif record.text is not None:
        raise ValueError("has a text, but no accepted answers")
    elif given and record.answer is None:
        raise ValueError("has a prediction, but no right answer")
    elif record.correct != (given and record.prediction == record.answer):
        raise ValueError(
            f"correct is {record.correct}, although prediction is {record.prediction} and answer"
            f" {record.answer}"
        )
    return record


def _check_text(record: Prediction) -> None:
    if record.answer is not None or record.prediction is not None or record.logits:
        raise ValueError("has accepted answers, and options too")
    if None in (record.token_f1, record.bleu, record.rouge_l):
        raise ValueError("has accepted answers, but not all scores of a text")
    if record.correct and record.text is None:
        raise ValueError("correct is True, although there is no text")


_ADAPTER: TypeAdapter[Prediction] = TypeAdapter(Annotated[Prediction, AfterValidator(_consistent)])
_KEYS = [field.name for field in fields(Prediction)]


def read_predictions(path: Path) -> dict[str, list[Prediction]]:
    """Return condition → its samples' predictions, both in the order of the file.

    Unknown keys are ignored, with one warning for the file. Raises :class:`MissingFileError`, and
    :class:`DataError` naming file, line and key for an invalid line, or for a second answer to one
    sample under one condition.
    """
    if not path.exists():
        raise MissingFileError(
            f"{path} does not exist: the run was not evaluated on that split. `modulate eval"
            f" {path.parent}` does it."
        )
    advice = f"`modulate eval {path.parent}` writes the file anew."
    lines = (line for _, line in read_lines(path, "Predictions"))
    by_condition: dict[str, list[Prediction]] = {}
    for record in parse_predictions(lines, str(path), 1, advice):
        by_condition.setdefault(record.condition, []).append(record)
    if not by_condition:
        raise DataError(f"{path} holds no predictions. {advice}")
    return by_condition


def parse_predictions(
    lines: Iterable[bytes], source: str, first: int = 1, advice: str = ""
) -> Iterator[Prediction]:
    """Yield the predictions in lines of JSON.

    Args:
        lines: one prediction each, UTF-8.
        source: what errors call the lines.
        first: number of the first line in ``source``.
        advice: what the user can do, appended to errors.

    Raises :class:`DataError` like :func:`read_predictions`.
    """
    line_of: dict[tuple[str, str], int] = {}
    warned: set[str] = set()
    for number, line in enumerate(lines, first):
        where = f"{source}, line {number}"
        try:
            tree = parse_json(line, where)
        except DataError as error:
            raise DataError(f"{error} {advice}") from error
        record = checked(_ADAPTER, tree, where, "prediction", advice)
        # A newer version writes its further keys in every line: warn of each only once.
        for key in tree.keys() - {*_KEYS} - warned:
            warned.add(key)
            warn_of_key(where, key, _KEYS)
        earlier = line_of.setdefault((record.condition, record.id), number)
        if earlier != number:
            raise DataError(
                f"{where}: a second answer to {shown(record.id)} under {shown(record.condition)};"
                f" the first is in line {earlier}. {advice}"
            )
        yield record


def as_lines(records: Sequence[Prediction]) -> str:
    """Return predictions as lines of JSON. Raises ValueError for numbers that are not finite."""
    dumps = partial(json.dumps, ensure_ascii=False, allow_nan=False)
    return "".join(dumps(_tree(record)) + "\n" for record in records)


def _tree(record: Prediction) -> dict[str, object]:
    tree = asdict(record)
    if record.text is None and not record.is_free_text:
        for key in TEXT_KEYS:
            del tree[key]
    return tree


def from_lines(lines: str, source: str = "Predictions") -> list[Prediction]:
    """Return the predictions in what :func:`as_lines` returned. Raises :class:`DataError`."""
    # Split at line feeds only: str.splitlines also splits at separators that a text may contain.
    return list(parse_predictions(lines.encode().split(b"\n")[:-1], source))


def apply_failed_rule(
    records: Mapping[str, Sequence[Prediction]], rule: FailedRule
) -> dict[str, list[Prediction]]:
    """Return the predictions that are scored, by condition.

    Under the rule ``left_out``, a sample that failed under any condition is left out of all, so
    that conditions are compared on the same samples.
    """
    if rule == "wrong":
        return {condition: list(answers) for condition, answers in records.items()}
    failed = {record.id for answers in records.values() for record in answers if record.error}
    return {
        condition: [record for record in answers if record.id not in failed]
        for condition, answers in records.items()
    }

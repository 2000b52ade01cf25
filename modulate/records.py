"""What a run notes of itself: a schema for each of its files, and the one reader that everything which reads a run goes through. Imports no torch.

A run's folder may come from a stranger, so nothing in it is believed unseen. Files are read within the limits of
:mod:`modulate.parse`. Values are checked strictly: "1" is no number, 1 is no truth, and a number has a range.
Errors name file, line, key, the value received, what is allowed, and what to do.

A key that a file lacks has a default where older versions did not write it. A key that this version does not know is
left alone, and a warning names it: a newer version may have written it, which must not make its runs unreadable; but a
key that is misspelt or renamed must not vanish without a word either. Only a log's lines may hold further keys: their
numbers are further curves.

Of a sweep's folder nothing is read but the runs in it and the end of their logs, which are text: sweep.json is written
for others. Predictions have their reader in :mod:`modulate.evaluation.predictions`.
"""

import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, Strict, TypeAdapter, ValidationError, model_validator

from modulate.errors import DataError, near_matches, shown
from modulate.parse import parse_json, read_json, read_lines

T = TypeVar("T")

LARGEST = 1e100
"""Largest number that a run notes, by its size: what is computed of two of them is still finite."""

SLACK = 1e-9
"""By how much a mean of shares may pass 0 or 1, for rounding."""

MAX_FINDINGS = 3
"""Most findings that one error names."""



def _bounded(value: float) -> float:
    if abs(value) > LARGEST:
        raise ValueError(f"must lie between {-LARGEST:g} and {LARGEST:g}")
    return value


Text = Annotated[str, Strict()]
Flag = Annotated[bool, Strict()]
Count = Annotated[int, Strict(), Field(ge=0, le=2**53)]
Real = Annotated[float, Strict(), Field(allow_inf_nan=False), AfterValidator(_bounded)]
Share = Annotated[float, Strict(), Field(ge=-SLACK, le=1 + SLACK)]
Difference = Annotated[float, Strict(), Field(ge=-1 - SLACK, le=1 + SLACK)]


class Record(BaseModel):
    """What one file, or one part of it, says."""

    model_config = ConfigDict(strict=True, extra="allow", frozen=True)


# --- state.json and environment.json ----------------------------------------------------------------------------------------------------


class State(Record):
    """state.json: a training that has finished. Without the file nothing has, which is what the defaults say.

    ``made_of``: fingerprints of data, host and backbone. ``weights``: sha256 of the modulation's files. ``failed``: training samples, with
    their errors. ``left_out``: how many training samples took no part because their signal is empty. ``skipped``: optimiser steps not taken, by
    reason. ``adopted``: where the weights came from, if no training made them.
    """

    finished: bool = False
    made_of: dict[str, str] | None = None
    weights: dict[str, str] = Field(default_factory=dict)
    steps: Count | None = None
    seconds: Annotated[Real, Field(ge=0)] | None = None
    failed: dict[str, str] = Field(default_factory=dict)
    left_out: Count = 0
    skipped: dict[str, Count] = Field(default_factory=dict)
    split_steps: Count = 0
    apart: Count = 0
    resumed: list[Count] = Field(default_factory=list)
    adopted: str | None = None


class Git(Record):
    """The commit that a run was made at; ``modified``: with changes that were not committed."""

    commit: str
    modified: bool = False


class Environment(Record):
    """environment.json: what a run was made with."""

    python: str = ""
    system: str = ""
    machine: str = ""
    versions: dict[str, str] = Field(default_factory=dict)
    git: Git | None = None


# --- metrics.json -----------------------------------------------------------------------------------------------------------------------


class TaskFigures(Record):
    """Accuracy of one task over ``n`` samples; ``interval``: its ends, None where there is no spread."""

    accuracy: Share
    n: Count
    interval: Annotated[list[Share | None], Field(min_length=2, max_length=2)]


class ConditionFigures(Record):
    """Accuracy under one condition: the unweighted mean over tasks, its interval, and the tasks."""

    overall: Share
    interval: Annotated[list[Share | None], Field(min_length=2, max_length=2)]
    n: Count
    tasks: dict[str, TaskFigures] = Field(default_factory=dict)


class McNemarFigures(Record):
    """McNemar's test: samples right under one of two conditions only, and p."""

    b: Count
    c: Count
    p: Share
    exact: bool


class ComparisonFigures(Record):
    """A paired difference of two conditions, first minus second, overall or of one task."""

    difference: Difference
    interval: Annotated[list[Difference | None], Field(min_length=2, max_length=2)]
    n: Count
    mcnemar: McNemarFigures
    tasks: dict[str, "ComparisonFigures"] = Field(default_factory=dict)


class Reach(Record):
    """In how many samples, and in how many time steps of all of them, the signal reached the visual tokens."""

    samples: Count
    samples_with_active_signal: Count = 0
    active_steps: Count = 0


class Failure(Record):
    """A sample that failed, with the last condition under which it did."""

    id: str
    condition: str = ""
    error: str = ""


class Metrics(ConditionFigures):
    """metrics.json: the figures of one evaluation, under the run's own condition, and under each control."""

    split: str = "test"
    condition: str
    controls: dict[str, ConditionFigures] = Field(default_factory=dict)
    comparisons: dict[str, ComparisonFigures] = Field(default_factory=dict)
    signal: Reach
    failed: list[Failure]

    @model_validator(mode="after")
    def _same_tasks(self) -> "Metrics":
        for name, control in self.controls.items():
            if other := sorted(self.tasks.keys() ^ control.tasks.keys()):
                raise ValueError(f"the control {shown(name)} has other tasks than the run's own condition; {shown(other[0])} is in one of them only")
        return self


# --- log.jsonl --------------------------------------------------------------------------------------------------------------------------


class LogLine(Record):
    """One line of log.jsonl: an optimiser step of ``steps``, or a validation after one. Further numbers are further curves."""

    stage: str
    step: Count
    steps: Count | None = None
    loss: Real | None = None
    accuracy: Real | None = None
    active: Real | None = None
    lr: Real | None = None
    skipped: str = ""
    validation_accuracy: Real | None = None

    @model_validator(mode="after")
    def _further(self) -> "LogLine":
        for key, value in (self.model_extra or {}).items():
            if _number(value) and abs(value) > LARGEST:
                raise ValueError(f"{shown(key)} must lie between {-LARGEST:g} and {LARGEST:g}")
        return self

    def curves(self) -> dict[str, float]:
        """Return the numbers of the line, by key, but for the counts of steps."""
        return {key: float(value) for key, value in self.model_dump().items() if key not in ("step", "steps") and _number(value)}


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


# --- reading them -----------------------------------------------------------------------------------------------------------------------


def read_state(path: Path) -> State:
    """Return what state.json says; without it, that nothing is finished. Raises :class:`DataError`."""
    advice = "Remove it, and give the command again: the run goes on from its last checkpoint."
    return _read(path, State, "state of a training", advice) or State()


def read_environment(path: Path) -> Environment:
    """Return what environment.json says; without it, nothing. Raises :class:`DataError`."""
    return _read(path, Environment, "environment of a run", "Remove it: nothing but reports reads it, and they can do without.") or Environment()


def read_metrics(path: Path) -> Metrics | None:
    """Return what metrics.json says, None where there is none. Raises :class:`DataError`."""
    return _read(path, Metrics, "figures of an evaluation", f"`modulate eval {path.parent}` writes the file anew.")


def read_log(path: Path) -> tuple[LogLine, ...]:
    """Return a training's log, nothing where there is none. A last line without its end was cut off by a kill, and does not count.

    Raises :class:`DataError` naming the line.
    """
    if not path.is_file():
        return ()
    lines = (number_and_line for number_and_line in read_lines(path, "Training log") if number_and_line[1].endswith(b"\n"))
    advice = "Remove the file to report without curves."
    return tuple(parse_record(line, LogLine, f"{path}, line {number}", "step of a training", advice) for number, line in lines)


def parse_record(data: bytes, model: type[T], source: str, what: str, advice: str) -> T:
    """Return the JSON text ``data`` as a ``model``; ``source`` names it in errors, ``what`` says what it must be, ``advice`` what to do.

    Raises :class:`DataError`.
    """
    try:
        tree = parse_json(data, source)
    except DataError as error:
        raise DataError(f"{error} {advice}") from error
    return checked(_adapter(model), tree, source, what, advice)


def _read(path: Path, model: type[T], what: str, advice: str) -> T | None:
    if not path.exists():
        return None
    try:
        tree = read_json(path)
    except DataError as error:
        raise DataError(f"{error} {advice}") from error
    return checked(_adapter(model), tree, str(path), what, advice)


def _adapter(model: type[T]) -> TypeAdapter[T]:
    if model not in _adapters:
        _adapters[model] = TypeAdapter(model)
    return _adapters[model]


_adapters: dict[Any, TypeAdapter[Any]] = {}
"""Of each schema that was asked for: making one takes longer than reading a line."""


def checked(adapter: TypeAdapter[T], tree: Any, source: str, what: str, advice: str) -> T:
    """Return what ``tree`` says, as ``adapter`` has it; warn of keys that are not known. Raises :class:`DataError`."""
    try:
        found = adapter.validate_python(tree)
    except ValidationError as error:
        raise DataError(f"{source}: no {what}: {findings(error)}. {advice}") from error
    for at, key, known in unknown_keys(found):
        warn_of_key(source, f"{at}{key}", known)
    return found


def findings(error: ValidationError) -> str:
    """Return what pydantic found, in one line: key, what is allowed, what was given. Long ones are cut, many are counted."""
    said, found = [], error.errors(include_url=False, include_context=False)
    for item in found[:MAX_FINDINGS]:
        where = ".".join(map(str, item["loc"])) or "the whole"
        text = item["msg"].removeprefix("Value error, ")
        said.append(f"{where[:80]}: {text[:200]}, got {shown(item['input'])}")
    more = [f"and {len(found) - MAX_FINDINGS} more"] if len(found) > MAX_FINDINGS else []
    return "; ".join([*said, *more])


def unknown_keys(value: Any, at: str = "") -> Iterator[tuple[str, str, list[str]]]:
    """Yield the keys of records that their schema does not know: where, which, and those that it knows."""
    if isinstance(value, LogLine):
        return
    if isinstance(value, Record):
        yield from ((at, key, list(type(value).model_fields)) for key in value.model_extra or {})
        value = {name: getattr(value, name) for name in type(value).model_fields}
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from unknown_keys(inner, f"{at}{key}.")
    elif isinstance(value, list):
        for i, inner in enumerate(value):
            yield from unknown_keys(inner, f"{at}{i}.")


def warn_of_key(source: str, key: str, known: list[str]) -> None:
    """Warn that a key is not known, and hence ignored."""
    text = f"{source}: the key {shown(key)} is ignored, because this version of modulate does not know it; a newer one may have written it."
    warnings.warn(f"{text} {near_matches(key.rpartition('.')[2], known)}", stacklevel=4)

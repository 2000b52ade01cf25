"""What a run notes of itself: a schema for each of its files, and the one reader that everything
which reads a run goes through. Imports no torch.

A run's folder may come from a stranger, so nothing in it is believed unseen: files are read within
the limits of :mod:`modulate.utils.safe_load`, and checked as :mod:`modulate.utils.schema` says,
which also says what becomes of keys that are not known. Only a log's lines may hold further keys:
their numbers are further curves.

Of a sweep's folder nothing is read but the runs in it and the end of their logs, which are text:
sweep.json is written for others. Predictions have their reader in
:mod:`modulate.evaluation.predictions`.
"""

from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import AliasChoices, Field, model_validator

from modulate.config.sections import MainMetric
from modulate.errors import shown
from modulate.utils.safe_load import read_lines
from modulate.utils.schema import (
    LARGEST,
    Count,
    Difference,
    Real,
    Record,
    Share,
    parse_record,
    read_record,
)

# --- state.json and environment.json


class RunState(Record):
    """state.json: a training that has finished.

    Without the file nothing has, which is what the defaults say.

    ``made_of``: fingerprints of data, host and backbone. ``weights``: sha256 of the modulation's
    files. ``failed``: training samples, with their errors. ``left_out``: how many training samples
    took no part because their signal is empty. ``skipped``: optimizer steps not taken, by reason.
    ``skipped_rows``: rows that the data set skipped because they cannot be used, by file.
    ``unshared_batches``: batches of one clip whose questions could not share a forward.
    ``adopted``: where the weights came from, if no training made them.
    """

    finished: bool = False
    made_of: dict[str, str] | None = None
    weights: dict[str, str] = Field(default_factory=dict)
    steps: Count | None = None
    seconds: Annotated[Real, Field(ge=0)] | None = None
    failed: dict[str, str] = Field(default_factory=dict)
    left_out: Count = 0
    skipped: dict[str, Count] = Field(default_factory=dict)
    skipped_rows: dict[str, Count] = Field(default_factory=dict)
    split_steps: Count = 0
    # The second name is that of version 0.1.
    unshared_batches: Count = Field(0, validation_alias=AliasChoices("unshared_batches", "apart"))
    resumed: list[Count] = Field(default_factory=list)
    adopted: str | None = None


class Git(Record):
    """The commit that a run was made at; ``modified``: with changes that were not committed."""

    commit: str
    modified: bool = False


class Environment(Record):
    """environment.json: what a run was made with.

    ``paths``: where the relative paths of its recipe led, by key.
    """

    python: str = ""
    system: str = ""
    machine: str = ""
    versions: dict[str, str] = Field(default_factory=dict)
    git: Git | None = None
    paths: dict[str, str] = Field(default_factory=dict)


# --- metrics.json


class TaskFigures(Record):
    """Accuracy, or the main score, of one task over ``n`` samples.

    ``interval``: its ends, None where there is no spread.
    """

    accuracy: Share
    n: Count
    interval: Annotated[list[Share | None], Field(min_length=2, max_length=2)]


class ScoreFigures(Record):
    """One score of generated text: the unweighted mean over tasks, and its interval."""

    overall: Share
    interval: Annotated[list[Share | None], Field(min_length=2, max_length=2)]


class TextFigures(Record):
    """All scores of generated text."""

    exact_match: ScoreFigures
    token_f1: ScoreFigures
    bleu: ScoreFigures
    rouge_l: ScoreFigures


class ConditionFigures(ScoreFigures):
    """The main figure under one condition: the mean over tasks, its interval, and the tasks.

    ``scores``: all scores of generated text, None for other answers.
    """

    n: Count
    tasks: dict[str, TaskFigures] = Field(default_factory=dict)
    scores: TextFigures | None = None


class McNemarFigures(Record):
    """McNemar's test: samples right under one of two conditions only, and p."""

    b: Count
    c: Count
    p: Share
    exact: bool


class ScoreDifference(Record):
    """A paired difference of one score, first minus second condition.

    ``p_permutation``: of a test that swaps the conditions in whole videos; of graded scores only.
    """

    difference: Difference
    interval: Annotated[list[Difference | None], Field(min_length=2, max_length=2)]
    p_permutation: Share | None = None


class TextDifferences(Record):
    """The differences of all scores of generated text."""

    exact_match: ScoreDifference
    token_f1: ScoreDifference
    bleu: ScoreDifference
    rouge_l: ScoreDifference


class ComparisonFigures(ScoreDifference):
    """A paired difference of two conditions, first minus second, overall or of one task.

    ``mcnemar``: of right answers, or exact matches. ``scores``: all scores of generated text.
    """

    n: Count
    mcnemar: McNemarFigures
    tasks: dict[str, "ComparisonFigures"] = Field(default_factory=dict)
    scores: TextDifferences | None = None


class Reach(Record):
    """In how many samples, and in how many time steps of all of them, the signal reached the visual
    tokens.

    ``samples_off_clock``: samples whose whole signal lies outside of their video.
    """

    samples: Count
    samples_with_active_signal: Count = 0
    active_steps: Count = 0
    samples_off_clock: Count = 0


class Failure(Record):
    """A sample that failed, with the last condition under which it did."""

    id: str
    condition: str = ""
    error: str = ""


class Metrics(ConditionFigures):
    """metrics.json: the figures of one evaluation, under the run's own condition, and under each
    control.

    ``metric``: what the main figures are. ``signatures``: how BLEU and ROUGE-L were computed.
    ``skipped_rows``: rows that the data set skipped because they cannot be used, by file.
    """

    split: str = "test"
    condition: str
    metric: MainMetric = "accuracy"
    signatures: dict[str, str] = Field(default_factory=dict)
    controls: dict[str, ConditionFigures] = Field(default_factory=dict)
    comparisons: dict[str, ComparisonFigures] = Field(default_factory=dict)
    signal: Reach
    failed: list[Failure]
    skipped_rows: dict[str, Count] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _same_form(self) -> "Metrics":
        has_scores = self.metric != "accuracy"
        figures: list[ConditionFigures | ComparisonFigures] = [
            self,
            *self.controls.values(),
            *self.comparisons.values(),
        ]
        names = ["the run's own condition", *self.controls, *self.comparisons]
        for name, found in zip(names, figures, strict=True):
            if (found.scores is not None) != has_scores:
                raise ValueError(
                    f"metric is {self.metric}, but {shown(name)} has"
                    f" {'no ' if has_scores else ''}scores of text"
                )
        return self

    @model_validator(mode="after")
    def _same_tasks(self) -> "Metrics":
        for name, control in self.controls.items():
            other = sorted(self.tasks.keys() ^ control.tasks.keys())
            if other:
                raise ValueError(
                    f"the control {shown(name)} has other tasks than the run's own condition;"
                    f" {shown(other[0])} is in one of them only"
                )
        return self


# --- log.jsonl


class LogLine(Record):
    """One line of log.jsonl: an optimizer step of ``steps``, or a validation after one.

    Further numbers are further curves.
    """

    further: ClassVar[bool] = True

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
        return {
            key: float(value)
            for key, value in self.model_dump().items()
            if key not in ("step", "steps") and _number(value)
        }


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


# --- reading them


def read_state(path: Path) -> RunState:
    """Return what state.json says; without it, that nothing is finished.

    Raises :class:`DataError`.
    """
    advice = "Remove it, and give the command again: the run goes on from its last checkpoint."
    return read_record(path, RunState, "state of a training", advice) or RunState()


def read_environment(path: Path) -> Environment:
    """Return what environment.json says; without it, nothing. Raises :class:`DataError`."""
    return (
        read_record(
            path,
            Environment,
            "environment of a run",
            "Remove it: nothing but reports reads it, and they can do without.",
        )
        or Environment()
    )


def read_metrics(path: Path) -> Metrics | None:
    """Return what metrics.json says, None where there is none. Raises :class:`DataError`."""
    return read_record(
        path,
        Metrics,
        "figures of an evaluation",
        f"`modulate eval {path.parent}` writes the file anew.",
    )


def read_log(path: Path) -> tuple[LogLine, ...]:
    """Return a training's log, nothing where there is none.

    A last line without its end was cut off by a kill, and does not count.

    Raises :class:`DataError` naming the line.
    """
    if not path.is_file():
        return ()
    lines = (
        number_and_line
        for number_and_line in read_lines(path, "Training log")
        if number_and_line[1].endswith(b"\n")
    )
    advice = "Remove the file to report without curves."
    return tuple(
        parse_record(line, LogLine, f"{path}, line {number}", "step of a training", advice)
        for number, line in lines
    )

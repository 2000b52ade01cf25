"""Finished runs: read, pooled over seeds, and matched with the runs to compare them with."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from modulate.config.recipe import Recipe
from modulate.errors import DataError, RecipeError
from modulate.evaluation.metrics import BINARY
from modulate.evaluation.predictions import Prediction, apply_failed_rule, read_predictions
from modulate.evaluation.text_scores import figure_name
from modulate.report.recipes import Differences, differences, train_alike
from modulate.runs.records import LogLine, RunState, read_log
from modulate.runs.run import Run


@dataclass(frozen=True)
class EvaluatedRun:
    """One evaluated run. ``records``: answers by condition; ``log``: the training log."""

    run: Run
    records: dict[str, list[Prediction]]
    log: tuple[LogLine, ...]

    @property
    def recipe(self) -> Recipe:
        """The run's recipe."""
        return self.run.recipe

    @property
    def name(self) -> str:
        """The name of the run's folder, which is the recipe's name unless the folder was moved."""
        return self.run.folder.resolve().name

    @cached_property
    def training(self) -> RunState:
        """The state that training saved."""
        return self.run.read_state()

    @cached_property
    def failed(self) -> list[Prediction]:
        """Failed answers, one for each sample and condition."""
        return [record for records in self.records.values() for record in records if record.error]

    @cached_property
    def scored(self) -> dict[str, list[Prediction]]:
        """Answers that count, by condition, under the recipe's rule for failed samples."""
        return apply_failed_rule(self.records, self.recipe.evaluation.failed)


def read_run(folder: Path, split: str = "test") -> EvaluatedRun:
    """Read one run.

    Raises :class:`MissingFileError` for a folder without a run or without predictions on ``split``,
    :class:`DataError` for broken files.
    """
    run = Run.open(folder)
    path = run.predictions(split)
    main = run.recipe.training.condition
    records = read_predictions(path)
    if main not in records:
        raise DataError(
            f"{path} holds no answers under its own condition {main!r}, only {', '.join(records)}."
            f" `modulate eval {folder}` writes them."
        )
    scored = apply_failed_rule(records, run.recipe.evaluation.failed)
    empty = [condition for condition, answers in scored.items() if not answers]
    if empty:
        raise DataError(
            f"{path}: no answer under {empty[0]!r} is left to score: evaluation.failed is left_out"
            " and every sample failed under some condition."
        )
    return EvaluatedRun(run, records, read_log(folder / "log.jsonl"))


# --- groups of seeds


@dataclass(frozen=True)
class RunGroup:
    """Runs of one recipe that differ only in their seed, in the order of seeds: one table row."""

    name: str
    runs: tuple[EvaluatedRun, ...]

    @property
    def recipe(self) -> Recipe:
        """The recipe of the first seed."""
        return self.runs[0].recipe

    @property
    def condition(self) -> str:
        """The condition that the runs were trained under, which is also their main result."""
        return self.recipe.training.condition

    @property
    def figure_name(self) -> str:
        """What the runs' main figure is called: accuracy, or a score of text."""
        return figure_name(self.recipe.main_metric)

    @property
    def is_binary(self) -> bool:
        """Whether the main figure counts right answers."""
        return self.recipe.main_metric in BINARY

    @property
    def seeds(self) -> tuple[int, ...]:
        """Seeds of the runs, ascending."""
        return tuple(run.recipe.seed for run in self.runs)

    @cached_property
    def conditions(self) -> tuple[str, ...]:
        """Every condition that any of the runs was evaluated under, the main one first."""
        evaluated = [condition for run in self.runs for condition in run.records]
        return tuple(dict.fromkeys([self.condition, *evaluated]))

    def seeds_of(self, condition: str) -> tuple[int, ...]:
        """Return the seeds whose run was evaluated under ``condition``."""
        return tuple(run.recipe.seed for run in self.runs if condition in run.records)

    def pooled(self, condition: str, seeds: Sequence[int] | None = None) -> list[Prediction]:
        """Return the scored answers of all seeds, or of ``seeds``.

        The id of each sample becomes ``seed/id``, so that ids stay unique; its group stays, so that
        all answers about one video are resampled together.
        """
        chosen = [
            run
            for run in self.runs
            if condition in run.records and (seeds is None or run.recipe.seed in seeds)
        ]
        return [
            replace(record, id=f"{run.recipe.seed}/{record.id}")
            for run in chosen
            for record in run.scored[condition]
        ]


def group_runs(runs: Sequence[EvaluatedRun]) -> list[RunGroup]:
    """Group runs whose recipes differ only in name and seed, in order of first appearance.

    Raises :class:`RecipeError` when two runs have the same recipe and the same seed.
    """
    groups: list[list[EvaluatedRun]] = []
    for run in runs:
        group = next((members for members in groups if _same_group(members[0], run)), None)
        if group is None:
            groups.append([run])
            continue
        twin = next((member for member in group if member.recipe.seed == run.recipe.seed), None)
        if twin is not None:
            raise RecipeError(
                f"{twin.run.folder} and {run.run.folder} are runs of the same recipe with the same"
                f" seed, {run.recipe.seed}; give only one of them."
            )
        group.append(run)
    return [
        RunGroup(name, tuple(sorted(group, key=lambda run: run.recipe.seed)))
        for name, group in zip(_distinct_names(groups), groups, strict=True)
    ]


def _same_group(first: EvaluatedRun, second: EvaluatedRun) -> bool:
    # The same recipe on other data, host or backbone files is another experiment.
    same_files = first.training.made_of == second.training.made_of
    return same_files and train_alike(first.recipe, second.recipe)


def _distinct_names(groups: Sequence[Sequence[EvaluatedRun]]) -> list[str]:
    """Return the shortest names that tell all groups apart; in the end, their folders."""
    names = [_common_name(group) for group in groups]
    if len(set(names)) < len(names):
        names = [" + ".join(run.name for run in group) for group in groups]
    if len(set(names)) < len(names):
        names = [str(group[0].run.folder) for group in groups]
    return names


def _common_name(group: Sequence[EvaluatedRun]) -> str:
    """Return the runs' common name without its seed, or the first run's name if there is none."""
    if len(group) == 1:
        return group[0].name
    stems = {run.name.removesuffix(str(run.recipe.seed)).rstrip("-_. ") for run in group}
    return stems.pop() if len(stems) == 1 and "" not in stems else group[0].name


# --- companions


@dataclass(frozen=True)
class Companion:
    """A run that a signal run has to be compared with, or why there is none.

    ``differs``: permitted differences of its recipe, by key. ``missing``: a sentence that says what
    is missing, when no given run qualifies.
    """

    role: str
    group: RunGroup | None
    differs: Differences
    missing: str = ""


ROLES = {"none": "LoRA-only run", "blank": "blank-trained run"}
"""Condition that a companion is trained under → what reports call it."""

_MAY_DIFFER = {
    # Every encoder returns exactly 0 for a blank signal, so all of them are the same function here.
    "blank": ("training.condition", "encoder", "signal"),
    # No part of the modulation reaches the host, and the stages can train nothing but LoRA.
    "none": (
        "training.condition",
        "training.stages",
        "training.augment",
        "encoder",
        "modulator",
        "injection",
        "backbone",
        "signal",
    ),
}
"""Keys in which a companion may differ from its signal run: they have no effect on it."""


def find_companions(group: RunGroup, groups: Sequence[RunGroup]) -> list[Companion]:
    """Return the LoRA-only and the blank-trained companion of a signal run.

    Among several candidates, the one whose recipe has the fewest differences is taken.
    """
    return [_find_companion(group, groups, condition) for condition in ROLES]


def _find_companion(group: RunGroup, groups: Sequence[RunGroup], condition: str) -> Companion:
    role = ROLES[condition]
    if condition == "none" and group.recipe.lora is None:
        missing = "The recipe has no LoRA, so there is no LoRA-only run to compare with."
        return Companion(role, None, {}, missing)
    candidates = [
        (differences(group.recipe, other.recipe), other)
        for other in groups
        if other.condition == condition
    ]
    qualified = [
        (differs, other)
        for differs, other in candidates
        if all(_may_differ(key, condition) for key in differs)
    ]
    if not qualified:
        return Companion(role, None, {}, _how_to_make(group, condition))
    differs, other = min(qualified, key=lambda candidate: len(candidate[0]))
    shown = {key: pair for key, pair in differs.items() if key != "training.condition"}
    return Companion(role, other, shown)


def _may_differ(key: str, condition: str) -> bool:
    return any(key == free or key.startswith(f"{free}.") for free in _MAY_DIFFER[condition])


def _how_to_make(group: RunGroup, condition: str) -> str:
    recipe = shlex.quote(str(group.runs[0].run.folder / "recipe.yaml"))
    command = f"modulate train {recipe} name=… training.condition={condition}"
    if condition == "none":
        command += " training.stages='[{name: lora, train: [lora], epochs: …, lr: …}]'"
    return f"No {ROLES[condition]} of this recipe was given. `{command}` makes one."

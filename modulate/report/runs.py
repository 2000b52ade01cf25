"""Finished runs as a report needs them: read, pooled over seeds, and each beside the runs that it
has to be compared with.
"""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from modulate.config.recipe import Recipe
from modulate.errors import DataError, RecipeError
from modulate.evaluation.predictions import Prediction, read_predictions, scored
from modulate.report.recipes import Differences, differences, same_trained
from modulate.runs.records import LogLine, RunState, read_log
from modulate.runs.run import Run


@dataclass(frozen=True)
class Recorded:
    """One evaluated run: its recipe, answers by condition, training curve and what it notes of
    itself.
    """

    run: Run
    records: dict[str, list[Prediction]]
    log: tuple[LogLine, ...]

    @property
    def recipe(self) -> Recipe:
        """The run's recipe."""
        return self.run.recipe

    @property
    def name(self) -> str:
        """The name of the run's folder, which is the recipe's unless someone moved it."""
        return self.run.folder.resolve().name

    @cached_property
    def training(self) -> RunState:
        """What state.json says of the training."""
        return self.run.read_state()

    @cached_property
    def failed(self) -> list[Prediction]:
        """Samples that failed under any condition, one line for each sample and condition."""
        return [record for records in self.records.values() for record in records if record.error]

    @cached_property
    def scored(self) -> dict[str, list[Prediction]]:
        """Answers by condition as the recipe scores them: a failed sample counts as wrong, or,
        where it says so, is left out of all conditions.
        """
        return scored(self.records, self.recipe.evaluation.failed)


def read(folder: Path, split: str = "test") -> Recorded:
    """Read one run.

    Raises :class:`MissingFileError` for what is no run or was not evaluated, :class:`DataError` for
    broken files.
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
    empty = [
        name
        for name, answers in scored(records, run.recipe.evaluation.failed).items()
        if not answers
    ]
    if empty:
        raise DataError(
            f"{path}: no answer under {empty[0]!r} is left to count, as evaluation.failed is"
            " left_out and each of its samples failed under some condition."
        )
    return Recorded(run, records, read_log(folder / "log.jsonl"))


@dataclass(frozen=True)
class Entry:
    """Runs of one recipe that differ in nothing but their seed, by seed: one row of a table."""

    name: str
    runs: tuple[Recorded, ...]

    @property
    def recipe(self) -> Recipe:
        """The recipe, as its first seed has it."""
        return self.runs[0].recipe

    @property
    def condition(self) -> str:
        """The condition that it was trained under, which is its own result."""
        return self.recipe.training.condition

    @property
    def seeds(self) -> tuple[int, ...]:
        """Seeds of the runs, ascending."""
        return tuple(run.recipe.seed for run in self.runs)

    @cached_property
    def conditions(self) -> tuple[str, ...]:
        """Every condition that any of the runs was evaluated under, its own first."""
        return tuple(
            dict.fromkeys([self.condition, *(name for run in self.runs for name in run.records)])
        )

    def seeds_of(self, condition: str) -> tuple[int, ...]:
        """Return the seeds whose run was evaluated under ``condition``."""
        return tuple(run.recipe.seed for run in self.runs if condition in run.records)

    def pooled(self, condition: str, seeds: Sequence[int] | None = None) -> list[Prediction]:
        """Return the scored answers of all seeds, or of ``seeds``; a sample has another id for each
        seed, and the same group.
        """
        chosen = [
            run
            for run in self.runs
            if condition in run.records and (seeds is None or run.recipe.seed in seeds)
        ]
        return [
            replace(r, id=f"{run.recipe.seed}/{r.id}")
            for run in chosen
            for r in run.scored[condition]
        ]


def entries(runs: Sequence[Recorded]) -> list[Entry]:
    """Pool runs whose recipes differ in name and seed only; the order is that of first appearance.

    Raises :class:`RecipeError` when two runs have the same recipe and the same seed.
    """
    groups: list[list[Recorded]] = []
    for run in runs:
        home = next(
            (
                g
                for g in groups
                if same_trained(g[0].recipe, run.recipe) and _made_of(g[0]) == _made_of(run)
            ),
            None,
        )
        if home is None:
            groups.append([run])
            continue
        twin = next((other for other in home if other.recipe.seed == run.recipe.seed), None)
        if twin is not None:
            raise RecipeError(
                f"{twin.run.folder} and {run.run.folder} are runs of one recipe with one seed,"
                f" {run.recipe.seed}; give only one of them."
            )
        home.append(run)
    names = [_name(group) for group in groups]
    if len(set(names)) < len(names):
        names = [" + ".join(run.name for run in group) for group in groups]
    if len(set(names)) < len(names):
        names = [str(group[0].run.folder) for group in groups]
    return [
        Entry(name, tuple(sorted(group, key=lambda run: run.recipe.seed)))
        for name, group in zip(names, groups, strict=True)
    ]


def _made_of(run: Recorded) -> Any:
    """Fingerprints of data, host and backbone: the same recipe on other files is another run."""
    return run.training.made_of


def _name(group: Sequence[Recorded]) -> str:
    """What the runs' names have in common before their seeds; where they have other names, the
    first one's.
    """
    if len(group) == 1:
        return group[0].name
    stems = {run.name.removesuffix(str(run.recipe.seed)).rstrip("-_. ") for run in group}
    return stems.pop() if len(stems) == 1 and "" not in stems else group[0].name


@dataclass(frozen=True)
class Companion:
    """A run that has to stand beside a signal run, or why none does.

    ``differs``: in what its recipe differs although it may, by key. ``missing``: a sentence, where
    no run given will do.
    """

    role: str
    entry: Entry | None
    differs: Differences
    missing: str = ""


ROLES = {"none": "LoRA only", "blank": "trained with a blank signal"}
"""By the condition that such a run is trained under."""

_FREE = {
    # encoders give exactly 0 for a blank signal, so with one they are all the same function
    "blank": ("training.condition", "encoder", "signal"),
    # nothing of the modulation reaches the host, and its stages can only train LoRA
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
"""What may differ between a signal run and its companion: the condition, what that forces, and what
has no effect under it.
"""


def companions(entry: Entry, given: Sequence[Entry]) -> list[Companion]:
    """Return, for a run trained with its signal, the LoRA-only run and the one trained with a blank
    signal; the closest recipes of those given.
    """
    return [_companion(entry, given, condition) for condition in ROLES]


def _companion(entry: Entry, given: Sequence[Entry], condition: str) -> Companion:
    role = ROLES[condition]
    if condition == "none" and entry.recipe.lora is None:
        return Companion(
            role, None, {}, "The recipe has no LoRA, so there is no LoRA-only run to compare with."
        )
    found: list[tuple[int, Entry, Differences]] = []
    for other in given:
        if other.condition == condition:
            differs = differences(entry.recipe, other.recipe)
            if all(
                any(key == free or key.startswith(f"{free}.") for free in _FREE[condition])
                for key in differs
            ):
                found.append((len(differs), other, differs))
    if found:
        _, other, differs = min(found, key=lambda item: item[0])
        return Companion(
            role, other, {key: pair for key, pair in differs.items() if key != "training.condition"}
        )
    stages = (
        " training.stages='[{name: lora, train: [lora], epochs: …, lr: …}]'"
        if condition == "none"
        else ""
    )
    command = (
        f"modulate train {shlex.quote(str(entry.runs[0].run.folder / 'recipe.yaml'))} name=…"
        f" training.condition={condition}{stages}"
    )
    what = "LoRA-only run" if condition == "none" else "run trained with a blank signal"
    return Companion(role, None, {}, f"No {what} of this recipe was given. `{command}` makes one.")

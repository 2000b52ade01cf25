"""How reports name tasks, runs, seeds and recipe values."""

from collections.abc import Sequence
from pathlib import Path

from modulate.interfaces.components import Reference
from modulate.report.recipes import ABSENT, format_value
from modulate.report.runs import ROLES, RunGroup

MEAN = "mean over tasks"
"""Name of the row of the overall accuracy."""

TRAINED_WITH = {
    "signal": "its signal",
    "blank": "a blank signal",
    "none": "no signal (LoRA only)",
}
"""Training condition → what such a run was trained with."""

LONGEST_VALUE = 120
"""Most characters of a recipe value in a cell; longer ones are cut."""


def task_label(task: str, reference: Reference) -> str:
    """Return the short name of a task, or its name if the data set has no short one."""
    return reference.labels.get(task, task)


def ordered_tasks(tasks: Sequence[str], reference: Reference) -> list[str]:
    """Return tasks in the order of the reference's labels; tasks without a label come last."""
    labeled = [task for task in reference.labels if task in tasks]
    return labeled + [task for task in tasks if task not in reference.labels]


def group_title(group: RunGroup) -> str:
    """Return the name of a group, with its role unless it was trained with its signal.

    Its main figure is named, too, unless that is accuracy.
    """
    notes = [] if group.condition == "signal" else [ROLES[group.condition]]
    if group.figure_name != "accuracy":
        notes.append(group.figure_name)
    return f"{group.name} ({', '.join(notes)})" if notes else group.name


def shared_figure(groups: Sequence[RunGroup]) -> str:
    """Return what the groups' main figures are called: ``Accuracy``."""
    names = {group.figure_name for group in groups}
    name = names.pop() if len(names) == 1 else "main figure"
    return name[0].upper() + name[1:]


def side_name(name: str) -> str:
    """Return how prose names one side of a comparison: ``the shuffled control``."""
    return f"the {name}" if name in ROLES.values() else f"the {name} control"


def seeds_text(seeds: Sequence[int]) -> str:
    """Return seeds for a cell: ``0, 1``."""
    return ", ".join(map(str, seeds))


def named_seeds(seeds: Sequence[int]) -> str:
    """Return seeds for a sentence: ``seeds 0, 1``."""
    return f"{'seed' if len(seeds) == 1 else 'seeds'} {seeds_text(seeds)}"


def short_value(value: object) -> str:
    """Return a recipe value for a cell, cut at :data:`LONGEST_VALUE` characters."""
    text = "absent" if value == ABSENT else format_value(value)
    return text if len(text) <= LONGEST_VALUE else f"{text[:LONGEST_VALUE]}…"


def slug(group: RunGroup) -> str:
    """Return the name of a group in characters that HTML ids, LaTeX labels and file names allow."""
    name = Path(group.name).name
    return "".join(c if c.isascii() and (c.isalnum() or c in "-_.") else "-" for c in name)

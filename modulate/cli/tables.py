"""Tables of results for the terminal."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from modulate.evaluation.predictions import FATES
from modulate.runs.run import Run

WIDTH = 110
"""Columns that seven conditions need beside the longest task name; a narrower terminal wraps lines,
which loses nothing.
"""


def show_metrics(run: Run, metrics: Mapping[str, Any]) -> None:
    """Print accuracies by task and condition, comparisons, counts, and last of all the run's
    folder.
    """
    console = Console()
    console.width = max(console.width, WIDTH)
    for k, names in enumerate(side_by_side(metrics)):
        console.print(
            accuracies(
                run.recipe.name if k == 0 else f"{run.recipe.name}, further conditions",
                metrics,
                names,
            )
        )
    if metrics["comparisons"]:
        console.print(comparisons(metrics["comparisons"]))
    signal = metrics["signal"]
    console.print(
        f"The signal reached {signal['samples_with_active_signal']} of {signal['samples']} samples"
        f" ({signal['active_steps']} steps)."
    )
    fate = FATES[run.recipe.evaluation.failed]
    for failure in metrics["failed"][:5]:
        console.print(
            f"Failed and {fate}: {failure['id']} ({failure['condition']}): {failure['error']}",
            markup=False,
        )
    if len(metrics["failed"]) > 5:
        console.print(
            f"… and {len(metrics['failed']) - 5} more failed samples; metrics.json lists all."
        )
    console.print(f"Run: {run.folder}", highlight=False, soft_wrap=True, markup=False)


def side_by_side(metrics: Mapping[str, Any]) -> list[list[str]]:
    """Divide the conditions among tables that fit, each with the main condition first."""
    main = metrics["condition"]
    left = WIDTH - max(map(len, metrics["tasks"]), default=0) - 8
    groups: list[list[str]] = [[main]]
    for name in metrics["controls"]:
        if sum(max(5, len(n)) + 3 for n in [*groups[-1], name]) > left:
            groups.append([main])
        groups[-1].append(name)
    return groups


def accuracies(title: str, metrics: Mapping[str, Any], names: Sequence[str]) -> Table:
    """Return tasks × the conditions ``names`` with accuracies in percent; below, the unweighted
    mean over tasks with its interval.
    """
    every = {metrics["condition"]: metrics, **metrics["controls"]}
    conditions = {name: every[name] for name in names}
    table = Table(title=escape(f"{title}: accuracy, %"), title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("Task", no_wrap=True)
    table.add_column("n", justify="right")
    for name in conditions:
        table.add_column(escape(name), justify="right")
    for task, own in metrics["tasks"].items():
        table.add_row(
            escape(task),
            str(own["n"]),
            *(_percent(c["tasks"][task]["accuracy"]) for c in conditions.values()),
        )
    table.add_section()
    table.add_row(
        "mean over tasks",
        str(metrics["n"]),
        *(_percent(c["overall"]) for c in conditions.values()),
        style="bold",
    )
    for i, end in enumerate(("from", "to")):
        table.add_row(
            f"95 % interval, {end}", "", *(_bound(c["interval"][i]) for c in conditions.values())
        )
    return table


def comparisons(found: Mapping[str, Any]) -> Table:
    """Return paired differences on the same samples, in points, with McNemar's p."""
    table = Table(title="Paired differences, points", title_justify="left", box=box.SIMPLE_HEAD)
    for name in ("Conditions", "difference", "95 % interval", "McNemar p"):
        table.add_column(name, justify="left" if name == "Conditions" else "right")
    for name, c in found.items():
        table.add_row(
            escape(name),
            f"{100 * c['difference']:+.1f}",
            _interval(c["interval"]),
            f"{c['mcnemar']['p']:.2g}",
        )
    return table


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"


def _bound(value: float | None) -> str:
    return "–" if value is None else _percent(value)


def _interval(bounds: tuple[float | None, float | None]) -> str:
    low, high = bounds
    return f"{_bound(low)} … {_bound(high)}"

"""Tables of a run's metrics for the terminal."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from modulate.evaluation.predictions import FAILED_RULES
from modulate.evaluation.text_scores import METRIC_NAMES, figure_name
from modulate.runs.run import Run

WIDTH = 110
"""Columns for seven conditions beside the longest task name; narrower terminals wrap lines."""

MAX_FAILURES = 5
"""Failed samples that are printed; metrics.json lists all of them."""


def show_metrics(run: Run, metrics: Mapping[str, Any]) -> None:
    """Print accuracies by task and condition, comparisons, failures, and last the run's folder."""
    console = Console()
    console.width = max(console.width, WIDTH)
    for index, names in enumerate(column_groups(metrics)):
        suffix = ", further conditions" if index else ""
        console.print(accuracies(f"{run.recipe.name}{suffix}", metrics, names))
    if metrics["comparisons"]:
        console.print(comparisons(metrics["comparisons"]))
    if metrics.get("scores"):
        console.print(text_scores(metrics))
    signal = metrics["signal"]
    console.print(
        f"The signal reached {signal['samples_with_active_signal']} of {signal['samples']} samples"
        f" ({signal['active_steps']} steps)."
    )
    if signal.get("samples_off_clock"):
        console.print(
            f"Warning: in {signal['samples_off_clock']} samples the whole signal lies outside the"
            " video: is it on another clock?",
            style="yellow",
        )
    _show_failures(console, run, metrics["failed"])
    console.print(f"Run: {run.folder}", highlight=False, soft_wrap=True, markup=False)


def _show_failures(console: Console, run: Run, failures: Sequence[Mapping[str, Any]]) -> None:
    """Print the first failed samples, and how the recipe's ``evaluation.failed`` treated them."""
    treatment = FAILED_RULES[run.recipe.evaluation.failed]
    for failure in failures[:MAX_FAILURES]:
        console.print(
            f"Failed and {treatment}: {failure['id']} ({failure['condition']}): {failure['error']}",
            markup=False,
        )
    if len(failures) > MAX_FAILURES:
        console.print(
            f"… and {len(failures) - MAX_FAILURES} more failed samples, {treatment};"
            " metrics.json lists all."
        )


def column_groups(metrics: Mapping[str, Any]) -> list[list[str]]:
    """Distribute the conditions over tables that fit the width, each with the main one first."""
    main = metrics["condition"]
    # 8 columns for the number of samples and the margins; 5 for a percentage, 3 between columns.
    available = WIDTH - max(map(len, metrics["tasks"]), default=0) - 8
    groups: list[list[str]] = [[main]]
    for name in metrics["controls"]:
        needed = sum(max(5, len(column)) + 3 for column in [*groups[-1], name])
        if needed > available:
            groups.append([main])
        groups[-1].append(name)
    return groups


def accuracies(title: str, metrics: Mapping[str, Any], names: Sequence[str]) -> Table:
    """Return a table of tasks × the conditions ``names``, main figures in percent.

    The last rows hold the unweighted mean over tasks and its interval.
    """
    every = {metrics["condition"]: metrics, **metrics["controls"]}
    conditions = [every[name] for name in names]
    figure = figure_name(metrics.get("metric", "accuracy"))
    table = Table(title=escape(f"{title}: {figure}, %"), title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("Task", no_wrap=True)
    table.add_column("n", justify="right")
    for name in names:
        table.add_column(escape(name), justify="right")
    for task, main in metrics["tasks"].items():
        cells = [_percent(condition["tasks"][task]["accuracy"]) for condition in conditions]
        table.add_row(escape(task), str(main["n"]), *cells)
    table.add_section()
    means = [_percent(condition["overall"]) for condition in conditions]
    table.add_row("mean over tasks", str(metrics["n"]), *means, style="bold")
    for index, end in enumerate(("from", "to")):
        bounds = [_bound(condition["interval"][index]) for condition in conditions]
        table.add_row(f"95 % interval, {end}", "", *bounds)
    return table


def comparisons(paired: Mapping[str, Any]) -> Table:
    """Return a table of paired differences on the same samples, in points, with a p-value.

    That of McNemar's test, or for graded scores of the test that swaps whole videos.
    """
    graded = all(found.get("p_permutation") is not None for found in paired.values())
    test = "p by video" if graded else "McNemar p"
    table = Table(title="Paired differences, points", title_justify="left", box=box.SIMPLE_HEAD)
    for name in ("Conditions", "difference", "95 % interval", test):
        table.add_column(name, justify="left" if name == "Conditions" else "right")
    for name, comparison in paired.items():
        p = comparison["p_permutation"] if graded else comparison["mcnemar"]["p"]
        table.add_row(
            escape(name),
            f"{100 * comparison['difference']:+.1f}",
            _interval(comparison["interval"]),
            f"{p:.2g}",
        )
    return table


def text_scores(metrics: Mapping[str, Any]) -> Table:
    """Return a table of conditions × the scores of generated text, in percent."""
    table = Table(title="Scores of the text, %", title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("Condition")
    for name in METRIC_NAMES.values():
        table.add_column(name, justify="right")
    for condition, figures in {metrics["condition"]: metrics, **metrics["controls"]}.items():
        cells = [_percent(figures["scores"][metric]["overall"]) for metric in METRIC_NAMES]
        table.add_row(escape(condition), *cells)
    return table


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"


def _bound(value: float | None) -> str:
    return "–" if value is None else _percent(value)


def _interval(bounds: tuple[float | None, float | None]) -> str:
    low, high = bounds
    return f"{_bound(low)} … {_bound(high)}"

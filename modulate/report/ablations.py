"""Table 2: signal runs by the one recipe key in which they differ from a base."""

from collections.abc import Sequence

from modulate.interfaces.components import Reference
from modulate.report.labels import seeds_text, short_value, task_label
from modulate.report.recipes import Differences, axis_label, differing_axes, find_base
from modulate.report.results import (
    Comparison,
    GroupResults,
    PairedTest,
    compare_groups,
    holm_adjusted,
)
from modulate.report.table import NONE, Table, interval, p_value, percent, points

SEVERAL = ""
"""Axis of runs that differ from the base in more than one key."""

COLUMNS = (
    "Setting",
    "Run",
    "Seeds",
    "accuracy",
    "95 % interval",
    "− base",
    "95 % interval",
    "p by video (Holm)",
    "largest task difference",
)

NOTE = (
    "Accuracy: mean over tasks, %. Differences are in percentage points, on the questions and seeds"
    " that both runs have. Holm adjustment covers the rows of this table. Axes are compared with"
    " every default of the recipes written out."
)


def ablations_table(
    results: Sequence[GroupResults], reference: Reference, base: str | None = None
) -> Table | None:
    """Return signal runs by the axis in which they differ from a base; None below two such runs.

    ``base``: name of the run or group to start from; by default the one from which most others
    differ in exactly one axis.
    """
    signal = [result for result in results if result.group.condition == "signal"]
    if len(signal) < 2:
        return None
    start = _base(signal, base)
    others = _by_axis(start, signal)
    comparisons = [
        compare_groups(result.group, "signal", start.group, "signal", start.group.name)
        for _, result, _ in others
    ]
    # Only rows with a test count for Holm's adjustment, so the tests are matched up again below.
    adjusted = iter(
        holm_adjusted([found.overall for found in comparisons if found.overall is not None])
    )
    base_row = ("", start.group.name, seeds_text(start.group.seeds), *_accuracy(start), *[NONE] * 4)
    rows: list[tuple[str, ...] | str] = [f"Base: {start.group.name}", base_row]
    heading = None
    for (axis, result, differs), comparison in zip(others, comparisons, strict=True):
        if axis != heading:
            rows.append(_heading(axis, differs))
            heading = axis
        test = None if comparison.overall is None else next(adjusted)
        rows.append(
            (
                _setting(axis, differs),
                result.group.name,
                seeds_text(result.group.seeds),
                *_accuracy(result),
                *_difference(test, comparison, reference),
            )
        )
    columns = tuple(start.group.figure_name if name == "accuracy" else name for name in COLUMNS)
    return Table("table2", "Ablations", columns, tuple(rows), (NOTE,), text_columns=3, number=2)


def _base(signal: Sequence[GroupResults], name: str | None) -> GroupResults:
    for result in signal:
        group = result.group
        if name is not None and name in (group.name, *(run.name for run in group.runs)):
            return result
    return signal[find_base([result.group.recipe for result in signal])]


def _by_axis(
    base: GroupResults, signal: Sequence[GroupResults]
) -> list[tuple[str, GroupResults, Differences]]:
    """Return (axis, results, differences) of all runs but the base, runs of one axis together.

    Axes are in order of appearance; runs that differ in several axes come last.
    """
    by_axis: dict[str, list[tuple[str, GroupResults, Differences]]] = {}
    for result in signal:
        differs = differing_axes(base.group.recipe, result.group.recipe)
        if differs:
            axis = next(iter(differs)) if len(differs) == 1 else SEVERAL
            by_axis.setdefault(axis, []).append((axis, result, differs))
    return [row for axis in sorted(by_axis, key=lambda a: a == SEVERAL) for row in by_axis[axis]]


def _heading(axis: str, differs: Differences) -> str:
    if axis == SEVERAL:
        return "Several axes at once"
    text = f"{axis_label(axis)} ({short_value(differs[axis][0])} in the base)"
    return text[0].upper() + text[1:]


def _setting(axis: str, differs: Differences) -> str:
    values = {key: short_value(value) for key, (_, value) in differs.items()}
    if axis != SEVERAL:
        return "; ".join(values.values())
    return "; ".join(f"{axis_label(key)} = {value}" for key, value in values.items())


def _accuracy(result: GroupResults) -> tuple[str, str]:
    score = result.main.overall
    return percent(score.accuracy), interval(score.low, score.high)


def _difference(
    test: PairedTest | None, comparison: Comparison, reference: Reference
) -> tuple[str, ...]:
    if test is None:
        return (comparison.why_not, NONE, NONE, NONE)
    tasks = comparison.tasks
    largest = max(tasks, key=lambda task: abs(tasks[task].difference))
    return (
        points(test.difference),
        interval(test.low, test.high, signed=True),
        p_value(test.p_grouped_holm),
        f"{points(tasks[largest].difference)} ({task_label(largest, reference)})",
    )

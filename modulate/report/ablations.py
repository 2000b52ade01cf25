"""Table 2: signal runs by the one axis of the recipe in which they differ from a base, whatever
axis that is.
"""

from collections.abc import Sequence

from modulate.interfaces.components import Reference
from modulate.report.figures import Comparison, Figures, Test, adjust, compare
from modulate.report.recipes import Differences, axes, axis_label, base_of
from modulate.report.table import NONE, Table, interval, p_value, percent, points
from modulate.report.tables import label, seeds_text, short


def table2(
    figures: Sequence[Figures], reference: Reference, base: str | None = None
) -> Table | None:
    """Return the ablations: signal runs by the one axis of the recipe in which they differ from a
    base; None when no two can be compared.

    ``base``: name of the entry to start from; by default the one that most others differ from in
    one axis only.
    """
    signal = [own for own in figures if own.entry.condition == "signal"]
    if len(signal) < 2:
        return None
    named = [
        i
        for i, own in enumerate(signal)
        if base is not None and base in (own.entry.name, *(run.name for run in own.entry.runs))
    ]
    first = signal[named[0] if named else base_of([own.entry.recipe for own in signal])]
    groups: dict[str, list[tuple[Figures, Differences]]] = {}
    for own in signal:
        differs = axes(first.entry.recipe, own.entry.recipe)
        if differs:
            groups.setdefault(next(iter(differs)) if len(differs) == 1 else "", []).append(
                (own, differs)
            )
    rows: list[tuple[str, ...] | str] = [
        f"Base: {first.entry.name}",
        (
            "",
            first.entry.name,
            seeds_text(first.entry.seeds),
            *_overall(first),
            NONE,
            NONE,
            NONE,
            NONE,
        ),
    ]
    together = [item for key in sorted(groups, key=lambda k: k == "") for item in groups[key]]
    compared = [
        compare(own.entry, "signal", first.entry, "signal", first.entry.name) for own, _ in together
    ]
    known = iter(adjust([c.overall for c in compared if c.overall is not None]))
    heading = None
    for (own, differs), comparison in zip(together, compared, strict=True):
        key = next(iter(differs)) if len(differs) == 1 else ""
        if key != heading:
            what = (
                f"{axis_label(key)} ({short(differs[key][0])} in the base)"
                if key
                else "several axes at once"
            )
            rows.append(what[0].upper() + what[1:])
            heading = key
        value = "; ".join(
            (f"{axis_label(k)} = " if not key else "") + short(b) for k, (_, b) in differs.items()
        )
        test = next(known) if comparison.overall is not None else None
        rows.append(
            (
                value,
                own.entry.name,
                seeds_text(own.entry.seeds),
                *_overall(own),
                *_against(test, comparison, reference),
            )
        )
    columns = (
        "Axis",
        "Run",
        "Seeds",
        "accuracy",
        "95 % interval",
        "− base",
        "95 % interval",
        "p by video, Holm",
        "largest on one task",
    )
    notes = (
        (
            "Accuracy: mean over tasks, %. Differences in points, on the questions and seeds that"
            " both have. Holm: over the rows. Axes come from the recipes, every default written"
            " out."
        ),
    )
    return Table("table2", "Table 2: ablations", columns, tuple(rows), notes, text_columns=3)


def _overall(own: Figures) -> tuple[str, str]:
    s = own.own.overall
    return percent(s.accuracy), interval(s.low, s.high)


def _against(test: Test | None, comparison: Comparison, reference: Reference) -> tuple[str, ...]:
    if test is None:
        return (comparison.why, NONE, NONE, NONE)
    task = max(comparison.tasks, key=lambda t: abs(comparison.tasks[t].difference))
    largest = f"{points(comparison.tasks[task].difference)} ({label(task, reference)})"
    return (
        points(test.difference),
        interval(test.low, test.high, signed=True),
        p_value(test.p_grouped_holm),
        largest,
    )

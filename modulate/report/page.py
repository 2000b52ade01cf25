"""The whole report: one self-contained page, the same tables as Markdown, and as LaTeX, one file
each.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import modulate
from modulate.errors import RecipeError, near_matches
from modulate.evaluation.predictions import FATES
from modulate.interfaces.components import Reference
from modulate.report import svg, tables
from modulate.report.ablations import table2
from modulate.report.failures import failures_table
from modulate.report.figures import Figures, figures_of, scores_of
from modulate.report.html import Child, Html, figure, page, table, tag
from modulate.report.runs import Entry, Recorded, entries
from modulate.report.table import Table, latex, markdown, plain
from modulate.utils.atomic_files import write_text


@dataclass(frozen=True)
class Report:
    """Everything that a report says. ``gallery``: its section as HTML, empty without; ``table2``
    None: fewer than two signal runs.
    """

    title: str
    figures: tuple[Figures, ...]
    reference: Reference
    summary: Table
    runs: Table
    table1: Table
    table2: Table | None
    failures: Table | None
    gallery: tuple[Html, ...] = ()

    @property
    def tables(self) -> list[Table]:
        """All tables in the order of the page."""
        found = [self.summary, self.runs, self.table1]
        for own in self.figures:
            found += [t for t in tables_of(own, self.reference) if t.rows]
        return [*found, *(t for t in (self.table2, self.failures) if t is not None)]


def report_of(runs: Sequence[Recorded], base: str | None = None) -> Report:
    """Compute a report's figures and tables. ``base``: name of the run that ablations start from.

    Raises :class:`RecipeError` when no run has that name.
    """
    given = entries(runs)
    if base is not None and base not in (
        names := [
            n
            for e in given
            if e.condition == "signal"
            for n in (e.name, *(run.name for run in e.runs))
        ]
    ):
        raise RecipeError(
            f"No run trained with its signal is called {base!r}, to start ablations from."
            f" {near_matches(base, names)}"
        )
    figures = tuple(figures_of(entry, given) for entry in given)
    reference = reference_of(given)
    title = f"Report on {given[0].name}" + (f" and {len(given) - 1} more" if len(given) > 1 else "")
    parts = (
        tables.summary(figures),
        tables.runs_table(given, figures),
        tables.table1(figures, reference),
    )
    return Report(
        title, figures, reference, *parts, table2(figures, reference, base), failures_table(given)
    )


def reference_of(given: Sequence[Entry]) -> Reference:
    """Return what the runs' data set knows of published results; of several data sets nothing, as
    their rows would stand in one table.
    """
    choices = {entry.recipe.data.name: entry.recipe.data for entry in given}
    if len(choices) > 1:
        return Reference()
    (choice,) = choices.values()
    dataset = choice.build("dataset")
    with choice.blame("dataset", "reference"):
        found: Reference = dataset.reference()
    return found


def tables_of(own: Figures, reference: Reference) -> list[Table]:
    """Return the tables of one entry."""
    found = [
        tables.tasks_table(own, reference),
        tables.conditions_table(own),
        tables.tests_table(own, reference),
    ]
    return found + ([tables.coverage_table(own)] if own.entry.condition == "signal" else [])


def write_report(report: Report, out: Path) -> list[Path]:
    """Write ``index.html``, ``report.md`` and a .tex file for each table into the folder; return
    their paths.
    """
    texts = {"index.html": as_html(report), "report.md": as_markdown(report)}
    for given in report.tables:
        name = given.name
        while (
            f"{name}.tex" in texts
        ):  # names of runs may differ in nothing but what a file's name cannot hold
            name += "-"
        texts[f"{name}.tex"] = latex(given)
    for name, text in texts.items():
        write_text(out / name, text)
    return [out / name for name in texts]


def as_markdown(report: Report) -> str:
    """Return the report as GitHub's Markdown: all tables, verdicts and notes, no pictures."""
    lines = [
        f"# {plain(report.title)}",
        "",
        f"Written by `modulate report`, version {modulate.__version__}.",
        "",
        markdown(report.summary),
    ]
    signal = [own for own in report.figures if own.entry.condition == "signal"]
    lines += [f"- {plain(own.entry.name)}: {plain(tables.verdict(own))}" for own in signal]
    lines += ["", markdown(report.runs), markdown(report.table1)]
    lines += [markdown(t) for t in (report.table2, report.failures) if t is not None]
    for own in report.figures:
        lines += [f"## {plain(own.entry.name)}", ""]
        lines += [f"- {plain(note)}" for note in tables.companions_notes(own)]
        lines += ["", *(markdown(t) for t in tables_of(own, report.reference) if t.rows)]
    return "\n".join(lines)


def as_html(report: Report) -> str:
    """Return the report as one page that needs nothing but itself."""
    signal = [own for own in report.figures if own.entry.condition == "signal"]
    verdicts = (
        tag(
            "ul",
            *(
                tag("li", tag("strong", own.entry.name), ": ", tables.verdict(own))
                for own in signal
            ),
        )
        if signal
        else None
    )
    first = [i for i, own in enumerate(report.figures) if own.entry.condition == "signal"]
    parts: list[Child] = [
        tag("h1", report.title),
        tag(
            "p",
            f"Written by modulate report, version {modulate.__version__}. Every figure is computed"
            " from the runs' predictions, sample by sample.",
            class_="soft",
        ),
        _contents(report),
        tag("h2", "In short", id="short"),
        table(report.summary, bold=first),
        verdicts,
        tag("h2", "The runs", id="the-runs"),
        table(report.runs),
        tag("h2", "Accuracy by task", id="one"),
        table(
            report.table1,
            bold=[
                i
                for i in range(len(report.table1.rows))
                if _is_signal(report.table1.rows[i], signal)
            ],
        ),
        *(
            [tag("h2", "Ablations", id="two"), table(report.table2, bold=[1])]
            if report.table2
            else []
        ),
        *(
            [tag("h2", "Failed samples", id="failed"), table(report.failures)]
            if report.failures
            else [tag("p", "No sample failed in any run.", id="failed")]
        ),
        *(
            part
            for i, own in enumerate(report.figures)
            for part in _entry(i, own, report.reference)
        ),
        *(
            [tag("h2", "Gallery", id="gallery", class_="new"), *report.gallery]
            if report.gallery
            else []
        ),
    ]
    return page(report.title, *parts)


def _is_signal(row: object, signal: Sequence[Figures]) -> bool:
    return isinstance(row, tuple) and row[0] in {own.entry.name for own in signal}


def _contents(report: Report) -> Html:
    links = [("short", "In short"), ("the-runs", "The runs"), ("one", "Table 1: accuracy by task")]
    links += [("two", "Table 2: ablations")] if report.table2 else []
    links += [
        ("failed", "Failed samples"),
        *((f"run-{i}", own.entry.name) for i, own in enumerate(report.figures)),
    ]
    links += [("gallery", "Gallery")] if report.gallery else []
    return tag(
        "nav",
        tag("ul", *(tag("li", tag("a", text, href=f"#{target}")) for target, text in links)),
        aria_label="Contents",
    )


def _entry(number: int, own: Figures, reference: Reference) -> list[Child]:
    """One run's part of the page."""
    entry = own.entry
    by_task, conditions, tests, *rest = tables_of(own, reference)
    failed = sum(len(run.failed) for run in entry.runs)
    fate = FATES[entry.recipe.evaluation.failed]
    parts: list[Child] = [tag("h2", entry.name, id=f"run-{number}", class_="new")]
    parts.append(
        tag(
            "p",
            f"Trained with {tables.TRAINED[entry.condition]};"
            f" {tables.seeds_text(entry.seeds, True)}{_per_seed(entry)}.",
        )
    )
    if entry.condition == "signal":
        parts.append(tag("p", tables.verdict(own)))
        parts.append(
            tag(
                "ul",
                *(
                    tag("li", _note(note, companion.entry is None))
                    for note, (companion, _) in zip(
                        tables.companions_notes(own), own.companions, strict=True
                    )
                ),
            )
        )
    if failed:
        parts.append(
            tag(
                "p",
                f"{failed} {'answer' if failed == 1 else 'answers'} failed, {fate}; see ",
                tag("a", "failed samples", href="#failed"),
                ".",
                class_="warn",
            )
        )
    parts += [
        _bars(own, reference),
        table(by_task, bold=[len(by_task.rows) - 1]),
        table(conditions, bold=[0]),
    ]
    parts += [table(tests)] if tests.rows else []
    parts += [table(coverage) for coverage in rest]
    return [*parts, *_curves(entry)]


def _note(note: str, missing: bool) -> Html:
    return tag("span", note, class_="warn" if missing else None)


def _per_seed(entry: Entry) -> str:
    if len(entry.runs) == 1:
        return ""
    each = [
        scores_of(Entry(run.name, (run,)), entry.condition).overall.accuracy for run in entry.runs
    ]
    return f", with mean accuracy {', '.join(f'{100 * a:.1f}' for a in each)} %; pooled below"


def _bars(own: Figures, reference: Reference) -> Html:
    """Bars by task: the run, its companions, and the shuffled control, or where there is none what
    else it was evaluated under.
    """
    entry = own.entry
    series = [(f"{entry.name}, {entry.condition}", own.own)]
    series += [
        (f"{c.role}: {c.entry.name}", scores_of(c.entry, c.entry.condition))
        for c, t in own.companions
        if c.entry is not None and t is not None
    ]
    others = [
        name
        for name in ("shuffled", "none", "host")
        if name in own.scores and name != entry.condition
    ]
    series += [(f"control: {name}", own.scores[name]) for name in others[: max(1, 3 - len(series))]]
    tasks = tables.ordered(list(own.own.tasks), reference)
    groups = []
    for task in [*tasks, None]:
        found = [
            (i, s.overall if task is None else s.tasks.get(task)) for i, (_, s) in enumerate(series)
        ]
        groups.append(
            (
                task or "mean over tasks",
                [svg.Bar(i, s.accuracy, s.low, s.high) for i, s in found if s is not None],
            )
        )
    chance = [own.own.tasks[t].chance for t in tasks] + [own.own.overall.chance]
    alt = f"Accuracy by task of {entry.name}; the numbers are in the table below."
    picture = svg.bars(groups, [name for name, _ in series], alt, chance)
    return figure(
        picture,
        "Accuracy by task with 95 % intervals, whole videos resampled. Dashed: guessing among the"
        " options offered.",
    )


def _curves(entry: Entry) -> list[Child]:
    """Plots of everything that the training log holds, a line for each seed."""
    logs = [(run, _by_step(run)) for run in entry.runs]
    keys = dict.fromkeys(key for _, (points, _) in logs for key in points)
    plots = []
    windows = set()
    for key in keys:
        lines = []
        for run, (points, _) in logs:
            if key in points:
                thin, size = svg.thinned(points[key])
                windows.add(size)
                lines.append(svg.Curve(f"seed {run.recipe.seed}", thin))
        plots.append(svg.curves(key.replace("_", " "), lines, logs[0][1][1]))
    if not plots:
        return [tag("p", "There is no training log.", class_="soft")]
    means = f" Each point is a mean over up to {max(windows)} steps." if max(windows) > 1 else ""
    seeds = ", ".join(
        f"{run.recipe.seed} {('blue', 'orange', 'green', 'gray', 'purple')[i % 5]}"
        for i, (run, _) in enumerate(logs)
    )
    caption = (
        f"Training of {entry.name}, over optimizer steps; seeds: {seeds}. Dashed: where a stage"
        f" begins.{means}"
    )
    return [
        tag(
            "figure",
            tag("div", *plots, class_="panels"),
            tag("figcaption", caption),
            class_="curves",
        )
    ]


def _by_step(run: Recorded) -> tuple[dict[str, list[tuple[float, float]]], list[tuple[str, float]]]:
    """Return the log's numbers as (step over all stages, value), by key, and the first step of each
    stage.
    """
    points: dict[str, list[tuple[float, float]]] = {}
    stages: list[tuple[str, float]] = []
    offset = last = 0.0
    for line in run.log:
        name = line.stage
        step = float(line.step)
        if not stages or stages[-1][0] != name:
            offset = last
            stages.append((name, offset))
        last = offset + step
        for key, value in line.curves().items():
            points.setdefault(key, []).append((last, value))
    return points, stages

"""The whole report: one self-contained page, and its tables as Markdown and as LaTeX files."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import modulate
from modulate.errors import RecipeError, near_matches
from modulate.evaluation.predictions import FAILED_RULES
from modulate.interfaces.components import Reference
from modulate.report import plots
from modulate.report.ablations import ablations_table
from modulate.report.html import Child, Html, page, table, tag
from modulate.report.labels import TRAINED_WITH, group_title, named_seeds
from modulate.report.overview_tables import (
    accuracy_table,
    failures_table,
    runs_table,
    summary_table,
)
from modulate.report.results import GroupResults, compute_results, scores_under
from modulate.report.run_tables import (
    conditions_table,
    coverage_table,
    paired_tests_table,
    tasks_table,
    text_table,
)
from modulate.report.runs import EvaluatedRun, RunGroup, group_runs
from modulate.report.table import Table, latex, markdown, plain
from modulate.report.verdict import companion_notes, verdict
from modulate.utils.atomic_files import write_text


@dataclass(frozen=True)
class Report:
    """Everything that a report says.

    ``ablations``: None below two signal runs. ``failures``: None when nothing failed. ``gallery``:
    its section as HTML, empty without one.
    """

    title: str
    results: tuple[GroupResults, ...]
    reference: Reference
    summary: Table
    runs: Table
    accuracies: Table
    ablations: Table | None
    failures: Table | None
    gallery: tuple[Html, ...] = ()

    @property
    def signal_results(self) -> list[GroupResults]:
        """Results of the runs that were trained with their signal."""
        return [result for result in self.results if result.group.condition == "signal"]

    @property
    def tables(self) -> list[Table]:
        """All tables in the order of the page."""
        tables = [self.summary, self.runs, self.accuracies]
        for result in self.results:
            tables += run_tables(result, self.reference)
        return [*tables, *(found for found in (self.ablations, self.failures) if found is not None)]


def build_report(runs: Sequence[EvaluatedRun], base: str | None = None) -> Report:
    """Compute the numbers and tables of a report.

    ``base``: name of the run that ablations start from. Raises :class:`RecipeError` when no signal
    run has that name.
    """
    groups = group_runs(runs)
    if base is not None:
        _check_base(base, groups)
    results = tuple(compute_results(group, groups) for group in groups)
    reference = published_results(groups)
    title = f"Report on {groups[0].name}"
    if len(groups) > 1:
        title += f" and {len(groups) - 1} more"
    return Report(
        title,
        results,
        reference,
        summary=summary_table(results),
        runs=runs_table(results),
        accuracies=accuracy_table(results, reference),
        ablations=ablations_table(results, reference, base),
        failures=failures_table(groups),
    )


def _check_base(base: str, groups: Sequence[RunGroup]) -> None:
    names = [
        name
        for group in groups
        if group.condition == "signal"
        for name in (group.name, *(run.name for run in group.runs))
    ]
    if base not in names:
        raise RecipeError(
            f"The base of the ablations, {base!r}, is not the name of a given run that was trained"
            f" with its signal. {near_matches(base, names)}"
        )


def published_results(groups: Sequence[RunGroup]) -> Reference:
    """Return the published results of the runs' data set.

    Runs on several data sets get none, because all rows would stand in one table.
    """
    datasets = {group.recipe.data.name: group.recipe.data for group in groups}
    if len(datasets) > 1:
        return Reference()
    (spec,) = datasets.values()
    dataset = spec.build("dataset")
    with spec.blame("dataset", "reference"):
        reference: Reference = dataset.reference()
    return reference


def run_tables(result: GroupResults, reference: Reference) -> list[Table]:
    """Return the tables of one group of runs; empty ones are left out."""
    tables = [
        tasks_table(result, reference),
        conditions_table(result),
        paired_tests_table(result, reference),
    ]
    tables.append(text_table(result))
    if result.group.condition == "signal":
        tables.append(coverage_table(result))
    return [found for found in tables if found.rows]


def write_report(report: Report, out: Path) -> list[Path]:
    """Write ``index.html``, ``report.md`` and a .tex file for each table; return their paths."""
    texts = {"index.html": as_html(report), "report.md": as_markdown(report)}
    for content in report.tables:
        name = content.name
        # Names of runs may differ only in characters that file names cannot hold.
        while f"{name}.tex" in texts:
            name += "-"
        texts[f"{name}.tex"] = latex(content)
    for name, text in texts.items():
        write_text(out / name, text)
    return [out / name for name in texts]


# --- Markdown


def as_markdown(report: Report) -> str:
    """Return the report as GitHub's Markdown: all tables, verdicts and notes, no pictures."""
    lines = [
        f"# {plain(report.title)}",
        "",
        f"Written by `modulate report`, version {modulate.__version__}.",
        "",
        markdown(report.summary),
    ]
    for result in report.signal_results:
        lines.append(f"- {plain(result.group.name)}: {plain(verdict(result))}")
    lines += ["", markdown(report.runs), markdown(report.accuracies)]
    for content in (report.ablations, report.failures):
        if content is not None:
            lines.append(markdown(content))
    for result in report.results:
        lines += [f"## {plain(result.group.name)}", ""]
        lines += [f"- {plain(note)}" for note in companion_notes(result)]
        lines += ["", *map(markdown, run_tables(result, report.reference))]
    return "\n".join(lines)


# --- HTML


def as_html(report: Report) -> str:
    """Return the report as one self-contained page."""
    parts: list[Child] = [
        tag("h1", report.title),
        tag(
            "p",
            f"Written by modulate report, version {modulate.__version__}. Every figure is computed"
            " from the runs' predictions, sample by sample.",
            class_="soft",
        ),
        _contents(report),
        *_overview(report),
    ]
    for number, result in enumerate(report.results):
        parts += _run_section(number, result, report.reference)
    if report.gallery:
        parts += [tag("h2", "Gallery", id="gallery", class_="new"), *report.gallery]
    return page(report.title, *parts)


def _contents(report: Report) -> Html:
    by_task = _by_task(report)
    links = [
        ("summary-section", "Summary"),
        ("runs-section", "Runs"),
        ("accuracies-section", f"Table 1: {by_task[0].lower()}{by_task[1:]}"),
    ]
    if report.ablations:
        links.append(("ablations-section", "Table 2: ablations"))
    links.append(("failed", "Failed samples"))
    for number, result in enumerate(report.results):
        links.append((f"run-{number}", result.group.name))
    if report.gallery:
        links.append(("gallery", "Gallery"))
    items = [tag("li", tag("a", text, href=f"#{target}")) for target, text in links]
    return tag("nav", tag("ul", *items), aria_label="Contents")


def _by_task(report: Report) -> str:
    return report.accuracies.title.removesuffix(", %")


def _overview(report: Report) -> list[Child]:
    """Return the sections on all runs together."""
    signal_rows = [
        i for i, result in enumerate(report.results) if result.group.condition == "signal"
    ]
    signal_names = {group_title(result.group) for result in report.signal_results}
    verdicts = [
        tag("li", tag("strong", result.group.name), ": ", verdict(result))
        for result in report.signal_results
    ]
    parts: list[Child] = [
        tag("h2", "Summary", id="summary-section"),
        table(report.summary, bold=signal_rows),
        tag("ul", *verdicts) if verdicts else None,
        tag("h2", "Runs", id="runs-section"),
        table(report.runs),
        tag("h2", _by_task(report), id="accuracies-section"),
        table(
            report.accuracies,
            bold=[
                i
                for i, row in enumerate(report.accuracies.rows)
                if isinstance(row, tuple) and row[0] in signal_names
            ],
        ),
    ]
    if report.ablations:
        parts.append(tag("h2", "Ablations", id="ablations-section"))
        parts.append(table(report.ablations, bold=[1]))
    if report.failures:
        parts += [tag("h2", "Failed samples", id="failed"), table(report.failures)]
    else:
        parts.append(tag("p", "No sample failed in any run.", id="failed"))
    return parts


def _run_section(number: int, result: GroupResults, reference: Reference) -> list[Child]:
    """Return the section of one group of runs."""
    group = result.group
    trained = f"Trained with {TRAINED_WITH[group.condition]}; {named_seeds(group.seeds)}"
    parts: list[Child] = [
        tag("h2", group.name, id=f"run-{number}", class_="new"),
        tag("p", f"{trained}{_accuracy_per_seed(group)}."),
    ]
    if group.condition == "signal":
        parts.append(tag("p", verdict(result)))
        parts.append(_companion_list(result))
    parts.append(_failed_note(group))
    parts.append(plots.accuracy_bars(result, reference))
    tasks, conditions, *others = run_tables(result, reference)
    # The last row of the tasks is their mean; the first condition is the run's own.
    parts.append(table(tasks, bold=[len(tasks.rows) - 1]))
    parts.append(table(conditions, bold=[0]))
    parts += map(table, others)
    return [*parts, *plots.training_curves(group)]


def _accuracy_per_seed(group: RunGroup) -> str:
    if len(group.runs) == 1:
        return ""
    alone = [RunGroup(run.name, (run,)) for run in group.runs]
    scores = [scores_under(run, group.condition).overall for run in alone]
    accuracies = ", ".join(f"{100 * score.accuracy:.1f}" for score in scores)
    return f", with mean {group.figure_name} {accuracies} %; pooled below"


def _companion_list(result: GroupResults) -> Html:
    items = []
    for note, (companion, _) in zip(companion_notes(result), result.companions, strict=True):
        class_ = "warn" if companion.group is None else None
        items.append(tag("li", tag("span", note, class_=class_)))
    return tag("ul", *items)


def _failed_note(group: RunGroup) -> Html | None:
    failed = sum(len(run.failed) for run in group.runs)
    if not failed:
        return None
    return tag(
        "p",
        f"{failed} failed {'answer' if failed == 1 else 'answers'},"
        f" {FAILED_RULES[group.recipe.evaluation.failed]}; see ",
        tag("a", "failed samples", href="#failed"),
        ".",
        class_="warn",
    )

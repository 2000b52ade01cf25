"""Tables over all runs of a report: summary, components, accuracies by task, failures."""

from collections.abc import Sequence

from modulate.interfaces.components import Reference
from modulate.report.labels import (
    TRAINED_WITH,
    group_title,
    ordered_tasks,
    seeds_text,
    shared_figure,
    task_label,
)
from modulate.report.results import Comparison, GroupResults
from modulate.report.runs import ROLES, EvaluatedRun, RunGroup
from modulate.report.table import NONE, Table, interval, percent, points

SUMMARY_NOTES = (
    "Accuracy is the unweighted mean over tasks. Brackets: 95 % cluster-bootstrap interval (whole"
    " videos resampled). Differences are paired, in percentage points; a gain is called clear when"
    " its interval lies above zero.",
    "A gain over the LoRA-only run may come from the modulator's second look at the frames. Only"
    " the gain over both the blank-trained run and the shuffled signal is attributable to the"
    " signal.",
)

_SKIP_REASONS = {
    "not_finite": "loss or gradients were not finite",
    "scaled": "the fp16 loss scale was too large and was lowered",
    "no_samples": "all of their samples failed",
}
"""Key of ``skipped`` in state.json → what it means."""


# --- summary


def summary_table(results: Sequence[GroupResults]) -> Table:
    """Return each run's accuracy and, for signal runs, the gains that a signal must explain."""
    rows = []
    for result in results:
        group = result.group
        score = result.main.overall
        is_signal = group.condition == "signal"
        rows.append(
            (
                group.name,
                TRAINED_WITH[group.condition],
                f"{percent(score.accuracy)} {interval(score.low, score.high)}{_figure(group)}",
                *(_gains(result) if is_signal else ("", "", "")),
            )
        )
    figure = shared_figure([result.group for result in results])
    columns = (
        "Run",
        "Trained with",
        f"{figure}, %",
        "gain over LoRA-only run",
        "gain over blank-trained run",
        "gain over shuffled signal",
    )
    return Table(
        "summary",
        f"{figure}, and gains over the runs and the control that isolate the signal",
        columns,
        tuple(rows),
        SUMMARY_NOTES,
        text_columns=2,
    )


def _figure(group: RunGroup) -> str:
    return "" if group.figure_name == "accuracy" else f" ({group.figure_name})"


def _gains(result: GroupResults) -> tuple[str, ...]:
    over_companions = [_gain_over_companion(result, role) for role in ROLES.values()]
    shuffled = next((found for found in result.controls if found.second == "shuffled"), None)
    return (*over_companions, "not evaluated" if shuffled is None else _gain(shuffled))


def _gain_over_companion(result: GroupResults, role: str) -> str:
    comparison = next(found for companion, found in result.companions if companion.role == role)
    if comparison is not None:
        return _gain(comparison)
    without_lora = role == ROLES["none"] and result.group.recipe.lora is None
    return "no LoRA in the recipe" if without_lora else "no such run given"


def _gain(comparison: Comparison) -> str:
    test = comparison.overall
    if test is None:
        return comparison.why_not
    return f"{points(test.difference)} {interval(test.low, test.high, signed=True)}"


# --- what each run is


def runs_table(results: Sequence[GroupResults]) -> Table:
    """Return the components and the training of each run; notes say where the runs lie."""
    rows = [_run_row(result) for result in results]
    columns = (
        "Run",
        "Seeds",
        "Trained with",
        "Host",
        "Modulation",
        "LoRA",
        "Data",
        "Steps",
        "Answers",
    )
    notes = tuple(
        f"{result.group.name}: {'; '.join(map(_provenance, result.group.runs))}."
        for result in results
    )
    return Table("runs", "Components of each run", columns, tuple(rows), notes, text_columns=7)


def _run_row(result: GroupResults) -> tuple[str, ...]:
    group = result.group
    steps = [run.training.steps for run in group.runs]
    return (
        group.name,
        seeds_text(group.seeds),
        TRAINED_WITH[group.condition],
        group.recipe.host.name,
        _modulation(group),
        f"rank {group.recipe.lora.rank}" if group.recipe.lora else "none",
        group.recipe.data.name,
        " / ".join(NONE if count is None else str(count) for count in steps),
        str(result.main.overall.n),
    )


def _modulation(group: RunGroup) -> str:
    if group.condition == "none":
        return NONE
    recipe = group.recipe
    layers = ", ".join(map(str, recipe.injection.layers))
    modules = f"{recipe.encoder.name} → {recipe.modulator.name}"
    return f"{modules}, layers {layers}, {recipe.backbone.name}"


def _provenance(run: EvaluatedRun) -> str:
    """Return where a run lies, with the version and the commit that made it."""
    environment = run.run.read_environment()
    version = environment.versions.get("modulate")
    if not version:
        return str(run.run.folder)
    commit = ""
    git = environment.git
    if git and git.commit:
        commit = f" at {git.commit[:10]}{', modified' if git.modified else ''}"
    return f"{run.run.folder} (modulate {version}{commit})"


# --- accuracy by task


def accuracy_table(results: Sequence[GroupResults], reference: Reference) -> Table:
    """Return accuracies by task: our runs, then published ones where the data set has any."""
    evaluated = dict.fromkeys(task for result in results for task in result.main.tasks)
    tasks = ordered_tasks(list(evaluated), reference)
    published = {task for row in reference.rows for task in row.accuracies}
    # Published means over other tasks than ours get a column of their own.
    own_mean = bool(reference.rows) and published != set(tasks)
    rows: list[tuple[str, ...] | str] = []
    if reference.rows:
        rows.append("Ours, on our test split, with the 95 % interval of the mean")
    rows += [_our_row(result, tasks, own_mean) for result in results]
    if reference.rows:
        sources = dict.fromkeys(row.source for row in reference.rows)
        rows.append(f"Published: {'; '.join(sources)}")
    rows += _published_rows(reference, tasks, own_mean)
    columns = (
        "Run",
        *(task_label(task, reference) for task in tasks),
        "mean",
        "95 % interval",
        *([f"mean of all {len(published)}"] if own_mean else []),
    )
    notes = _accuracy_notes(results, reference, tasks)
    title = f"{shared_figure([result.group for result in results])} by task, %"
    return Table("table1", title, columns, tuple(rows), tuple(notes), number=1)


def _our_row(result: GroupResults, tasks: Sequence[str], own_mean: bool) -> tuple[str, ...]:
    scores = result.main
    by_task = [scores.tasks.get(task) for task in tasks]
    overall = scores.overall
    return (
        group_title(result.group),
        *(NONE if score is None else percent(score.accuracy) for score in by_task),
        # A mean over some of the tasks would be compared with means over all of them.
        percent(overall.accuracy) if len(scores.tasks) == len(tasks) else NONE,
        interval(overall.low, overall.high),
        *([NONE] if own_mean else []),
    )


def _published_rows(
    reference: Reference, tasks: Sequence[str], own_mean: bool
) -> list[tuple[str, ...]]:
    rows = []
    for row in reference.rows:
        known = [row.accuracies[task] for task in tasks if task in row.accuracies]
        mean = percent(sum(known) / len(tasks)) if len(known) == len(tasks) else NONE
        overall = percent(row.overall)
        rows.append(
            (
                row.name,
                *(percent(row.accuracies.get(task)) for task in tasks),
                *((mean, NONE, overall) if own_mean else (overall, NONE)),
            )
        )
    return rows


def _accuracy_notes(
    results: Sequence[GroupResults], reference: Reference, tasks: Sequence[str]
) -> list[str]:
    notes = []
    if reference.notes:
        notes.append(f"Compare with care: {' '.join(reference.notes)}")
    labels = [f"{reference.labels[task]} {task}" for task in tasks if task in reference.labels]
    if labels:
        notes.append(f"Tasks: {'; '.join(labels)}.")
    if reference.rows:
        first = results[0]
        scores = first.main.tasks
        counts = ", ".join(
            f"{task_label(task, reference)} {scores[task].n if task in scores else NONE}"
            for task in tasks
        )
        notes.append(
            f"Answers per task of {first.group.name}, seeds pooled: {counts}. Published rows report"
            " no counts."
        )
    return notes


# --- failures


def failures_table(groups: Sequence[RunGroup], most: int = 500) -> Table | None:
    """Return failed samples and what training skipped; None when there is neither.

    ``most``: rows to show; a note says how many more there are.
    """
    runs = [run for group in groups for run in group.runs]
    evaluated = [
        (run.name, record.id, record.condition, record.error or "")
        for run in runs
        for record in run.failed
    ]
    trained = [
        (run.name, sample, "training", error)
        for run in runs
        for sample, error in run.training.failed.items()
    ]
    notes = []
    if evaluated:
        notes.append(_how_scored(groups))
    if trained:
        notes.append("Samples that failed in training were left out of their optimizer step.")
    notes += [note for run in runs for note in _skipped_in_training(run)]
    rows = evaluated + trained
    if not rows and not notes:
        return None
    if len(rows) > most:
        notes.append(
            f"… and {len(rows) - most} more; metrics.json and state.json of each run list all."
        )
    return Table(
        "failures",
        f"Failed samples: {len(rows)}",
        ("Run", "Sample", "Condition", "Error"),
        tuple(rows[:most]),
        tuple(notes),
        text_columns=4,
    )


def _how_scored(groups: Sequence[RunGroup]) -> str:
    with_failures = [group for group in groups if any(run.failed for run in group.runs)]
    excluded = [
        group.name for group in with_failures if group.recipe.evaluation.failed == "left_out"
    ]
    if not excluded:
        return "Failed samples count as wrong."
    others = " All others count as wrong." if len(excluded) < len(with_failures) else ""
    return (
        f"Failed samples of {', '.join(excluded)} are excluded from all figures, under every"
        f" condition (evaluation.failed: left_out).{others}"
    )


def _skipped_in_training(run: EvaluatedRun) -> list[str]:
    """Return notes on steps and samples that training skipped without an error."""
    notes = []
    for reason, steps in run.training.skipped.items():
        subject = "1 training step was" if steps == 1 else f"{steps} training steps were"
        notes.append(f"{run.name}: {subject} skipped: {_SKIP_REASONS.get(reason, reason)}.")
    samples = run.training.left_out
    if samples:
        subject = "1 training sample was" if samples == 1 else f"{samples} training samples were"
        notes.append(
            f"{run.name}: {subject} skipped because of an empty signal (training.empty: skip)."
        )
    for file, rows in run.training.skipped_rows.items():
        subject = "1 row" if rows == 1 else f"{rows} rows"
        notes.append(
            f"{run.name}: the data set skipped {subject} of {file} that cannot be used, in training"
            " and evaluation."
        )
    return notes

"""Tables of one run, or of one group of seeds: tasks, conditions, paired tests, coverage."""

from collections.abc import Sequence

from modulate.config.sections import BUILT_IN
from modulate.interfaces.components import Reference
from modulate.interfaces.multi_signal import controls_of
from modulate.interfaces.signal import COMMON_CONTROLS
from modulate.report.labels import MEAN, named_seeds, ordered_tasks, side_name, slug
from modulate.report.results import (
    Comparison,
    GroupResults,
    PairedTest,
    Score,
    Scores,
    holm_adjusted,
    scores_under,
)
from modulate.report.runs import ROLES, RunGroup
from modulate.report.table import NONE, Table, interval, p_value, percent, points

TESTED = (*ROLES.values(), *COMMON_CONTROLS)
"""What a signal run is tested against task by task: companions, and controls of every signal."""

ALPHA = 0.05
"""Adjusted p-value above which a task counts as showing no difference."""

CONDITIONS_NOTE = (
    "Differences are in percentage points. Holm adjustment covers the rows of this table. p by"
    " video: randomization test that swaps the two conditions for whole videos, so it stays valid"
    " when questions share videos or seeds. Differences weight tasks equally; p-values weight"
    " answers equally."
)

TESTS_NOTE = (
    "First only, second only: answers that are correct under just one of the two. McNemar p is"
    " exact and treats answers as independent, including those of several seeds to one question."
    " p by video does not: it swaps the two conditions for whole videos. Holm adjustment covers the"
    " tasks of one comparison. Detectable: smallest true difference that McNemar's test (α = 0.05,"
    " unadjusted) detects with 80 % power, given the number of distinct questions and the observed"
    " discordance. ≥: no difference is detectable at that discordance; the figure is the bound"
    " reached when all changes go one way. Questions that share videos require larger differences."
    " Mean differences and their intervals weight tasks equally; tests over several tasks weight"
    " answers equally."
)


# --- tasks


def tasks_table(result: GroupResults, reference: Reference) -> Table:
    """Return accuracy by task with exact counts, beside that of companions and controls."""
    # A list, not a dict: a condition of a recipe's own may be called like a companion.
    beside: list[tuple[str, Scores]] = []
    for companion, comparison in result.companions:
        group = companion.group
        if group is not None and comparison is not None:
            beside.append((companion.role, scores_under(group, group.condition)))
    for condition, scores in result.scores.items():
        if condition != result.group.condition:
            beside.append((condition, scores))
    rows = []
    for task in [*ordered_tasks(list(result.main.tasks), reference), None]:
        score = result.main.of(task)
        assert score is not None
        rows.append(
            (
                task or MEAN,
                f"{score.correct}/{score.n}",
                percent(score.accuracy),
                interval(score.low, score.high),
                percent(score.chance),
                *(_accuracy(scores.of(task)) for _, scores in beside),
            )
        )
    names = (name for name, _ in beside)
    columns = ("Task", "correct/n", "accuracy", "95 % interval", "chance", *names)
    main = result.group
    title = f"{main.name}: accuracy by task, %"
    return Table(f"tasks-{slug(main)}", title, columns, tuple(rows))


def _accuracy(score: Score | None) -> str:
    return NONE if score is None else percent(score.accuracy)


# --- conditions


def conditions_table(result: GroupResults) -> Table:
    """Return every condition with its interval and its difference from the main condition."""
    group = result.group
    meanings = condition_meanings(group)
    tests = [comparison.overall for comparison in result.controls]
    # Only controls with a test count for Holm's adjustment, so they are matched up again below.
    adjusted = iter(holm_adjusted([test for test in tests if test is not None]))
    main = _condition_cells(group.condition, meanings, result.main.overall)
    rows = [(*main, *[NONE] * 5)]
    for comparison in result.controls:
        condition = comparison.second
        cells = _condition_cells(condition, meanings, result.scores[condition].overall)
        test = None if comparison.overall is None else next(adjusted)
        rows.append((*cells, *_difference_cells(test, comparison.why_not)))
    columns = (
        "Condition",
        "Meaning",
        "n",
        "accuracy",
        "95 % interval",
        f"{group.condition} − condition",
        "95 % interval",
        "McNemar p",
        "McNemar p (Holm)",
        "p by video",
    )
    notes = [
        f"{name}: evaluated, and compared, for {named_seeds(group.seeds_of(name))} only."
        for name in group.conditions
        if group.seeds_of(name) != group.seeds
    ]
    return Table(
        f"conditions-{slug(group)}",
        f"{group.name}: accuracy under every condition, mean over tasks, %",
        columns,
        tuple(rows),
        (*notes, CONDITIONS_NOTE),
        text_columns=2,
    )


def _condition_cells(name: str, meanings: dict[str, str], score: Score) -> tuple[str, ...]:
    return (
        name,
        meanings.get(name, "the bare host, given the signal in its input"),
        str(score.n),
        percent(score.accuracy),
        interval(score.low, score.high),
    )


def _difference_cells(test: PairedTest | None, why_not: str) -> tuple[str, ...]:
    if test is None:
        return (why_not or NONE, NONE, NONE, NONE, NONE)
    return (
        points(test.difference),
        interval(test.low, test.high, signed=True),
        p_value(test.p),
        p_value(test.p_holm),
        p_value(test.p_grouped),
    )


def condition_meanings(group: RunGroup) -> dict[str, str]:
    """Return what each condition means: built-in ones, and controls by their docstring.

    A control's docstring begins with ``Control: <what the signal is>.``
    """
    meanings = {}
    for name, control in controls_of(group.recipe.signal).items():
        paragraph = (control.__doc__ or "").strip().partition("\n\n")[0]
        text = " ".join(paragraph.split())
        meanings[name] = text.removeprefix("Control: ").removesuffix(".")
    return meanings | BUILT_IN


# --- paired tests


def paired_tests_table(result: GroupResults, reference: Reference) -> Table:
    """Return paired tests by task, against companions and the controls of every signal.

    Runs that were not trained with their signal are tested against all their conditions.
    """
    group = result.group
    rows: list[tuple[str, ...] | str] = []
    for comparison in _comparisons(result):
        if comparison.second not in TESTED and group.condition == "signal":
            continue
        sides = f"{group.name} − {comparison.second}"
        if comparison.why_not:
            rows.append(f"{sides}: {comparison.why_not}")
        else:
            rows.append(f"{sides}, {named_seeds(comparison.seeds)}")
        for task in ordered_tasks(list(comparison.tasks), reference):
            rows.append((task, *_test_cells(comparison.tasks[task])))
    columns = (
        "Task",
        "n",
        "difference",
        "95 % interval",
        "first only",
        "second only",
        "McNemar p",
        "McNemar p (Holm)",
        "p by video (Holm)",
        "detectable",
    )
    title = f"{group.name}: paired tests by task, percentage points"
    notes = (TESTS_NOTE, *power_notes(result))
    return Table(f"tests-{slug(group)}", title, columns, tuple(rows), notes)


def _comparisons(result: GroupResults) -> list[Comparison]:
    against_companions = [found for _, found in result.companions if found is not None]
    return [*against_companions, *result.controls]


def _test_cells(test: PairedTest) -> tuple[str, ...]:
    return (
        str(test.n),
        points(test.difference),
        interval(test.low, test.high, signed=True),
        str(test.first_only),
        str(test.second_only),
        p_value(test.p),
        p_value(test.p_holm),
        p_value(test.p_grouped_holm),
        _detectable(test),
    )


def _detectable(test: PairedTest) -> str:
    if test.detectable is not None:
        return percent(test.detectable)
    return f"≥ {percent(test.least)}" if test.least is not None else NONE


def power_notes(result: GroupResults) -> list[str]:
    """Return a note for each comparison without a difference on some task, with the power there."""
    notes = []
    for comparison in _comparisons(result):
        if comparison.second not in TESTED:
            continue
        undecided = [
            f"{task} ({test.questions} questions, {_detectable(test)} points)"
            for task, test in comparison.tasks.items()
            if test.p_grouped_holm > ALPHA
        ]
        if undecided:
            notes.append(
                f"No significant difference from {side_name(comparison.second)} on"
                f" {', '.join(undecided)}. The points are the smallest difference detectable with"
                " 80 % power: absence of evidence is not evidence of absence."
            )
    return notes


# --- coverage


def coverage_table(result: GroupResults) -> Table:
    """Return how often the signal reached the host, by task."""
    rows: Sequence[tuple[str, ...]] = [
        (
            found.task,
            f"{found.with_signal}/{found.samples}",
            percent(found.with_signal / found.samples),
            f"{found.steps / found.samples:.2f}",
        )
        for found in result.coverage
    ]
    columns = ("Task", "answers with active signal", "share, %", "active steps per answer")
    group = result.group
    title = f"{group.name}: where the signal reached the host"
    return Table(f"coverage-{slug(group)}", title, columns, tuple(rows))

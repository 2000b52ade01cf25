"""Tables of one run, or of one group of seeds: tasks, conditions, paired tests, coverage."""

from collections.abc import Sequence

from modulate.config.sections import BUILT_IN, MainMetric
from modulate.evaluation.text_scores import METRIC_NAMES
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
    compare_groups,
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

GRADED_NOTE = (
    "First only, second only: answers with a higher score under the first, or the second."
    " Permutation p swaps the two answers to single questions at random, p by video those of whole"
    " videos; the former treats answers as independent. Holm adjustment covers the tasks of one"
    " comparison. What graded scores can detect is not estimated. Mean differences and their"
    " intervals weight tasks equally; tests over several tasks weight answers equally."
)

TEXT_NOTE = (
    "Every score is the best over the accepted answers, and 0 for a failed sample. Exact match and"
    " token F1: words in lower case without punctuation and articles (SQuAD). BLEU: of single"
    " sentences. Differences are in percentage points, with their 95 % interval; p by video swaps"
    " the two conditions for whole videos, adjusted by Holm over the conditions."
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
    main = result.group
    figure = main.figure_name
    right = "correct/n" if figure == "accuracy" else "exact/n"
    columns = ("Task", right, figure, "95 % interval", "chance", *names)
    title = f"{main.name}: {figure} by task, %"
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
        group.figure_name,
        "95 % interval",
        f"{group.condition} − condition",
        "95 % interval",
        f"{_test_name(group)} p",
        f"{_test_name(group)} p (Holm)",
        "p by video",
    )
    notes = [
        f"{name}: evaluated, and compared, for {named_seeds(group.seeds_of(name))} only."
        for name in group.conditions
        if group.seeds_of(name) != group.seeds
    ]
    return Table(
        f"conditions-{slug(group)}",
        f"{group.name}: {group.figure_name} under every condition, mean over tasks, %",
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


def _test_name(group: RunGroup) -> str:
    return "McNemar" if group.is_binary else "permutation"


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
        f"{_test_name(group)} p",
        f"{_test_name(group)} p (Holm)",
        "p by video (Holm)",
        "detectable",
    )
    title = f"{group.name}: paired tests by task, percentage points"
    notes = (TESTS_NOTE if group.is_binary else GRADED_NOTE, *power_notes(result))
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
    notes: list[str] = []
    if not result.group.is_binary:
        return notes
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


# --- generated text


def text_table(result: GroupResults) -> Table:
    """Return all scores of generated text under every condition; no rows for other answers."""
    group = result.group
    rows: list[tuple[str, ...] | str] = []
    for metric, name in METRIC_NAMES.items() if group.recipe.answer == "text" else ():
        others = [other for other in group.conditions if other != group.condition]
        tests = [
            compare_groups(group, group.condition, group, other, other, metric).overall
            for other in others
        ]
        adjusted = iter(holm_adjusted([test for test in tests if test is not None]))
        rows.append(name)
        rows.append((*_score_cells(group, group.condition, metric), NONE, NONE, NONE))
        for other, test in zip(others, tests, strict=True):
            found = None if test is None else next(adjusted)
            rows.append((*_score_cells(group, other, metric), *_gain_cells(found)))
    columns = (
        "Condition",
        "score",
        "95 % interval",
        f"{group.condition} − condition",
        "95 % interval",
        "p by video (Holm)",
    )
    title = f"{group.name}: scores of the generated text, mean over tasks, %"
    return Table(f"text-{slug(group)}", title, columns, tuple(rows), (TEXT_NOTE,))


def _score_cells(group: RunGroup, condition: str, metric: MainMetric) -> tuple[str, ...]:
    score = scores_under(group, condition, metric).overall
    return condition, percent(score.accuracy), interval(score.low, score.high)


def _gain_cells(test: PairedTest | None) -> tuple[str, ...]:
    if test is None:
        return NONE, NONE, NONE
    return (
        points(test.difference),
        interval(test.low, test.high, signed=True),
        p_value(test.p_grouped_holm),
    )


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

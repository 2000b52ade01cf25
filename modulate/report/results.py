"""Every number of a report, computed from predictions: accuracies, comparisons, coverage."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from modulate.config.sections import MainMetric
from modulate.evaluation.intervals import holm, paired_difference
from modulate.evaluation.metrics import BINARY, Pairs, compare_scores, prediction_means
from modulate.evaluation.paired_tests import detectable_difference, grouped_p, least_detectable
from modulate.evaluation.predictions import Prediction
from modulate.report.runs import Companion, RunGroup, find_companions


@dataclass(frozen=True)
class Score:
    """Accuracy in [0, 1]: ``correct`` of ``n`` answers, with its 95 % interval.

    The score of all tasks has their unweighted mean as accuracy, and the sums of their counts.
    ``chance``: expected accuracy of guessing, None when every sample failed, and for text. For
    answers in text, ``accuracy`` is the mean of the recipe's main metric, and ``correct`` counts
    exact matches.
    """

    accuracy: float
    correct: int
    n: int
    low: float | None
    high: float | None
    chance: float | None = None


@dataclass(frozen=True)
class Scores:
    """Scores of one run, or of several pooled seeds, under one condition."""

    overall: Score
    tasks: dict[str, Score]

    def of(self, task: str | None) -> Score | None:
        """Return the score of ``task``, or the overall score for None."""
        return self.overall if task is None else self.tasks.get(task)


@dataclass(frozen=True)
class PairedTest:
    """A paired difference of accuracies (first − second) on the same questions, with its tests.

    ``first_only``, ``second_only``: answers correct, or with a higher score, under just one of the
    two. ``p``: McNemar's test, or a permutation test of graded scores. ``p_grouped``: randomization
    test that swaps whole videos. ``*_holm``: the same, adjusted
    over the tasks, or over the rows of a table for overall differences. ``questions``: distinct
    questions, whatever the number of seeds. ``detectable``: difference that McNemar's test detects
    with 80 % power, given as many questions and this discordance. ``least``: the same if all
    changes went one way, a lower bound for any discordance. Both are None when there is none.
    """

    difference: float
    low: float | None
    high: float | None
    n: int
    questions: int
    first_only: int
    second_only: int
    p: float
    p_grouped: float
    p_holm: float
    p_grouped_holm: float
    detectable: float | None
    least: float | None


@dataclass(frozen=True)
class Comparison:
    """Two conditions, of one group or two, on the questions that both answered.

    Where they cannot be paired, ``overall`` is None, ``tasks`` is empty and ``why_not`` says why.
    """

    first: str
    second: str
    seeds: tuple[int, ...]
    overall: PairedTest | None
    tasks: dict[str, PairedTest]
    why_not: str = ""


@dataclass(frozen=True)
class Coverage:
    """Answers of one task whose signal reached the host, and the steps reached in all of them."""

    task: str
    samples: int
    with_signal: int
    steps: int


@dataclass(frozen=True)
class GroupResults:
    """All numbers of one group of runs.

    ``scores``: by condition. ``controls``: the main condition against every other.
    ``companions``: each companion with its comparison, None where no such run was given.
    """

    group: RunGroup
    scores: dict[str, Scores]
    controls: tuple[Comparison, ...]
    companions: tuple[tuple[Companion, Comparison | None], ...]
    coverage: tuple[Coverage, ...]

    @property
    def main(self) -> Scores:
        """Scores under the condition that the group was trained under."""
        return self.scores[self.group.condition]


def compute_results(group: RunGroup, groups: Sequence[RunGroup]) -> GroupResults:
    """Compute all numbers of ``group``; its companions are looked up among ``groups``."""
    main = group.condition
    scores = {name: scores_under(group, name) for name in group.conditions}
    controls = tuple(
        compare_groups(group, main, group, name, name) for name in group.conditions if name != main
    )
    companions = find_companions(group, groups) if main == "signal" else []
    compared = tuple((companion, _against(group, companion)) for companion in companions)
    return GroupResults(group, scores, controls, compared, tuple(count_coverage(group)))


def _against(group: RunGroup, companion: Companion) -> Comparison | None:
    other = companion.group
    if other is None:
        return None
    return compare_groups(group, group.condition, other, other.condition, companion.role)


# --- scores


def compute_scores(
    records: Sequence[Prediction], resamples: int, seed: int, metric: MainMetric = "accuracy"
) -> Scores:
    """Return mean scores with intervals that resample whole videos; seeds are pooled.

    Tasks are in order of appearance.
    """
    accuracies = prediction_means(records, resamples, seed, metric)
    tasks: dict[str, Score] = {}
    for task, answers in by_task(records).items():
        found = accuracies.tasks[task]
        correct = sum(answer.correct for answer in answers)
        tasks[task] = Score(
            found.accuracy, correct, found.n, found.low, found.high, _chance(answers)
        )
    overall = Score(
        accuracies.overall,
        sum(record.correct for record in records),
        accuracies.n,
        accuracies.low,
        accuracies.high,
        _mean([score.chance for score in tasks.values()]),
    )
    return Scores(overall, tasks)


def scores_under(group: RunGroup, condition: str, metric: MainMetric | None = None) -> Scores:
    """Return the scores of ``group`` under ``condition``, pooled over the seeds that have it.

    ``metric``: by default the recipe's main metric.
    """
    recipe = group.recipe
    records = group.pooled(condition)
    metric = metric or recipe.main_metric
    return compute_scores(records, recipe.evaluation.bootstrap, recipe.seed, metric)


def by_task(records: Sequence[Prediction]) -> dict[str, list[Prediction]]:
    """Return the records of each task; tasks are in order of appearance."""
    tasks: dict[str, list[Prediction]] = {}
    for record in records:
        tasks.setdefault(record.task, []).append(record)
    return tasks


def _chance(records: Sequence[Prediction]) -> float | None:
    """Return the accuracy of guessing among the options, None when every sample failed.

    Options are counted by logits, which failed samples lack.
    """
    options = [len(record.logits) for record in records if record.logits]
    return sum(1 / n for n in options) / len(options) if options else None


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(values) if len(known) == len(values) else None


# --- comparisons


def compare_groups(
    first: RunGroup,
    first_condition: str,
    second: RunGroup,
    second_condition: str,
    name: str,
    metric: MainMetric | None = None,
) -> Comparison:
    """Compare two groups, or two conditions of one, over the seeds that both have.

    ``name``: what the second side is called. ``metric``: by default the recipes' main metric.
    """
    metric = metric or first.recipe.main_metric
    if second.recipe.main_metric != first.recipe.main_metric:
        return Comparison(first.name, name, (), None, {}, "other main figures, so not compared")
    first_seeds = set(first.seeds_of(first_condition))
    seeds = tuple(sorted(first_seeds & set(second.seeds_of(second_condition))))
    if not seeds:
        why_not = f"no shared seed: {_listed(first.seeds)} and {_listed(second.seeds)}"
        return Comparison(first.name, name, (), None, {}, why_not)
    pairs = _pair(
        first.pooled(first_condition, seeds),
        second.pooled(second_condition, seeds),
        # Excluding failed samples is done per run, so either side may lack some of the other's.
        shared_only=first.recipe.evaluation.failed == "left_out",
    )
    if not pairs:
        return Comparison(first.name, name, seeds, None, {}, "different questions, so not paired")
    resamples = first.recipe.evaluation.bootstrap
    seed = first.recipe.seed
    tests = {
        task: _paired_test([p for p in pairs if p[0].task == task], resamples, seed, metric)
        for task in dict.fromkeys(record.task for record, _ in pairs)
    }
    adjusted = holm_adjusted(list(tests.values()))
    overall = _paired_test(pairs, resamples, seed, metric)
    return Comparison(first.name, name, seeds, overall, dict(zip(tests, adjusted, strict=True)))


def _pair(
    first: Sequence[Prediction], second: Sequence[Prediction], shared_only: bool
) -> list[tuple[Prediction, Prediction]]:
    """Pair answers by sample id; return nothing unless both sides have the same questions."""
    if shared_only:
        shared = {record.id for record in first} & {record.id for record in second}
        first = [record for record in first if record.id in shared]
        second = [record for record in second if record.id in shared]
    partners = {record.id: record for record in second}
    if {record.id for record in first} != set(partners):
        return []
    # The same id with another right answer is another question: the data changed in between.
    if any(_asked(record) != _asked(partners[record.id]) for record in first):
        return []
    return [(record, partners[record.id]) for record in first]


def _asked(record: Prediction) -> tuple[int | None, tuple[str, ...]]:
    return record.answer, record.answers


def holm_adjusted(tests: Sequence[PairedTest]) -> list[PairedTest]:
    """Return the tests with Holm's adjustment over all of them."""
    p_holm = holm([test.p for test in tests])
    p_grouped_holm = holm([test.p_grouped for test in tests])
    return [
        replace(test, p_holm=p, p_grouped_holm=p_grouped)
        for test, p, p_grouped in zip(tests, p_holm, p_grouped_holm, strict=True)
    ]


def _paired_test(pairs: Pairs, resamples: int, seed: int, metric: MainMetric) -> PairedTest:
    if metric not in BINARY:
        return _graded_test(pairs, resamples, seed, metric)
    first = [record.correct for record, _ in pairs]
    second = [partner.correct for _, partner in pairs]
    groups = [record.group for record, _ in pairs]
    tasks = [record.task for record, _ in pairs]
    found = paired_difference(first, second, groups, tasks, resamples=resamples, seed=seed)
    changes = [int(a) - int(b) for a, b in zip(first, second, strict=True)]
    p_grouped = grouped_p(changes, groups)
    questions = _distinct_questions(pairs)
    mcnemar = found.mcnemar
    discordance = (mcnemar.b + mcnemar.c) / len(pairs)
    return PairedTest(
        found.mean,
        found.low,
        found.high,
        n=len(pairs),
        questions=questions,
        first_only=mcnemar.b,
        second_only=mcnemar.c,
        p=mcnemar.p,
        p_grouped=p_grouped,
        p_holm=mcnemar.p,
        p_grouped_holm=p_grouped,
        detectable=detectable_difference(questions, discordance),
        least=least_detectable(questions),
    )


def _distinct_questions(pairs: Pairs) -> int:
    # Pooled ids are "seed/id". Seeds repeat questions and add no independent ones to the power.
    return len({record.id.partition("/")[2] for record, _ in pairs})


def _graded_test(pairs: Pairs, resamples: int, seed: int, metric: MainMetric) -> PairedTest:
    """Return the test of graded scores; what they can detect is not known."""
    found = compare_scores(pairs, resamples, seed, metric)
    return PairedTest(
        found.mean,
        found.low,
        found.high,
        n=len(pairs),
        questions=_distinct_questions(pairs),
        first_only=found.wins,
        second_only=found.losses,
        p=found.p,
        p_grouped=found.p_grouped,
        p_holm=found.p,
        p_grouped_holm=found.p_grouped,
        detectable=None,
        least=None,
    )


def _listed(seeds: Sequence[int]) -> str:
    return ", ".join(map(str, seeds)) or "none"


# --- coverage


def count_coverage(group: RunGroup) -> list[Coverage]:
    """Return the coverage of each task under the group's main condition, seeds pooled."""
    return [
        Coverage(
            task,
            len(answers),
            sum(answer.active_steps > 0 for answer in answers),
            sum(answer.active_steps for answer in answers),
        )
        for task, answers in by_task(group.pooled(group.condition)).items()
    ]

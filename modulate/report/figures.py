"""Every number of a report, made of the runs' predictions: accuracies with exact counts and
intervals, paired comparisons, coverage.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from modulate.evaluation.intervals import holm, paired_difference, task_accuracies
from modulate.evaluation.metrics import Prediction
from modulate.evaluation.paired_tests import detectable_difference, grouped_p, least_detectable
from modulate.report.runs import Companion, Entry, companions


@dataclass(frozen=True)
class Score:
    """Accuracy in [0, 1]: ``right`` of ``n`` answers; ``low`` and ``high``: 95 % interval.

    Of all tasks: their unweighted mean, and sums of counts.
    """

    accuracy: float
    right: int
    n: int
    low: float | None
    high: float | None
    chance: float | None = None


@dataclass(frozen=True)
class Scores:
    """Scores of one run, or of several seeds, under one condition."""

    overall: Score
    tasks: dict[str, Score]


@dataclass(frozen=True)
class Test:
    """A paired difference of accuracies (first − second) on the same questions.

    ``b``, ``c``: answers right under the first only, and under the second only. ``p``: McNemar's;
    ``p_grouped``: exchanging whole videos; each with ``*_holm``, adjusted over the tasks (over the
    rows of a table, for the overall difference of several). ``questions``: different ones, whatever
    the seeds; ``detectable``: difference that McNemar's test of that many questions, as discordant
    as these, finds in 80 of 100 repetitions; ``least``: the same were all changes to one side, the
    smallest that so many questions can show at all. None: there is none.
    """

    difference: float
    low: float | None
    high: float | None
    n: int
    questions: int
    b: int
    c: int
    p: float
    p_grouped: float
    p_holm: float
    p_grouped_holm: float
    detectable: float | None
    least: float | None


@dataclass(frozen=True)
class Comparison:
    """Two conditions, perhaps of two entries, on the questions that both answered; ``tests`` is
    None with ``why`` where that cannot be.
    """

    first: str
    second: str
    seeds: tuple[int, ...]
    overall: Test | None
    tasks: dict[str, Test]
    why: str = ""


def score(records: Sequence[Prediction], resamples: int, seed: int) -> Scores:
    """Return accuracies of these answers, all seeds alike, with intervals that resample whole
    videos. Tasks are in order of appearance.
    """
    found = task_accuracies(
        [r.correct for r in records],
        [r.task for r in records],
        [r.group for r in records],
        resamples=resamples,
        seed=seed,
    )
    tasks: dict[str, Score] = {}
    for name in dict.fromkeys(r.task for r in records):
        own = found.tasks[name]
        part = [r for r in records if r.task == name]
        tasks[name] = Score(
            own.accuracy, sum(r.correct for r in part), own.n, own.low, own.high, _chance(part)
        )
    chances = [t.chance for t in tasks.values()]
    chance = (
        sum(c for c in chances if c is not None) / len(chances) if None not in chances else None
    )
    return Scores(
        Score(
            found.overall, sum(r.correct for r in records), found.n, found.low, found.high, chance
        ),
        tasks,
    )


def _chance(records: Sequence[Prediction]) -> float | None:
    """Accuracy of guessing among the options scored; None when every sample failed."""
    offered = [len(r.logits) for r in records if r.logits]
    return sum(1 / n for n in offered) / len(offered) if offered else None


def scores_of(entry: Entry, condition: str) -> Scores:
    """Return an entry's scores under ``condition``, all its seeds that have it pooled."""
    return score(entry.pooled(condition), entry.recipe.evaluation.bootstrap, entry.recipe.seed)


def compare(
    first: Entry, first_condition: str, second: Entry, second_condition: str, name: str
) -> Comparison:
    """Compare two entries, or two conditions of one, seed by seed where both have the seed."""
    seeds = tuple(
        sorted(set(first.seeds_of(first_condition)) & set(second.seeds_of(second_condition)))
    )
    if not seeds:
        return Comparison(
            first.name,
            name,
            (),
            None,
            {},
            f"no seed in common: {_list(first.seeds)} and {_list(second.seeds)}",
        )
    a = first.pooled(first_condition, seeds)
    b = second.pooled(second_condition, seeds)
    if first.recipe.evaluation.failed == "left_out":  # a failure may be missing on either side
        common = {r.id for r in a} & {r.id for r in b}
        a = [r for r in a if r.id in common]
        b = [r for r in b if r.id in common]
    partner = {r.id: r for r in b}
    if (
        {r.id for r in a} != set(partner)
        or not a
        or any(r.answer != partner[r.id].answer for r in a)
    ):
        return Comparison(
            first.name, name, seeds, None, {}, "not the same questions, so no paired difference"
        )
    pairs = [(r, partner[r.id]) for r in a]
    resamples = first.recipe.evaluation.bootstrap
    seed = first.recipe.seed
    tests = {
        task: _test([p for p in pairs if p[0].task == task], resamples, seed)
        for task in dict.fromkeys(r.task for r in a)
    }
    adjusted = adjust(list(tests.values()))
    return Comparison(
        first.name,
        name,
        seeds,
        _test(pairs, resamples, seed),
        dict(zip(tests, adjusted, strict=True)),
    )


def adjust(tests: Sequence[Test]) -> list[Test]:
    """Return tests with Holm's adjustment over all of them."""
    by_sample = holm([t.p for t in tests])
    by_group = holm([t.p_grouped for t in tests])
    return [
        replace(t, p_holm=p, p_grouped_holm=q)
        for t, p, q in zip(tests, by_sample, by_group, strict=True)
    ]


def _test(pairs: Sequence[tuple[Prediction, Prediction]], resamples: int, seed: int) -> Test:
    first = [a.correct for a, _ in pairs]
    second = [b.correct for _, b in pairs]
    groups = [a.group for a, _ in pairs]
    found = paired_difference(
        first, second, groups, [a.task for a, _ in pairs], resamples=resamples, seed=seed
    )
    m = found.mcnemar
    n = len(pairs)
    grouped = grouped_p([int(a) - int(b) for a, b in zip(first, second, strict=True)], groups)
    questions = len({a.id.partition("/")[2] for a, _ in pairs})
    detectable = detectable_difference(questions, (m.b + m.c) / n)
    return Test(
        found.mean,
        found.low,
        found.high,
        n,
        questions,
        m.b,
        m.c,
        m.p,
        grouped,
        m.p,
        grouped,
        detectable,
        least_detectable(questions),
    )


def _list(seeds: Sequence[int]) -> str:
    return ", ".join(map(str, seeds)) or "none"


@dataclass(frozen=True)
class Coverage:
    """In how many of a task's answers the signal reached some time step, and how many steps it
    reached in all of them.
    """

    task: str
    samples: int
    with_signal: int
    steps: int


def coverage(entry: Entry) -> list[Coverage]:
    """Return how far the signal reached under the entry's own condition, by task, all seeds."""
    records = entry.pooled(entry.condition)
    found = []
    for task in dict.fromkeys(r.task for r in records):
        part = [r for r in records if r.task == task]
        found.append(
            Coverage(
                task,
                len(part),
                sum(r.active_steps > 0 for r in part),
                sum(r.active_steps for r in part),
            )
        )
    return found


@dataclass(frozen=True)
class Figures:
    """All figures of one entry: scores by condition, comparisons of its own condition with every
    other and with its companions.
    """

    entry: Entry
    scores: dict[str, Scores]
    controls: tuple[Comparison, ...]
    companions: tuple[tuple[Companion, Comparison | None], ...]
    coverage: tuple[Coverage, ...]

    @property
    def own(self) -> Scores:
        """Scores under the condition that the entry was trained under."""
        return self.scores[self.entry.condition]


def figures_of(entry: Entry, given: Sequence[Entry]) -> Figures:
    """Compute an entry's figures; ``given``: all entries, among which its companions are looked
    for.
    """
    main = entry.condition
    scores = {name: scores_of(entry, name) for name in entry.conditions}
    controls = tuple(
        compare(entry, main, entry, name, name) for name in entry.conditions if name != main
    )
    beside = companions(entry, given) if main == "signal" else []
    compared = tuple(
        (c, compare(entry, main, c.entry, c.entry.condition, c.role) if c.entry else None)
        for c in beside
    )
    return Figures(entry, scores, controls, compared, tuple(coverage(entry)))

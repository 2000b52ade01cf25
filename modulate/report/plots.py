"""The plots of one group of runs: accuracy by task as bars, training logs as curves."""

from modulate.interfaces.components import Reference
from modulate.report import svg
from modulate.report.html import Child, Html, figure, tag
from modulate.report.labels import MEAN, ordered_tasks, shared_figure
from modulate.report.results import GroupResults, Scores, scores_under
from modulate.report.runs import EvaluatedRun, RunGroup

Point = tuple[float, float]


def accuracy_bars(result: GroupResults, reference: Reference) -> Html:
    """Return bars by task: the run, its companions, and controls."""
    series = _bar_series(result)
    main = result.main
    tasks: list[str | None] = [*ordered_tasks(list(main.tasks), reference), None]
    groups = []
    for task in tasks:
        bars = []
        for i, (_, scores) in enumerate(series):
            score = scores.of(task)
            if score is not None:
                bars.append(svg.Bar(i, score.accuracy, score.low, score.high))
        groups.append((task or MEAN, bars))
    found = [main.of(task) for task in tasks]
    chance = [None if score is None else score.chance for score in found]
    figure_name = shared_figure([result.group])
    alt = f"{figure_name} by task of {result.group.name}; the numbers are in the table below."
    picture = svg.bars(groups, [name for name, _ in series], alt, chance)
    return figure(
        picture,
        f"{figure_name} by task with 95 % cluster-bootstrap intervals (whole videos resampled)."
        " Dashed lines: chance level, given the options offered.",
    )


def _bar_series(result: GroupResults) -> list[tuple[str, Scores]]:
    group = result.group
    series = [(f"{group.name}, {group.condition}", result.main)]
    for companion, comparison in result.companions:
        if companion.group is not None and comparison is not None:
            scores = scores_under(companion.group, companion.group.condition)
            series.append((f"{companion.role}: {companion.group.name}", scores))
    controls = [
        name
        for name in ("shuffled", "none", "host")
        if name in result.scores and name != group.condition
    ]
    # At least one control; more only in the place of companions that are missing.
    shown = max(1, 3 - len(series))
    return series + [(f"control: {name}", result.scores[name]) for name in controls[:shown]]


def training_curves(group: RunGroup) -> list[Child]:
    """Return a plot for each number in the training logs, with one line per seed."""
    logs = [(run, *_by_step(run)) for run in group.runs]
    keys = dict.fromkeys(key for _, points, _ in logs for key in points)
    if not keys:
        return [tag("p", "There is no training log.", class_="soft")]
    _, _, stages = logs[0]
    plots = []
    window = 1
    for key in keys:
        lines = []
        for run, points, _ in logs:
            if key in points:
                thinned, size = svg.thinned(points[key])
                window = max(window, size)
                lines.append(svg.Curve(f"seed {run.recipe.seed}", thinned))
        plots.append(svg.curves(key.replace("_", " "), lines, stages))
    caption = tag("figcaption", _curves_caption(group, window))
    return [tag("figure", tag("div", *plots, class_="panels"), caption, class_="curves")]


def _curves_caption(group: RunGroup, window: int) -> str:
    seeds = ", ".join(
        f"{run.recipe.seed} {svg.COLORS[i % len(svg.COLORS)]}" for i, run in enumerate(group.runs)
    )
    means = f" Each point is a mean over up to {window} steps." if window > 1 else ""
    return (
        f"Training of {group.name} over optimizer steps; seeds: {seeds}. Dashed lines mark the"
        f" start of a stage.{means}"
    )


def _by_step(run: EvaluatedRun) -> tuple[dict[str, list[Point]], list[tuple[str, float]]]:
    """Return the log's numbers as (step, value) by key, and the first step of each stage.

    Steps count over all stages, whereas the log starts over with each.
    """
    points: dict[str, list[Point]] = {}
    stages: list[tuple[str, float]] = []
    offset = 0.0
    last = 0.0
    for line in run.log:
        if not stages or stages[-1][0] != line.stage:
            offset = last
            stages.append((line.stage, offset))
        last = offset + float(line.step)
        for key, value in line.curves().items():
            points.setdefault(key, []).append((last, value))
    return points, stages

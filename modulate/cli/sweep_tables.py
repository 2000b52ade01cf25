"""What the terminal shows of a sweep: its runs, their progress, and the results."""

import shlex
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from modulate.cli.progress import Display, display
from modulate.errors import DataError
from modulate.evaluation.text_scores import figure_name
from modulate.runs.records import LogLine
from modulate.sweeps.job_runner import Listener, Outcome, tail
from modulate.sweeps.results import RESULTS, State
from modulate.sweeps.sweep import PlannedRun, Sweep
from modulate.utils.schema import parse_record

WIDTH = 130
"""Columns that a table of options needs; narrower terminals wrap lines, which loses nothing."""

LOG_POLL = 1.0
"""Seconds between two looks at the logs of running jobs."""

LOG_TAIL = 4096
"""Bytes at the end of a training log in which its last step is searched."""


def _console() -> Console:
    console = Console(highlight=False)
    console.width = max(console.width, WIDTH)
    return console


# --- before and while it runs


def plan(
    sweep: Sweep, runs: Sequence[PlannedRun], states: Mapping[str, State], folder: Path
) -> None:
    """Print every run of a sweep and its state."""
    table = Table(
        title=escape(f"{sweep.name}: {len(runs)} runs around {sweep.base}"),
        title_justify="left",
        box=box.SIMPLE_HEAD,
    )
    for name in ("Run", "stands for", "seed", "stages", "state"):
        table.add_column(name, no_wrap=name == "Run")
    for run in runs:
        stages = ", ".join(f"{stage.name} {stage.epochs:g}" for stage in run.recipe.training.stages)
        seed = str(run.recipe.seed)
        table.add_row(run.name, _meaning(run), seed, f"{stages} epochs", states[run.name])
    console = _console()
    console.print(table)
    console.print(f"Folder: {folder}", soft_wrap=True, markup=False)


def _meaning(run: PlannedRun) -> str:
    """Return what a run stands for: its options, the runs it accompanies, or its role."""
    if run.options:
        return ", ".join(f"{axis} {option}" for axis, option in run.options.items())
    if run.beside:
        return f"beside {len(run.beside)} run{'s' if len(run.beside) != 1 else ''}"
    return run.role


@contextmanager
def progress(runs: Sequence[PlannedRun], states: Mapping[str, State]) -> Iterator[Display]:
    """Show how many runs are finished, and the progress of those that are running."""
    done = sum(state == "finished" for state in states.values())
    with display() as shown:
        if done:
            shown.print(f"{done} of {len(runs)} runs are finished already.")
        shown.update("runs", done, len(runs))
        yield shown


def listener(
    shown: Display, runs: Sequence[PlannedRun], states: Mapping[str, State], folder: Path
) -> Listener:
    """Return a listener that shows the progress of jobs, and prints a line when one ends."""
    done = [name for name, state in states.items() if state == "finished"]
    last_look = 0.0

    def started(name: str) -> None:
        shown.update(name, 0, None, "starting")

    def ended(outcome: Outcome) -> None:
        shown.remove(outcome.name)
        if outcome.code == 0:
            done.append(outcome.name)
            shown.update("runs", len(done), len(runs))
        shown.print(f"{outcome.name}: {_ending(outcome)} after {outcome.seconds / 60:.1f} min")

    def running(names: Sequence[str]) -> None:
        nonlocal last_look
        # Called several times a second; reading every log that often would be waste.
        if time.monotonic() - last_look < LOG_POLL:
            return
        last_look = time.monotonic()
        for name in names:
            step = _last_step(folder / name / "log.jsonl")
            if step is not None:
                shown.update(name, step.step, step.steps, _step_note(step))

    return Listener(started, ended, running)


def _step_note(step: LogLine) -> str:
    note = step.stage
    if step.steps is not None and step.step >= step.steps:
        note += ", done; what follows is in its log"
    if isinstance(step.loss, float):
        note += f", loss {step.loss:.3f}"
    return note


def _ending(outcome: Outcome) -> str:
    if outcome.code == 0:
        return "finished"
    return "interrupted" if outcome.interrupted else f"failed ({_exit(outcome.code)})"


def _exit(code: int) -> str:
    return f"exit code {code}" if code > 0 else f"killed by {signal.Signals(-code).name}"


def _last_step(log: Path) -> LogLine | None:
    """Return the last step in a run's training log, or None if there is none yet."""
    try:
        with log.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - LOG_TAIL))
            lines = file.read().split(b"\n")
    except OSError:
        return None
    for line in reversed(lines):
        try:
            record = parse_record(line, LogLine, str(log), "step of a training", "")
        except DataError:
            # Cut off: the window starts inside a line, or this line is being written. A line that
            # is really damaged is an error in `modulate report`, not here.
            continue
        if record.steps is not None:
            return record
    return None


def last_lines(folder: Path, outcome: Outcome) -> list[str]:
    """Return how a failed run ended and the last lines of its log."""
    return [_exit(outcome.code), *tail(folder / "jobs" / f"{outcome.name}.log")]


# --- results


def results(metrics: Mapping[str, Any], folder: Path, runs: Sequence[PlannedRun]) -> None:
    """Print accuracies by axis and option, those of companions, failed runs, and the files.

    ``metrics``: the content of the sweep's results file.
    """
    console = _console()
    groups = {name: group for name, group in metrics["groups"].items() if "overall" in group}
    if groups:
        console.print(_accuracies(metrics, groups))
    failed = [run for run in metrics["runs"] if run["state"] == "failed"]
    if failed:
        console.print(_failures(failed))
    console.print(
        f"Results: {folder / RESULTS}; logs: {folder / 'jobs'}", soft_wrap=True, markup=False
    )
    if groups:
        console.print(
            f"To compare the runs in one page: modulate report {shlex.quote(str(folder))}/*-s*/",
            soft_wrap=True,
            markup=False,
        )


def _failures(failed: Sequence[Mapping[str, Any]]) -> Table:
    table = Table(
        "Failed",
        "how it ended",
        title="Failed runs; the others are not affected",
        title_justify="left",
        box=box.SIMPLE_HEAD,
    )
    for run in failed:
        table.add_row(run["name"], escape("\n".join(run["log"])))
    return table


COLUMNS = {
    "Axis": "left",
    "option": "left",
    "seeds": "right",
    "overall": "right",
    "95 % interval": "right",
    "− base": "right",
    "its 95 % interval": "right",
    "largest on one task": "left",
}
"""Columns of the table of accuracies, and how each is aligned."""


def _accuracies(metrics: Mapping[str, Any], groups: Mapping[str, Any]) -> Table:
    table = Table(
        title=f"{metrics['sweep']}: {_figure(groups)}, %; differences from the base, points",
        title_justify="left",
        box=box.SIMPLE_HEAD,
    )
    for name, alignment in COLUMNS.items():
        # Only the last column may wrap: names of tasks have any length.
        wraps = name == "largest on one task"
        justify: Any = alignment
        table.add_column(name, justify=justify, no_wrap=not wraps, overflow="fold")
    seeds = len(metrics["seeds"])
    shown = set()
    for axis, options in metrics["axes"].items():
        for index, (option, name) in enumerate(options.items()):
            shown.add(name)
            if name in groups:
                table.add_row("" if index else axis, option, *_cells(groups[name], seeds))
        table.add_section()
    # Companions stand for no option of an axis.
    for name, group in groups.items():
        if name not in shown:
            table.add_row("", name, *_cells(group, seeds))
    return table


def _figure(groups: Mapping[str, Any]) -> str:
    """Return what the groups' figures are, in words."""
    metrics = dict.fromkeys(group.get("metric", "accuracy") for group in groups.values())
    return " or ".join(map(figure_name, metrics))


def _cells(group: Mapping[str, Any], seeds: int) -> list[str]:
    own = [
        _seeds(group["seeds"], seeds),
        f"{100 * group['overall']:.1f}",
        _interval(group["interval"]),
    ]
    difference = group.get("minus_base")
    if difference is None:
        return [*own, "base" if group["role"] == "base" else "", "", ""]
    tasks = difference["tasks"]
    task = max(tasks, key=lambda name: abs(tasks[name]["difference"]))
    return [
        *own,
        f"{100 * difference['difference']:+.1f}",
        _interval(difference["interval"], "+"),
        escape(f"{100 * tasks[task]['difference']:+.1f} {task}"),
    ]


def _seeds(finished: Sequence[int], total: int) -> str:
    return str(total) if len(finished) == total else f"{len(finished)} of {total}"


def _interval(bounds: Sequence[float | None], sign: str = "") -> str:
    return " … ".join("–" if bound is None else f"{100 * bound:{sign}.1f}" for bound in bounds)

"""What the terminal shows of a sweep: its plan, how far it is, its results."""

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

from modulate.cli.progress import Display, bars
from modulate.errors import DataError
from modulate.runs.records import LogLine
from modulate.sweeps.job_runner import Listener, Outcome, tail
from modulate.sweeps.results import RESULTS, State
from modulate.sweeps.sweep import Planned, Sweep
from modulate.utils.schema import parse_record

WIDTH = 130
"""Columns that a table of options needs; a narrower terminal wraps lines, which loses nothing."""


def _console() -> Console:
    console = Console(highlight=False)
    console.width = max(console.width, WIDTH)
    return console


def plan(sweep: Sweep, runs: Sequence[Planned], states: Mapping[str, State], folder: Path) -> None:
    """Print every run of a sweep and how far it is."""
    table = Table(
        title=escape(f"{sweep.name}: {len(runs)} runs around {sweep.base}"),
        title_justify="left",
        box=box.SIMPLE_HEAD,
    )
    for name in ("Run", "stands for", "seed", "steps of", "state"):
        table.add_column(name, no_wrap=name == "Run")
    for run in runs:
        stages = ", ".join(f"{stage.name} {stage.epochs:g}" for stage in run.recipe.training.stages)
        meaning = ", ".join(
            f"{axis} {option}" for axis, option in run.options.items()
        ) or f"beside {len(run.beside)} run{'s' * (len(run.beside) != 1)}" * bool(run.beside)
        table.add_row(
            run.name,
            meaning or run.role,
            str(run.recipe.seed),
            f"{stages} epochs",
            states[run.name],
        )
    console = _console()
    console.print(table)
    console.print(f"Folder: {folder}", soft_wrap=True, markup=False)


@contextmanager
def progress(runs: Sequence[Planned], states: Mapping[str, State]) -> Iterator[Display]:
    """Show how many of all runs are finished, and how far each is that is running."""
    done = sum(state == "finished" for state in states.values())
    with bars() as shown:
        if done:
            shown.say(f"{done} of {len(runs)} runs are finished already.")
        shown.at("runs", done, len(runs))
        yield shown


def listener(
    shown: Display, runs: Sequence[Planned], states: Mapping[str, State], folder: Path
) -> Listener:
    """Return what tells ``shown`` of runs: a line for each that ends."""
    done = [name for name, state in states.items() if state == "finished"]
    looked = [0.0]

    def started(name: str) -> None:
        shown.at(name, 0, None, "starting")

    def ended(outcome: Outcome) -> None:
        shown.drop(outcome.name)
        if outcome.code == 0:
            done.append(outcome.name)
            shown.at("runs", len(done), len(runs))
        shown.say(f"{outcome.name}: {_ending(outcome)} after {outcome.seconds / 60:.1f} min")

    def running(names: Sequence[str]) -> None:
        if time.monotonic() - looked[0] < 1.0:
            return
        looked[0] = time.monotonic()
        for name in names:
            step = _last_step(folder / name / "log.jsonl")
            if step:
                stage_done = step.steps is not None and step.step >= step.steps
                note = f"{step.stage}{', done; what follows is in its log' * stage_done}"
                shown.at(
                    name,
                    step.step,
                    step.steps,
                    f"{note}, loss {step.loss:.3f}" if isinstance(step.loss, float) else note,
                )

    return Listener(started, ended, running)


def _ending(outcome: Outcome) -> str:
    if outcome.code == 0:
        return "finished"
    return "interrupted" if outcome.interrupted else f"failed ({_code(outcome.code)})"


def _code(code: int) -> str:
    return f"exit code {code}" if code > 0 else f"killed by {signal.Signals(-code).name}"


def _last_step(log: Path) -> LogLine | None:
    """Return the last step in a run's training log, None when there is none yet.

    What is no step is passed over.
    """
    try:
        with log.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - 4096))
            lines = file.read().split(b"\n")
    except OSError:
        return None
    for line in reversed(lines):
        try:
            record = parse_record(line, LogLine, str(log), "step of a training", "")
        except DataError:
            # cut off: the window begins in the middle of a line, or this one is being written; else
            # reports name it
            continue
        if record.steps is not None:
            return record
    return None


def last_lines(folder: Path, outcome: Outcome) -> list[str]:
    """Return how a failed run ended and the last lines of its log."""
    return [_code(outcome.code), *tail(folder / "jobs" / f"{outcome.name}.log")]


# --- results


def results(found: Mapping[str, Any], folder: Path, runs: Sequence[Planned]) -> None:
    """Print the options' accuracies axis by axis, the companions', and what failed; then where
    everything is.
    """
    console = _console()
    groups = {name: group for name, group in found["groups"].items() if "overall" in group}
    if groups:
        console.print(_accuracies(found, groups))
    failed = [run for run in found["runs"] if run["state"] == "failed"]
    if failed:
        table = Table(
            "Failed",
            "how it ended",
            title="Failed runs; the others are not affected",
            title_justify="left",
            box=box.SIMPLE_HEAD,
        )
        for run in failed:
            table.add_row(run["name"], escape("\n".join(run["log"])))
        console.print(table)
    console.print(
        f"Results: {folder / RESULTS}; logs: {folder / 'jobs'}", soft_wrap=True, markup=False
    )
    if groups:
        console.print(
            f"To compare the runs in one page: modulate report {shlex.quote(str(folder))}/*-s*/",
            soft_wrap=True,
            markup=False,
        )


def _accuracies(found: Mapping[str, Any], groups: Mapping[str, Any]) -> Table:
    table = Table(
        title=f"{found['sweep']}: accuracy, %; differences from the base, points",
        title_justify="left",
        box=box.SIMPLE_HEAD,
    )
    for name in (
        "Axis",
        "option",
        "seeds",
        "overall",
        "95 % interval",
        "− base",
        "95 % interval",
        "largest on one task",
    ):
        last = name == "largest on one task"
        table.add_column(
            name,
            justify="left" if last or name in ("Axis", "option") else "right",
            no_wrap=not last,
            overflow="fold",
        )
    for axis, options in found["axes"].items():
        for i, (option, name) in enumerate(options.items()):
            if name in groups:
                table.add_row(
                    axis if i == 0 else "", option, *_cells(groups[name], len(found["seeds"]))
                )
        table.add_section()
    shown = {name for options in found["axes"].values() for name in options.values()}
    for name, group in groups.items():
        if name not in shown:
            table.add_row("", name, *_cells(group, len(found["seeds"])))
    return table


def _cells(group: Mapping[str, Any], seeds: int) -> list[str]:
    own = [
        _seeds(group["seeds"], seeds),
        f"{100 * group['overall']:.1f}",
        _interval(group["interval"]),
    ]
    difference = group.get("minus_base")
    if difference is None:
        return [*own, "base" if group["role"] == "base" else "", "", ""]
    task, most = max(difference["tasks"].items(), key=lambda item: abs(item[1]["difference"]))
    return [
        *own,
        f"{100 * difference['difference']:+.1f}",
        _interval(difference["interval"], "+"),
        escape(f"{100 * most['difference']:+.1f} {task}"),
    ]


def _seeds(done: Sequence[int], of: int) -> str:
    return str(len(done)) if len(done) == of else f"{len(done)} of {of}"


def _interval(bounds: Sequence[float | None], sign: str = "") -> str:
    return " … ".join("–" if bound is None else f"{100 * bound:{sign}.1f}" for bound in bounds)

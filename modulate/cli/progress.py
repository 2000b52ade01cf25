"""Progress bars of training and evaluation, on stderr."""

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from modulate.files import gib
from modulate.pipeline import Pipeline
from modulate.training import train as training


class Bars:
    """One bar for each stage and for each condition of the evaluation."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self.tasks: dict[str, TaskID] = {}

    def trained(self, p: training.Progress) -> None:
        """Show a step of training: loss, accuracy, and the share of samples in which the signal reached a token."""
        note = f"loss {p.loss:.3f}  accuracy {100 * p.accuracy:3.0f} %  signal in {100 * p.active:3.0f} %"
        self.progress.update(self._task(f"stage {p.stage}", p.steps), completed=p.step, note=note)

    def say(self, text: str) -> None:
        """Print a line above the bars."""
        self.progress.console.print(text, highlight=False, soft_wrap=True, markup=False)

    def evaluated(self, condition: str, done: int, total: int) -> None:
        """Show that ``done`` more of ``total`` samples were answered."""
        self.counted(f"evaluate {condition}", done, total)

    def counted(self, name: str, done: int, total: int) -> None:
        """Show that ``done`` more of ``total`` are finished."""
        self.progress.update(self._task(name, total), advance=done)

    def _task(self, name: str, total: int) -> TaskID:
        if name not in self.tasks:
            self.tasks[name] = self.progress.add_task(name, total=total, note="")
        return self.tasks[name]


def what_was_kept(pipeline: Pipeline) -> list[str]:
    """Return a line for every store that ``pipeline`` asked: how often what it keeps was found, how often it was computed, and where its bound was too small."""
    frames, below, lines = pipeline.frames, pipeline.below, []
    for what, store, bound, made in (
        ("features", pipeline.features, "disk_gib", "computed"),
        ("decoded frames", frames.kept if frames is not None else None, "frames_gib", "decoded"),
        ("output of the vision tower", pipeline.tower.store, "tower_gib", "computed"),
    ):
        if store is None or not store.hits + store.misses:
            continue
        small = f"; features.{bound} keeps {gib(store.max_bytes)}, for which {store.dropped:,} were dropped: raise it" if store.dropped else ""
        lines.append(f"{what} (cache {store.folder}): {store.misses:,} times {made}, {store.hits:,} times found{small}")
    if below.hits + below.misses:
        lines.append(f"states below the first residual (memory): {below.misses:,} times computed, {below.hits:,} times found")
    return lines


@contextmanager
def bars(shown: bool = True) -> Iterator[Bars]:
    """Show bars for the length of a ``with`` block; none where ``shown`` is False, as in all but the first of several processes."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.fields[note]}"))
    with Progress(*columns, console=_console(), disable=not shown) as progress:
        yield Bars(progress)


def _console() -> Console:
    console = Console(stderr=True)
    console.width = max(console.width, 110) if not console.is_terminal else console.width
    return console

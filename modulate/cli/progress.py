"""Progress of long commands, on stderr: bars on a terminal, elsewhere a plain line every 30 s.

Without a terminal, one more line at the end sums up every task.
"""

import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

from modulate.inference.pipeline import Pipeline
from modulate.training import training_log
from modulate.utils.atomic_files import format_bytes

INTERVAL = 30.0
"""Seconds between two lines where stderr is no terminal."""


class Display(ABC):
    """What a command is doing: named tasks that count up, or a status that cannot be counted."""

    @abstractmethod
    def update(
        self, name: str, done: int, total: int | None, note: str = "", before: int | None = None
    ) -> None:
        """Show that ``done`` of ``total`` are finished (None: the total is unknown).

        ``before`` were finished before this command began; by default, as many as at the first
        update. They do not count towards the displayed rate.
        """

    @abstractmethod
    def advance(self, name: str, done: int, total: int | None) -> None:
        """Show that ``done`` more of ``total`` are finished."""

    @abstractmethod
    def set_status(self, text: str) -> None:
        """Show ``text`` until the next status or the next count."""

    @abstractmethod
    def remove(self, name: str) -> None:
        """Stop showing a task."""

    @abstractmethod
    def print(self, text: str) -> None:
        """Print a line."""

    def training_step(self, step: training_log.Progress) -> None:
        """Show a training step: loss, accuracy, and the share of samples the signal reached."""
        note = (
            f"loss {step.loss:.3f}  accuracy {100 * step.accuracy:3.0f} %  signal in"
            f" {100 * step.active:3.0f} %"
        )
        self.update(f"stage {step.stage}", step.step, step.steps, note, before=step.step - 1)

    def answered(self, condition: str, done: int, total: int) -> None:
        """Show that ``done`` more of ``total`` samples were answered under ``condition``."""
        self.advance(f"evaluate {condition}", done, total)


class Bars(Display):
    """One bar for each task, drawn by rich."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self.tasks: dict[str, TaskID] = {}
        self._status = ""

    def update(
        self, name: str, done: int, total: int | None, note: str = "", before: int | None = None
    ) -> None:
        """Set how many are finished."""
        self.progress.update(self._task(name, total), completed=done, total=total, note=note)

    def advance(self, name: str, done: int, total: int | None) -> None:
        """Add to how many are finished."""
        self.progress.update(self._task(name, total), advance=done)

    def set_status(self, text: str) -> None:
        """Replace the status."""
        self.remove(self._status)
        self._status = text
        self.tasks[text] = self.progress.add_task(text, total=None, note="")

    def remove(self, name: str) -> None:
        """Remove a task's bar."""
        if name in self.tasks:
            self.progress.remove_task(self.tasks.pop(name))

    def print(self, text: str) -> None:
        """Print a line above the bars."""
        self.progress.console.print(text, highlight=False, soft_wrap=True, markup=False)

    def _task(self, name: str, total: int | None) -> TaskID:
        if self._status:
            self.remove(self._status)
            self._status = ""
        if name not in self.tasks:
            self.tasks[name] = self.progress.add_task(name, total=total, note="")
        return self.tasks[name]


@dataclass
class _Count:
    """The count of one task, for plain lines.

    ``first``: how many were done before the first count. ``begun``: when the work on it began,
    which is the time of the display's previous update. ``last``: time of the last count. Times are
    in seconds of the monotonic clock. ``printed``: whether a line has shown this count.
    """

    done: int
    total: int | None
    note: str
    first: int
    begun: float
    last: float
    printed: bool = False

    def text(self, now: float) -> str:
        """Return done and total, the rate since the task began, and its note."""
        count = f"{self.done}/{self.total}" if self.total is not None else f"{self.done}"
        return ", ".join(part for part in (count, self._rate(now), self.note) if part)

    def _rate(self, now: float) -> str:
        # A finished task keeps its rate: time that passes afterwards is not its own.
        finished = self.total is not None and self.done >= self.total
        seconds = (self.last if finished else now) - self.begun
        rate = (self.done - self.first) / seconds if seconds > 0 else 0.0
        if not rate:
            return ""
        return f"{rate:.3g}/s" if rate >= 1 else f"{1 / rate:.3g} s each"


class Lines(Display):
    """Plain lines on stderr: every :data:`INTERVAL` seconds what changed, at the end all tasks."""

    def __init__(self, shown: bool = True) -> None:
        self.shown = shown
        self._tasks: dict[str, _Count] = {}
        self._status = ""
        self._begun = time.monotonic()
        self._last_update = self._begun
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._print_regularly, daemon=True)

    def __enter__(self) -> "Lines":
        if self.shown:
            self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        self._over.set()
        if not self.shown:
            return
        self._thread.join()
        # A command that fails before it counts anything has nothing to add to its error.
        if kind is not None and not self._tasks:
            return
        now = time.monotonic()
        minutes, seconds = divmod(round(now - self._begun), 60)
        end = "done" if kind is None else "stopped"
        end += f" after {minutes // 60}:{minutes % 60:02}:{seconds:02}"
        tasks = "; ".join(f"{name} {task.text(now)}" for name, task in self._tasks.items())
        self._print_with_time(f"{end}: {tasks}" if tasks else end)

    def update(
        self, name: str, done: int, total: int | None, note: str = "", before: int | None = None
    ) -> None:
        """Set how many are finished."""
        self._set(name, done, done if before is None else before, total, note)

    def advance(self, name: str, done: int, total: int | None) -> None:
        """Add to how many are finished."""
        old = self._tasks.get(name)
        self._set(name, done + (old.done if old else 0), 0, total, "")

    def _set(self, name: str, done: int, first: int, total: int | None, note: str) -> None:
        now = time.monotonic()
        with self._lock:
            old = self._tasks.get(name)
            begun = self._last_update
            # A new total means new work under the same name, such as a stage of another run.
            if old is not None and old.total == total:
                first = old.first
                begun = old.begun
            self._tasks[name] = _Count(done, total, note, first, begun, now)
            self._status = ""
            self._last_update = now

    def set_status(self, text: str) -> None:
        """Replace the status."""
        self._status = text
        self._last_update = time.monotonic()

    def remove(self, name: str) -> None:
        """Forget a task."""
        with self._lock:
            self._tasks.pop(name, None)

    def print(self, text: str) -> None:
        """Print a line."""
        print(text, file=sys.stderr, flush=True)

    def _print_regularly(self) -> None:
        while not self._over.wait(INTERVAL):
            with self._lock:
                now = time.monotonic()
                changed = [name for name, task in self._tasks.items() if not task.printed]
                # Where nothing changed, repeat the latest task: the reader sees that it hangs.
                names = changed or list(self._tasks)[-1:]
                texts = [f"{name} {self._tasks[name].text(now)}" for name in names]
                for name in names:
                    self._tasks[name].printed = True
            self._print_with_time(self._status or "; ".join(texts) or "starting")

    def _print_with_time(self, text: str) -> None:
        self.print(f"{time.strftime('%H:%M:%S')} {text}")


@contextmanager
def display(shown: bool = True) -> Iterator[Display]:
    """Show the progress of a ``with`` block.

    With ``shown`` False only printed lines appear, as in all but the first of several processes.
    """
    console = Console(stderr=True)
    if not shown or not console.is_terminal or console.is_dumb_terminal:
        with Lines(shown) as lines:
            yield lines
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=console) as progress:
        yield Bars(progress)


def cache_summary(pipeline: Pipeline) -> list[str]:
    """Return one line per cache that ``pipeline`` used: computed, found, and evicted entries."""
    frames = pipeline.extractor.frame_cache
    hidden_states = pipeline.hidden_state_cache
    stores = (
        ("features", pipeline.extractor.feature_cache, "disk_gib", "computed"),
        ("decoded frames", frames.store if frames is not None else None, "frames_gib", "decoded"),
        (
            "output of the vision tower",
            pipeline.vision_tower_cache.store,
            "vision_tower_cache_gib",
            "computed",
        ),
    )
    lines = []
    for name, store, key, verb in stores:
        if store is None or not store.hits + store.misses:
            continue
        line = (
            f"{name} (cache {store.folder}): {store.misses:,} times {verb}, {store.hits:,} times"
            " found"
        )
        if store.dropped:
            line += (
                f"; features.{key} keeps {format_bytes(store.max_bytes)}, for which"
                f" {store.dropped:,} were dropped: raise it"
            )
        lines.append(line)
    if hidden_states.hits + hidden_states.misses:
        lines.append(
            f"hidden states below the first injected layer (memory): {hidden_states.misses:,} times"
            f" computed, {hidden_states.hits:,} times found"
        )
    return lines

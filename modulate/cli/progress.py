"""How far a long command is, on stderr: bars on a terminal; elsewhere a plain line about every half
minute, and one at the end.
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
from modulate.training import trainer as training
from modulate.utils.atomic_files import gib

EVERY = 30.0
"""Seconds between two lines where stderr is no terminal."""


class Display(ABC):
    """What a command is at: ``doing`` something that cannot be counted, or tasks by name, each with
    a number done of a total (None: unknown).
    """

    @abstractmethod
    def at(
        self, name: str, done: int, total: int | None, note: str = "", before: int | None = None
    ) -> None:
        """Show that ``done`` of ``total`` are finished; ``before`` were when this was begun, by
        default as many as when it is first told.
        """

    @abstractmethod
    def counted(self, name: str, done: int, total: int | None) -> None:
        """Show that ``done`` more of ``total`` are finished."""

    @abstractmethod
    def doing(self, text: str) -> None:
        """Show what is being done, until the next of these or the next count."""

    @abstractmethod
    def drop(self, name: str) -> None:
        """Show a task no longer."""

    @abstractmethod
    def say(self, text: str) -> None:
        """Print a line."""

    def trained(self, p: training.Progress) -> None:
        """Show a step of training: loss, accuracy, and the share of samples in which the signal
        reached a token.
        """
        note = (
            f"loss {p.loss:.3f}  accuracy {100 * p.accuracy:3.0f} %  signal in"
            f" {100 * p.active:3.0f} %"
        )
        self.at(f"stage {p.stage}", p.step, p.steps, note, before=p.step - 1)

    def evaluated(self, condition: str, done: int, total: int) -> None:
        """Show that ``done`` more of ``total`` samples were answered."""
        self.counted(f"evaluate {condition}", done, total)


class Bars(Display):
    """One bar for each task, as rich draws them."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self.tasks: dict[str, TaskID] = {}
        self._doing = ""

    def at(
        self, name: str, done: int, total: int | None, note: str = "", before: int | None = None
    ) -> None:
        """Set how many are finished."""
        self.progress.update(self._task(name, total), completed=done, total=total, note=note)

    def counted(self, name: str, done: int, total: int | None) -> None:
        """Add to how many are finished."""
        self.progress.update(self._task(name, total), advance=done)

    def doing(self, text: str) -> None:
        """Set what is being done."""
        self.drop(self._doing)
        self._doing = text
        self.tasks[text] = self.progress.add_task(text, total=None, note="")

    def drop(self, name: str) -> None:
        """Forget a task."""
        if name in self.tasks:
            self.progress.remove_task(self.tasks.pop(name))

    def say(self, text: str) -> None:
        """Print a line."""
        self.progress.console.print(text, highlight=False, soft_wrap=True, markup=False)

    def _task(self, name: str, total: int | None) -> TaskID:
        if self._doing:
            self.drop(self._doing)
            self._doing = ""
        if name not in self.tasks:
            self.tasks[name] = self.progress.add_task(name, total=total, note="")
        return self.tasks[name]


@dataclass
class _Count:
    """A task as lines tell of it. ``first``: done before it was first counted; ``begun``: since
    when, which is when the display was last told anything;
    ``last``: when it was counted last (s).
    """

    done: int
    total: int | None
    note: str
    first: int
    begun: float
    last: float
    told: bool = False

    def text(self, now: float) -> str:
        """Return how far it is: done and total, the rate since it began, its note."""
        finished = self.total is not None and self.done >= self.total
        seconds = (self.last if finished else now) - self.begun
        rate = (self.done - self.first) / seconds if seconds > 0 else 0.0
        speed = f"{rate:.3g}/s" if rate >= 1 else f"{1 / rate:.3g} s each" if rate else ""
        count = f"{self.done}/{self.total}" if self.total is not None else f"{self.done}"
        return ", ".join(part for part in (count, speed, self.note) if part)


class Lines(Display):
    """Plain lines on stderr: one every :data:`EVERY` seconds with what was counted since the last,
    and one with everything when a block ends.
    """

    def __init__(self, shown: bool = True) -> None:
        self.shown = shown
        self._tasks: dict[str, _Count] = {}
        self._doing = ""
        self._begun = self._active = time.monotonic()
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._tick, daemon=True)

    def __enter__(self) -> "Lines":
        if self.shown:
            self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        self._over.set()
        if not self.shown:
            return
        self._thread.join()
        if kind is not None and not self._tasks:  # it ends before it began: the error says all
            return
        now = time.monotonic()
        tasks = "; ".join(f"{name} {task.text(now)}" for name, task in self._tasks.items())
        seconds = round(now - self._begun)
        end = (
            f"{'done' if kind is None else 'stopped'} after"
            f" {seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02}"
        )
        self._print(f"{end}: {tasks}" if tasks else end)

    def at(
        self, name: str, done: int, total: int | None, note: str = "", before: int | None = None
    ) -> None:
        """Set how many are finished."""
        self._set(name, done, done if before is None else before, total, note)

    def counted(self, name: str, done: int, total: int | None) -> None:
        """Add to how many are finished."""
        old = self._tasks.get(name)
        self._set(name, done + (old.done if old else 0), 0, total, "")

    def _set(self, name: str, done: int, first: int, total: int | None, note: str) -> None:
        now = time.monotonic()
        with self._lock:
            old = self._tasks.get(name)
            first, begun = (
                (old.first, old.begun) if old and old.total == total else (first, self._active)
            )
            self._tasks[name] = _Count(done, total, note, first, begun, now)
            self._doing = ""
            self._active = now

    def doing(self, text: str) -> None:
        """Set what is being done."""
        self._doing = text
        self._active = time.monotonic()

    def drop(self, name: str) -> None:
        """Forget a task."""
        with self._lock:
            self._tasks.pop(name, None)

    def say(self, text: str) -> None:
        """Print a line."""
        print(text, file=sys.stderr, flush=True)

    def _tick(self) -> None:
        while not self._over.wait(EVERY):
            with self._lock:
                now = time.monotonic()
                news = [name for name, task in self._tasks.items() if not task.told] or list(
                    self._tasks
                )[-1:]
                texts = [f"{name} {self._tasks[name].text(now)}" for name in news]
                for name in news:
                    self._tasks[name].told = True
            self._print(self._doing or "; ".join(texts) or "starting")

    def _print(self, text: str) -> None:
        self.say(f"{time.strftime('%H:%M:%S')} {text}")


@contextmanager
def bars(shown: bool = True) -> Iterator[Display]:
    """Show how far a ``with`` block is; nothing of it where ``shown`` is False, as in all but the
    first of several processes.
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


def what_was_kept(pipeline: Pipeline) -> list[str]:
    """Return a line for every store that ``pipeline`` asked: how often what it keeps was found, how
    often it was computed, and where its bound was too small.
    """
    frames = pipeline.extractor.frame_cache
    below = pipeline.hidden_state_cache
    lines = []
    for what, store, bound, made in (
        ("features", pipeline.extractor.feature_cache, "disk_gib", "computed"),
        ("decoded frames", frames.store if frames is not None else None, "frames_gib", "decoded"),
        (
            "output of the vision tower",
            pipeline.vision_tower_cache.store,
            "vision_tower_cache_gib",
            "computed",
        ),
    ):
        if store is None or not store.hits + store.misses:
            continue
        small = (
            f"; features.{bound} keeps {gib(store.max_bytes)}, for which {store.dropped:,} were"
            " dropped: raise it"
            if store.dropped
            else ""
        )
        lines.append(
            f"{what} (cache {store.folder}): {store.misses:,} times {made}, {store.hits:,} times"
            f" found{small}"
        )
    if below.hits + below.misses:
        lines.append(
            f"states below the first residual (memory): {below.misses:,} times computed,"
            f" {below.hits:,} times found"
        )
    return lines

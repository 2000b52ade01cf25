"""Which samples go through together, and their preparation ahead of time, in a thread beside the host's forwards."""

import random
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, Literal, Self

from modulate.components import Sample
from modulate.memory import is_out_of_memory

Together = Literal["any", "length", "clip"]


def clip_of(sample: Sample) -> tuple[Any, ...]:
    """Return what two samples that show the same clip, with the same signals, have in common."""
    return sample.video, sample.window, tuple(sorted(sample.signals.items()))


def arranged(
    samples: Sequence[Sample], size: int, together: Together, rng: random.Random, length: Callable[[Sample], int] = lambda sample: 0
) -> list[list[Sample]]:
    """Return an epoch's batches of at most ``size`` samples, in an order that ``rng`` draws.

    ``together``: any: whatever comes next. length: samples of nearly the same ``length``, so that little is padded. clip: samples of one clip only.
    The number of batches does not depend on ``rng``.
    """
    order = list(samples)
    rng.shuffle(order)
    if together == "any":
        return _cut(order, size)
    if together == "length":
        batches = _cut(sorted(order, key=length), size)
    else:
        clips: dict[tuple[Any, ...], list[Sample]] = {}
        for sample in order:
            clips.setdefault(clip_of(sample), []).append(sample)
        batches = [batch for clip in clips.values() for batch in _cut(clip, size)]
    rng.shuffle(batches)
    return batches


def _cut(samples: Sequence[Sample], size: int) -> list[list[Sample]]:
    return [list(samples[i : i + size]) for i in range(0, len(samples), size)]


class Loader:
    """Calls ``prepare`` for the samples of batches to come; what comes of a sample, and the order of use, do not depend on it.

    ``ahead``: how many batches; 0: none, everything is prepared when it is asked for. To be closed: a context manager.
    """

    def __init__(self, prepare: Callable[[Sample], Any], ahead: int) -> None:
        self._prepare, self._ahead = prepare, ahead
        self._coming: dict[str, Future[Any]] = {}
        self._thread = ThreadPoolExecutor(1, "modulate-loader") if ahead else None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Give up what is not begun, and wait for what is."""
        self._coming.clear()
        if self._thread is not None:
            self._thread.shutdown(wait=True, cancel_futures=True)

    def over(self, batches: Iterator[list[Sample]]) -> Iterator[list[Sample]]:
        """Yield ``batches`` as they are, each when those behind it are in preparation."""
        waiting: deque[list[Sample]] = deque()
        for batch in batches:
            self._expect(batch)
            waiting.append(batch)
            if len(waiting) > self._ahead:
                yield waiting.popleft()
        yield from waiting

    def _expect(self, batch: Sequence[Sample]) -> None:
        if self._thread is not None:
            for sample in batch:
                if sample.id not in self._coming:
                    self._coming[sample.id] = self._thread.submit(self._prepare, sample)

    def get(self, sample: Sample) -> Any:
        """Return what ``prepare`` returns for ``sample``, or raise what it raises."""
        coming = self._coming.pop(sample.id, None)
        if coming is None:
            return self._prepare(sample)
        try:
            return coming.result()
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
        return self._prepare(sample)  # memory was short beside a forward; now it is alone

"""Training samples, their batches, and their preparation in a thread beside the host's forwards."""

import random
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, Literal, Self

from modulate.errors import DataError, ModulateError
from modulate.inference.batching import batches_by_clip, batches_in_order
from modulate.inference.pipeline import Pipeline
from modulate.interfaces.components import Sample
from modulate.utils.out_of_memory import is_out_of_memory

BatchBy = Literal["any", "length", "clip"]


def training_samples(pipeline: Pipeline) -> tuple[list[Sample], int]:
    """Return the samples to train on and the number left out because their signal is empty.

    Raises :class:`DataError` if none is left.
    """
    samples = pipeline.samples("train")
    if not samples:
        raise DataError("The training split has no samples.")
    kept = [
        s
        for s in samples
        if pipeline.recipe.training.empty == "train" or not _is_empty(pipeline, s)
    ]
    if not kept:
        raise DataError(
            f"training.empty is skip, and the signal is empty in the clips of all {len(samples)}"
            " training samples."
        )
    return kept, len(samples) - len(kept)


def _is_empty(pipeline: Pipeline, sample: Sample) -> bool:
    try:
        return len(pipeline.signal(sample)) == 0
    except ModulateError:
        return False  # It fails again in training, where it is recorded.


def arranged(
    samples: Sequence[Sample],
    size: int,
    batch_by: BatchBy,
    rng: random.Random,
    length: Callable[[Sample], int] = lambda sample: 0,
) -> list[list[Sample]]:
    """Return an epoch's batches of at most ``size`` samples, in an order drawn from ``rng``.

    ``batch_by``: "any" takes samples as they come; "length" batches samples of nearly the same
    ``length``, to pad little; "clip" batches samples of one clip only. The number of batches does
    not depend on ``rng``.
    """
    order = list(samples)
    rng.shuffle(order)
    if batch_by == "any":
        return batches_in_order(order, size)
    batches = (
        batches_in_order(sorted(order, key=length), size)
        if batch_by == "length"
        else batches_by_clip(order, size)
    )
    rng.shuffle(batches)
    return batches


class PrefetchLoader:
    """Calls ``prepare`` for the samples of upcoming batches, in a thread of its own.

    Results and their order are the same as without it. ``ahead``: number of batches prepared ahead;
    with 0, samples are prepared when they are needed. A context manager: leaving it stops the
    thread.
    """

    def __init__(self, prepare: Callable[[Sample], Any], ahead: int) -> None:
        self._prepare = prepare
        self._ahead = ahead
        self._coming: dict[str, Future[Any]] = {}
        self._thread = ThreadPoolExecutor(1, "modulate-loader") if ahead else None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Cancel preparations that have not begun, and wait for the one that has."""
        self._coming.clear()
        if self._thread is not None:
            self._thread.shutdown(wait=True, cancel_futures=True)

    def over(self, batches: Iterator[list[Sample]]) -> Iterator[list[Sample]]:
        """Yield ``batches`` unchanged, each once the batches after it are being prepared."""
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
        """Return the result of ``prepare`` for ``sample``, or raise its error."""
        coming = self._coming.pop(sample.id, None)
        if coming is None:
            return self._prepare(sample)
        try:
            return coming.result()
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
        # Memory was short beside a forward of the host; now nothing else runs.
        return self._prepare(sample)

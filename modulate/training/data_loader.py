"""Training samples: which there are, their preparation ahead of time, and those that fail."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, Self

from modulate.errors import DataError, ModulateError
from modulate.inference.pipeline import Pipeline
from modulate.inference.preparation import refuse_untransformable
from modulate.interfaces.sample import Sample
from modulate.utils.out_of_memory import is_out_of_memory


def training_samples(pipeline: Pipeline) -> list[Sample]:
    """Return the samples to train on: all, or those whose signal is not empty.

    Raises :class:`DataError` if there is none.
    """
    samples = pipeline.samples("train")
    if not samples:
        raise DataError("The training split has no samples.")
    # The evaluation's would otherwise fail after the training.
    refuse_untransformable(pipeline.recipe, samples)
    if pipeline.recipe.training.empty == "train":
        return samples
    kept = [sample for sample in samples if not _has_empty_signal(pipeline, sample)]
    if not kept:
        raise DataError(
            f"training.empty is skip, and the signal is empty in the clips of all {len(samples)}"
            " training samples."
        )
    return kept


def _has_empty_signal(pipeline: Pipeline, sample: Sample) -> bool:
    try:
        signals = [pipeline.signal(sample, clip) for clip in sample.clips]
        return not any(signals)
    except ModulateError:
        return False  # It fails again in training, where it is recorded.


class FailedSamples:
    """The error of every training sample that could not be used.

    Args:
        errors: error messages by sample id, extended in place.
        total: number of training samples.
        max_share: share of them that may fail.
    """

    def __init__(self, errors: dict[str, str], total: int, max_share: float) -> None:
        self.errors = errors
        self.total = total
        self.max_share = max_share
        self._before = len(errors)

    def add(self, sample: Sample, error: ModulateError) -> None:
        """Record a failure. Raises :class:`DataError` if it is one too many."""
        self.errors[sample.id] = str(error)
        self._refuse_too_many(error)

    def begin_step(self) -> None:
        """Count what fails from now on as failed in a new optimizer step."""
        self._before = len(self.errors)

    def of_this_step(self) -> dict[str, str]:
        """Return the errors of the samples that failed in this step for the first time."""
        return dict(list(self.errors.items())[self._before :])

    def merge_step(self, errors_by_rank: Iterable[dict[str, str]]) -> None:
        """Replace this step's failures with those of all processes, in rank order.

        Raises :class:`DataError` if they are too many.
        """
        for sample_id in self.of_this_step():
            del self.errors[sample_id]
        for errors in errors_by_rank:
            self.errors.update(errors)
        self._refuse_too_many()

    def _refuse_too_many(self, cause: ModulateError | None = None) -> None:
        if len(self.errors) > self.max_share * self.total:
            last = list(self.errors.values())[-1]
            raise DataError(
                f"{len(self.errors)} of {self.total} training samples failed, more than"
                f" max_failed_share allows. {cause or last}"
            ) from cause


class PrefetchLoader:
    """Prepares the samples of upcoming batches in a thread of its own, beside the host's forwards.

    Results and their order are those of preparing each sample when it is needed. As a context
    manager, it stops the thread at the end.

    Args:
        prepare: prepares one sample.
        ahead: number of batches to prepare ahead; with 0 there is no thread.
    """

    def __init__(self, prepare: Callable[[Sample], Any], ahead: int) -> None:
        self._prepare = prepare
        self._ahead = ahead
        self._pending: dict[str, Future[Any]] = {}
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
        self._pending.clear()
        if self._thread is not None:
            self._thread.shutdown(wait=True, cancel_futures=True)

    def iterate(self, batches: Iterable[list[Sample]]) -> Iterator[list[Sample]]:
        """Yield ``batches`` unchanged, each once the next ``ahead`` are being prepared."""
        waiting: deque[list[Sample]] = deque()
        for batch in batches:
            self._submit(batch)
            waiting.append(batch)
            if len(waiting) > self._ahead:
                yield waiting.popleft()
        yield from waiting

    def _submit(self, batch: Sequence[Sample]) -> None:
        if self._thread is None:
            return
        for sample in batch:
            if sample.id not in self._pending:
                self._pending[sample.id] = self._thread.submit(self._prepare, sample)

    def get(self, sample: Sample) -> Any:
        """Return the result of ``prepare`` for ``sample``, or raise its error."""
        pending = self._pending.pop(sample.id, None)
        if pending is None:
            return self._prepare(sample)
        try:
            return pending.result()
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
        # Beside a forward of the host memory was short. Now nothing else runs.
        return self._prepare(sample)

"""Answers of a conditioned host to samples under one condition, each sample accounted for."""

import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Generic, TypeVar

import torch

from modulate.answers.continuations import end_ids
from modulate.answers.generation import generate_greedily
from modulate.answers.likelihood import require_causal
from modulate.config.sections import BUILT_IN
from modulate.data.feature_extractor import catch_sample_error
from modulate.distributed.launch import current
from modulate.errors import DataError, ModulateError
from modulate.evaluation import sample_predictions
from modulate.evaluation.predictions import Prediction, as_lines, from_lines
from modulate.evaluation.text_scores import require_libraries
from modulate.hosts.fsdp import in_step
from modulate.inference.answer_scorer import AnswerScorer
from modulate.inference.batching import LAST_LOGITS, evaluation_batches
from modulate.inference.controls import ShufflePool
from modulate.inference.pipeline import Pipeline
from modulate.inference.preparation import ReadySample
from modulate.interfaces.messages import user_turn
from modulate.interfaces.sample import Sample
from modulate.modulation.attachment import Attachment
from modulate.utils.out_of_memory import first_line, free_cached_memory, is_out_of_memory

T = TypeVar("T")

Advance = Callable[[int], None]


def score(
    pipeline: Pipeline,
    attachment: Attachment,
    samples: Sequence[Sample],
    condition: str,
    advance: Advance = lambda n: None,
) -> list[Prediction]:
    """Answer ``samples`` under ``condition``; return the predictions in order.

    Errors of single samples are recorded as failed predictions, never dropped. Several processes
    share the batches that one process would form, so the answers are identical to the bit; every
    process returns all of them. ``advance`` is called with the number of samples just answered.
    """
    is_text = pipeline.recipe.answer == "text"
    answer = _texts if is_text else _choices
    form = pipeline.recipe.answer
    rounds = _Rounds(
        pipeline,
        attachment,
        condition,
        run=partial(answer, pipeline, attachment, condition),
        failed=lambda sample, error: sample_predictions.failure(sample, condition, error, form),
        pack=as_lines,
        unpack=from_lines,
    )
    records = rounds.all(samples, advance)
    position = {sample.id: i for i, sample in enumerate(samples)}
    return sorted(records, key=lambda record: position[record.id])


def token_accuracy(
    pipeline: Pipeline,
    attachment: Attachment,
    samples: Sequence[Sample],
    condition: str,
    advance: Advance = lambda n: None,
) -> float:
    """Return how well the host predicts the answers in text of ``samples``, without generating.

    The share of an answer's tokens, the end of its turn included, that are the most probable ones
    after the true tokens before them; the mean over samples, where a failed one counts 0. See
    :func:`score` for the arguments.
    """
    rounds: _Rounds[float] = _Rounds(
        pipeline,
        attachment,
        condition,
        run=partial(_token_shares, pipeline, attachment, condition),
        failed=lambda sample, error: 0.0,
        pack=list,
        unpack=list,
    )
    shares = rounds.all(samples, advance)
    return sum(shares) / len(shares)


def require_scorable(pipeline: Pipeline) -> None:
    """Raise early where answers in the recipe's form cannot be scored.

    Raises :class:`HostError` for a host that cannot score several tokens, and :class:`PluginError`
    if a library for scores of text is missing.
    """
    recipe = pipeline.recipe
    if recipe.answer == "text" or recipe.scores_whole_options:
        require_causal(pipeline.host)
    if recipe.answer == "text":
        require_libraries()


def uses_bare_host(pipeline: Pipeline, condition: str) -> bool:
    """Return whether ``condition`` runs the host without residual and without LoRA."""
    return condition in ("host", "text_only") or condition in pipeline.recipe.evaluation.inputs


# --- one forward


@torch.inference_mode()
def _choices(
    pipeline: Pipeline, attachment: Attachment, condition: str, ready: Sequence[ReadySample]
) -> list[Prediction]:
    """Choose options by their scores."""
    scorer = AnswerScorer(pipeline, attachment.model, attachment.maybe_condition)
    by_clip = pipeline.recipe.evaluation.batch_by == "clip"
    shared = scorer.shared(ready) if by_clip else 0
    records = []
    for group in scorer.groups(ready, shared):
        with _lora(pipeline, attachment, condition):
            scores = scorer.option_scores(group, shared).cpu()
        for (prepared, _), row, steps in zip(
            group, scores, _active_steps(attachment, group, shared), strict=True
        ):
            offered = row[: len(prepared.answers)].tolist()
            records.append(sample_predictions.choice(prepared.sample, condition, offered, steps))
    return records


@torch.inference_mode()
def _texts(
    pipeline: Pipeline, attachment: Attachment, condition: str, ready: Sequence[ReadySample]
) -> list[Prediction]:
    """Generate answers in text."""
    rows = [clips for _, clips in ready]
    batch = pipeline.collate([prepared for prepared, _ in ready])
    tokenizer = pipeline.processor.tokenizer
    with _lora(pipeline, attachment, condition), attachment.maybe_condition(rows):
        answers = generate_greedily(
            attachment.model,
            batch.inputs,
            pipeline.recipe.evaluation.max_new_tokens,
            end_ids(attachment.model, tokenizer),
            pipeline.batcher.pad_id,
        )
    texts = [tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in answers]
    return [
        sample_predictions.text(prepared.sample, condition, text, steps)
        for (prepared, _), text, steps in zip(
            ready, texts, _active_steps(attachment, ready, 0), strict=True
        )
    ]


@torch.inference_mode()
def _token_shares(
    pipeline: Pipeline, attachment: Attachment, condition: str, ready: Sequence[ReadySample]
) -> list[float]:
    """Return the share of right tokens of each sample's answer."""
    scorer = AnswerScorer(pipeline, attachment.model, attachment.maybe_condition)
    with _lora(pipeline, attachment, condition):
        scores = scorer.token_scores(ready, 0)
    shares: list[float] = (scores.is_top.sum(2) / scores.mask.sum(2))[:, 0].tolist()
    return shares


def _lora(pipeline: Pipeline, attachment: Attachment, condition: str) -> Any:
    """Switch the modulation's own LoRA off in a block, if the condition is the bare host's."""
    return attachment.bare() if uses_bare_host(pipeline, condition) else nullcontext()


def _active_steps(attachment: Attachment, ready: Sequence[ReadySample], shared: int) -> list[int]:
    """Return for each sample how many time steps the signal reached in the last conditioning."""
    rows = [clips for _, clips in ready]
    report = attachment.report()
    # Questions that share a prefix share one conditioning, hence one report.
    return report.active_by_row(rows[:1]) * len(rows) if shared else report.active_by_row(rows)


# --- batches, shared among processes


@dataclass(frozen=True)
class _Rounds(Generic[T]):
    """Results for samples, in batches that several processes share.

    Attributes:
        pipeline: prepares the samples.
        attachment: the modulation on the host.
        condition: the condition of all results.
        run: returns the results of prepared samples, in order.
        failed: returns the result of a sample that failed.
        pack: makes results of one process JSON-serializable.
        unpack: the inverse.
    """

    pipeline: Pipeline
    attachment: Attachment
    condition: str
    run: Callable[[Sequence[ReadySample]], list[T]]
    failed: Callable[[Sample, Exception], T]
    pack: Callable[[list[T]], Any]
    unpack: Callable[[Any], list[T]]

    def all(self, samples: Sequence[Sample], advance: Advance) -> list[T]:
        """Return the results of all samples, in any order."""
        settings = self.pipeline.recipe.evaluation
        shuffle_pool = ShufflePool(samples)
        processes = current()
        batches = evaluation_batches(samples, settings.batch_size, settings.batch_by)
        results: list[T] = []
        for start in range(0, len(batches), processes.size):
            # One batch per process. In the last round some have none, but all must take part in
            # `gather` and, with a sharded host, in every forward.
            round_ = batches[start : start + processes.size]
            batch = round_[processes.rank] if processes.rank < len(round_) else []
            own = self._batch(batch, shuffle_pool)
            if processes.size == 1:
                results += own
            else:
                for packed in processes.all_gather(self.pack(own)):
                    results += self.unpack(packed)
            advance(sum(map(len, round_)))
        return results

    def _batch(self, batch: Sequence[Sample], shuffle_pool: ShufflePool) -> list[T]:
        """Return the results of one batch; failed samples come first."""
        results: list[T] = []
        ready: list[ReadySample] = []
        for sample in batch:
            found = catch_sample_error(partial(self._make_ready, sample, shuffle_pool))
            if isinstance(found, ModulateError):
                results.append(self.failed(sample, found))
            else:
                ready.append(found)
        processes = current()
        if not processes.shards:
            return results + self._run_that_fits(ready)
        # A sharded host needs every process in every forward, so it cannot be retried in halves.
        with in_step(processes):
            if any(processes.all_gather(bool(ready))):
                if ready:
                    results += self.run(ready)
                else:
                    _forward_without_samples(self.pipeline, self.attachment)
        return results

    def _make_ready(self, sample: Sample, shuffle_pool: ShufflePool) -> ReadySample:
        pipeline = self.pipeline
        condition = self.condition
        prepared = pipeline.prepare(sample, _view(pipeline, condition))
        if condition == "none" or uses_bare_host(pipeline, condition):
            return prepared, []
        if condition == "no_pixels":
            # The host sees gray frames; the modulation still gets features of the real ones.
            prepared = replace(prepared, inputs=pipeline.prepare(sample, "gray").inputs)
        if condition in BUILT_IN:
            return prepared, prepared.clip_inputs()
        return prepared, prepared.clip_inputs(pipeline.control(condition, prepared, shuffle_pool))

    def _run_that_fits(self, ready: Sequence[ReadySample]) -> list[T]:
        """Run all samples at once, or in halves when memory runs out, down to single ones.

        A single sample that does not fit has failed.
        """
        if not ready:
            return []
        try:
            return self.run(ready)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            reason = first_line(error)
        # Outside of the handler: until it ends, the traceback keeps the failed forward's tensors
        # alive.
        free_cached_memory()
        if len(ready) == 1:
            prepared, _ = ready[0]
            failed = DataError(
                f"does not fit into memory, even alone ({reason}). Lower sampling.max_frames."
            )
            return [self.failed(prepared.sample, failed)]
        warnings.warn(
            f"A forward of {len(ready)} samples does not fit into memory ({reason}); it is done in"
            " halves. A smaller evaluation.batch_size saves the failed attempts.",
            stacklevel=2,
        )
        half = len(ready) // 2
        return self._run_that_fits(ready[:half]) + self._run_that_fits(ready[half:])


def _view(pipeline: Pipeline, condition: str) -> str:
    """Return which view of the clip :meth:`Pipeline.prepare` shows the host."""
    if condition == "no_frames":
        return "gray"
    if condition == "text_only":
        return "text"
    return condition if condition in pipeline.recipe.evaluation.inputs else "own"


@torch.inference_mode()
def _forward_without_samples(pipeline: Pipeline, attachment: Attachment) -> None:
    """Take part in the other processes' forward of a sharded host, with a dummy input."""
    inputs = pipeline.host.encode(pipeline.processor, user_turn("-")).inputs
    on_device = {key: value.to(pipeline.device) for key, value in inputs.items()}
    attachment.model(**on_device, **LAST_LOGITS)

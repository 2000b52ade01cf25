"""Evaluation: answers under the main condition and every control, each sample accounted for."""

import math
import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from modulate.config.recipe import dump
from modulate.config.sections import BUILT_IN
from modulate.data.feature_cache import weights_digest
from modulate.data.feature_extractor import catch_sample_error
from modulate.distributed.launch import current
from modulate.errors import DataError, ModulateError
from modulate.evaluation.finished_conditions import FinishedConditions
from modulate.evaluation.metrics import compare, summarize
from modulate.evaluation.predictions import Prediction, apply_failed_rule, as_lines, from_lines
from modulate.hosts.fsdp import in_step, refuse_out_of_step
from modulate.inference.batching import LAST_LOGITS, evaluation_batches
from modulate.inference.controls import ShufflePool
from modulate.inference.pipeline import Pipeline
from modulate.inference.preparation import ReadySample
from modulate.inference.shared_prefix import shared_prefix, shared_prefix_forward
from modulate.interfaces.components import Sample
from modulate.modulation.attachment import Attachment
from modulate.modulation.clip_inputs import Rows
from modulate.modulation.module import Modulation
from modulate.runs.run import Run, environment
from modulate.utils.atomic_files import write_atomically
from modulate.utils.interrupts import StopRequest
from modulate.utils.library_warnings import show_library_warnings
from modulate.utils.out_of_memory import first_line, free_cached_memory, is_out_of_memory

ERROR_LENGTH = 10_000
"""Most characters that a prediction records of its error."""


# --- scoring samples under one condition


def score(
    pipeline: Pipeline,
    attachment: Attachment,
    samples: Sequence[Sample],
    condition: str,
    advance: Callable[[int], None] = lambda n: None,
) -> list[Prediction]:
    """Answer ``samples`` under ``condition``; return the predictions in order.

    Errors of single samples are recorded as failed predictions, never dropped. Several processes
    share the batches that one process would form, so the answers are identical to the bit; every
    process returns all of them. ``advance`` is called with the number of samples just answered.
    """
    settings = pipeline.recipe.evaluation
    shuffle_pool = ShufflePool(samples)
    processes = current()
    batches = evaluation_batches(samples, settings.batch_size, settings.batch_by)
    records: list[Prediction] = []
    for start in range(0, len(batches), processes.size):
        # One batch per process. In the last round some have none, but all must take part in
        # `gather` and, with a sharded host, in every forward.
        round_ = batches[start : start + processes.size]
        batch = round_[processes.rank] if processes.rank < len(round_) else []
        own = _score_batch(pipeline, attachment, batch, condition, shuffle_pool)
        if processes.size == 1:
            records += own
        else:
            for lines in processes.all_gather(as_lines(own)):
                records += from_lines(lines)
        advance(sum(map(len, round_)))
    position = {sample.id: i for i, sample in enumerate(samples)}
    return sorted(records, key=lambda record: position[record.id])


def _score_batch(
    pipeline: Pipeline,
    attachment: Attachment,
    batch: Sequence[Sample],
    condition: str,
    shuffle_pool: ShufflePool,
) -> list[Prediction]:
    """Answer one batch; failed samples come first."""
    records: list[Prediction] = []
    ready: list[ReadySample] = []
    for sample in batch:
        result = catch_sample_error(partial(_make_ready, pipeline, sample, condition, shuffle_pool))
        if isinstance(result, ModulateError):
            records.append(_failure(sample, condition, result))
        else:
            ready.append(result)
    processes = current()
    if not processes.shards:
        return records + _forward_that_fits(pipeline, attachment, ready, condition)
    # A sharded host needs every process in every forward, so it cannot be retried in halves.
    with in_step(processes):
        if any(processes.all_gather(bool(ready))):
            if ready:
                records += _forward(pipeline, attachment, ready, condition)
            else:
                _forward_without_samples(pipeline, attachment)
    return records


def _make_ready(
    pipeline: Pipeline, sample: Sample, condition: str, shuffle_pool: ShufflePool
) -> ReadySample:
    prepared = pipeline.prepare(sample, _view(pipeline, condition))
    if condition == "none" or uses_bare_host(pipeline, condition):
        return prepared, []
    if condition == "no_pixels":
        # The host sees gray frames; the modulation still gets features of the real ones.
        prepared = replace(prepared, inputs=pipeline.prepare(sample, "gray").inputs)
    if condition in BUILT_IN:
        return prepared, [prepared.clip(prepared.signal)]
    return prepared, [prepared.clip(pipeline.control(condition, prepared, shuffle_pool))]


def _view(pipeline: Pipeline, condition: str) -> str:
    """Return which view of the clip :meth:`Pipeline.prepare` shows the host."""
    if condition == "no_frames":
        return "gray"
    if condition == "text_only":
        return "text"
    return condition if condition in pipeline.recipe.evaluation.inputs else "own"


def uses_bare_host(pipeline: Pipeline, condition: str) -> bool:
    """Return whether ``condition`` runs the host without residual and without LoRA."""
    return condition in ("host", "text_only") or condition in pipeline.recipe.evaluation.inputs


def _forward_that_fits(
    pipeline: Pipeline, attachment: Attachment, ready: Sequence[ReadySample], condition: str
) -> list[Prediction]:
    """Answer in one forward, or in halves when memory runs out, down to single samples.

    A single sample that does not fit has failed.
    """
    if not ready:
        return []
    try:
        return _forward(pipeline, attachment, ready, condition)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        reason = first_line(error)
    # Outside of the handler: until it ends, the traceback keeps the failed forward's tensors alive.
    free_cached_memory()
    if len(ready) == 1:
        prepared, _ = ready[0]
        failed = DataError(
            f"does not fit into memory, even alone ({reason}). Lower sampling.max_frames."
        )
        return [_failure(prepared.sample, condition, failed)]
    warnings.warn(
        f"A forward of {len(ready)} samples does not fit into memory ({reason}); it is done in"
        " halves. A smaller evaluation.batch_size saves the failed attempts.",
        stacklevel=2,
    )
    half = len(ready) // 2
    first = _forward_that_fits(pipeline, attachment, ready[:half], condition)
    return first + _forward_that_fits(pipeline, attachment, ready[half:], condition)


@torch.inference_mode()
def _forward_without_samples(pipeline: Pipeline, attachment: Attachment) -> None:
    """Take part in the other processes' forward of a sharded host, with a dummy input."""
    inputs = pipeline.host.encode_text(pipeline.processor, "-").inputs
    on_device = {key: value.to(pipeline.device) for key, value in inputs.items()}
    attachment.model(**on_device, **LAST_LOGITS)


@torch.inference_mode()
def _forward(
    pipeline: Pipeline, attachment: Attachment, ready: Sequence[ReadySample], condition: str
) -> list[Prediction]:
    prepared = [sample for sample, _ in ready]
    rows = [clips for _, clips in ready]
    prefix = 0
    if pipeline.recipe.evaluation.batch_by == "clip":
        signals = [clips[0].signal if clips else None for clips in rows]
        visual_ids = list(attachment.host.visual_ids.values())
        prefix = shared_prefix(prepared, visual_ids, signals)
    # With a shared prefix, `shared_prefix_forward` builds the inputs itself.
    batch = pipeline.collate(prepared, with_inputs=not prefix)

    def forward(rows: Rows, **inputs: Any) -> Any:
        with attachment.maybe_condition(rows):
            return attachment.model(**inputs)

    with attachment.bare() if uses_bare_host(pipeline, condition) else nullcontext():
        if prefix:
            output: object = shared_prefix_forward(
                forward, attachment.model, prepared, rows[0], prefix
            )
        else:
            output = forward(rows, **batch.inputs, **LAST_LOGITS)
    logits = batch.option_logits(output).cpu()
    if any(rows):
        # Questions that share a prefix share one conditioned clip, hence one report.
        active_steps = attachment.report().active_steps * (len(rows) if prefix else 1)
    else:
        active_steps = (0,) * len(rows)
    return [
        _prediction(sample.sample, condition, row[: len(sample.options)].tolist(), steps)
        for sample, row, steps in zip(prepared, logits, active_steps, strict=True)
    ]


def _prediction(
    sample: Sample, condition: str, logits: list[float], active_steps: int
) -> Prediction:
    # With NaN or infinities no logit is reliably the largest, and JSON cannot hold them.
    if not all(map(math.isfinite, logits)):
        error = DataError(f"the host's logits of the options are not all finite: {logits}.")
        return _failure(sample, condition, error)
    choice = max(range(len(logits)), key=logits.__getitem__)
    return Prediction(
        id=sample.id,
        task=sample.task,
        group=_group(sample),
        condition=condition,
        answer=sample.answer,
        prediction=choice,
        correct=choice == sample.answer,
        logits=tuple(round(logit, 4) for logit in logits),
        active_steps=active_steps,
    )


def _failure(sample: Sample, condition: str, error: Exception) -> Prediction:
    text = f"{type(error).__name__}: {error}"[:ERROR_LENGTH]
    # File names in error texts may hold surrogates, which UTF-8 files cannot.
    text = text.encode("utf-8", "backslashreplace").decode()
    return Prediction(
        id=sample.id,
        task=sample.task,
        group=_group(sample),
        condition=condition,
        answer=sample.answer,
        prediction=None,
        correct=False,
        logits=(),
        active_steps=0,
        error=text,
    )


def _group(sample: Sample) -> str:
    # Without a video, no sample depends on another.
    return sample.groups.get("video", sample.id)


# --- evaluating a run


@show_library_warnings()
def evaluate(
    run: Run,
    pipeline: Pipeline,
    modulation: Modulation,
    split: str = "test",
    advance: Callable[[str, int, int], None] = lambda condition, done, total: None,
    *,
    stop: StopRequest | None = None,
) -> dict[str, Any]:
    """Evaluate a run under its main condition and all controls; return the metrics.

    Writes metrics.json and predictions.jsonl. Deterministic: a second evaluation writes the same
    files, and an interrupted one continues after the conditions it had finished. Several processes
    share the work; the first one writes.

    Args:
        run: the run; locked during the evaluation.
        pipeline: the pipeline of the run's recipe.
        modulation: the trained modulation.
        split: the split to evaluate on.
        advance: called with the condition, the number of samples just answered, and their total.
        stop: checked after each round of batches.

    Raises :class:`DataError` when more samples fail than the recipe allows, :class:`Interrupted`,
    :class:`LockedError`, :class:`StorageError`, :class:`RankError`.
    """
    samples = pipeline.samples(split)
    stop = stop or StopRequest()
    processes = current()
    refuse_out_of_step(run.recipe, processes, training=False)
    if not samples:
        raise DataError(f"The split {split!r} has no samples.")
    with processes.fail_together(), run.locked():
        pipeline.build_deferred()  # Parts that cannot be built fail before the first answer.
        main = run.recipe.training.condition
        records = _score_conditions(
            run, pipeline, modulation, split, samples, _conditions(run), advance, stop
        )
        metrics = processes.broadcast(lambda: _write_results(run, split, main, records))
    share = len(metrics["failed"]) / len(samples)
    if share > run.recipe.evaluation.max_failed_share:
        first = metrics["failed"][0]
        raise DataError(
            f"{len(metrics['failed'])} of {len(samples)} samples failed, more than max_failed_share"
            f" {run.recipe.evaluation.max_failed_share} allows. First: {first['id']}:"
            f" {first['error']}"
        )
    return metrics


def _conditions(run: Run) -> list[str]:
    """Return the main condition, the controls that apply, and the recipe's input transforms."""
    settings = run.recipe.evaluation
    main = run.recipe.training.condition
    controls = [
        condition
        for condition in settings.conditions
        # Controls of the signal mean nothing to a run that was trained without modulation.
        if condition != main and (main != "none" or condition in ("host", "text_only"))
    ]
    return [main, *controls, *settings.inputs]


def _score_conditions(
    run: Run,
    pipeline: Pipeline,
    modulation: Modulation,
    split: str,
    samples: Sequence[Sample],
    conditions: Sequence[str],
    advance: Callable[[str, int, int], None],
    stop: StopRequest,
) -> dict[str, list[Prediction]]:
    """Return predictions by condition; conditions finished before an interruption are read back."""
    ids = [sample.id for sample in samples]
    inputs = [
        dump(run.recipe),
        ids,
        pipeline.fingerprints(),
        weights_digest(modulation),
        environment(),
    ]
    finished = FinishedConditions(run.evaluation, split, inputs)
    total = len(samples)
    processes = current()
    records: dict[str, list[Prediction]] = {}
    with (
        modulation.eval().to(pipeline.device).attached(pipeline.model) as attachment,
        pipeline.host_caches(),
    ):
        for condition in conditions:

            def advanced(n: int, condition: str = condition) -> None:
                advance(condition, n, total)
                # Processes agree first: one that stopped alone would leave the others waiting.
                processes.agree_on_stop(stop).check()

            # Only the first process reads and writes, and it decides for all.
            answers = (finished.read(condition, ids) if processes.is_main_process else None) or []
            if not processes.all_gather(bool(answers))[0]:
                answers = score(pipeline, attachment, samples, condition, advanced)
                if processes.is_main_process:
                    finished.write(condition, answers)
            else:
                advanced(total)
            records[condition] = answers
    return records


def _write_results(
    run: Run, split: str, main: str, records: dict[str, list[Prediction]]
) -> dict[str, Any]:
    """Write predictions and metrics; return the metrics."""
    lines = "".join(as_lines(answers) for answers in records.values())
    write_atomically(run.predictions(split), lambda path: path.write_text(lines, encoding="utf-8"))
    metrics = {"split": split, **compute_metrics(run, main, records)}
    run.write_json(run.metrics(split).name, metrics)
    # Last, so that an interruption up to here can still continue from them.
    FinishedConditions(run.evaluation, split, None).clear()
    return metrics


def compute_metrics(run: Run, main: str, records: dict[str, list[Prediction]]) -> dict[str, Any]:
    """Return the contents of metrics.json, except for its split.

    Raises :class:`DataError` when no sample is left to score.
    """
    resamples = run.recipe.evaluation.bootstrap
    seed = run.recipe.seed
    # By sample: of several failures the last is listed.
    failed = {
        record.id: {"id": record.id, "condition": record.condition, "error": record.error}
        for answers in records.values()
        for record in answers
        if record.error
    }
    scored = apply_failed_rule(records, run.recipe.evaluation.failed)
    main_answers = scored.pop(main)
    if not main_answers:
        first = next(iter(failed.values()))
        raise DataError(
            "Every sample failed under some condition, and is left out (evaluation.failed:"
            f" left_out). First: {first['id']}, {first['condition']}: {first['error']}"
        )
    return {
        "condition": main,
        **summarize(main_answers, resamples, seed),
        "controls": {name: summarize(answers, resamples, seed) for name, answers in scored.items()},
        "comparisons": {
            f"{main} - {name}": compare(main_answers, answers, resamples, seed)
            for name, answers in scored.items()
        },
        "signal": {
            "samples": len(main_answers),
            "samples_with_active_signal": sum(record.active_steps > 0 for record in main_answers),
            "active_steps": sum(record.active_steps for record in main_answers),
        },
        "failed": list(failed.values()),
    }

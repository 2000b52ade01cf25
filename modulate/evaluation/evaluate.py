"""Evaluation: answers under the signal and under every control, each sample accounted for."""

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
from modulate.evaluation.predictions import Prediction, as_lines, from_lines, scored
from modulate.hosts.fsdp import in_step, refuse_out_of_step
from modulate.inference.batching import LAST_LOGITS, evaluation_batches
from modulate.inference.controls import ShufflePool
from modulate.inference.pipeline import Pipeline
from modulate.inference.preparation import PreparedSample
from modulate.inference.shared_prefix import answer_together, shared_prefix
from modulate.interfaces.components import Sample
from modulate.modulation.attachment import Attachment
from modulate.modulation.clip_inputs import ClipInput, Rows
from modulate.modulation.module import Modulation
from modulate.runs.run import Run, environment
from modulate.utils.atomic_files import write_atomically
from modulate.utils.interrupts import StopRequest
from modulate.utils.library_warnings import show_library_warnings
from modulate.utils.out_of_memory import first_line, free_cached_memory, is_out_of_memory

ERROR_LENGTH = 10_000
"""Most characters that are noted of a sample's error."""


def score(
    pipeline: Pipeline,
    attachment: Attachment,
    samples: Sequence[Sample],
    condition: str,
    advance: Callable[[int], None] = lambda n: None,
) -> list[Prediction]:
    """Answer ``samples`` under ``condition``, in order.

    Errors of single samples are recorded, never dropped.

    Several processes take batches in turn, the same ones that one process would make, so that their
    answers are the same to the bit; each gets all of them.
    """
    settings = pipeline.recipe.evaluation
    others = ShufflePool(samples)
    processes = current()
    chunks = evaluation_batches(samples, settings.batch_size, settings.batch_by)
    records: list[Prediction] = []
    for start in range(0, len(chunks), processes.size):
        among = chunks[start : start + processes.size]
        own = _chunk(
            pipeline,
            attachment,
            among[processes.rank] if processes.rank < len(among) else [],
            condition,
            others,
        )
        records += (
            own
            if processes.size == 1
            else [
                prediction
                for lines in processes.gather(as_lines(own))
                for prediction in from_lines(lines)
            ]
        )
        advance(sum(map(len, among)))
    order = {s.id: i for i, s in enumerate(samples)}
    return sorted(records, key=lambda r: order[r.id])


def _chunk(
    pipeline: Pipeline,
    attachment: Attachment,
    chunk: Sequence[Sample],
    condition: str,
    others: ShufflePool,
) -> list[Prediction]:
    """Answer one batch, in any order."""
    records: list[Prediction] = []
    ready: list[tuple[PreparedSample, list[ClipInput]]] = []
    for sample in chunk:
        made = catch_sample_error(partial(_conditioned, pipeline, sample, condition, others))
        if isinstance(made, ModulateError):
            records.append(_failure(sample, condition, made))
        else:
            ready.append(made)
    processes = current()
    if not processes.shards:
        return records + _answers(pipeline, attachment, ready, condition)
    with in_step(processes):
        if any(processes.gather(bool(ready))):
            records += (
                _forward(pipeline, attachment, ready, condition)
                if ready
                else _forward_for_nothing(pipeline, attachment)
            )
    return records


def _conditioned(
    pipeline: Pipeline, sample: Sample, condition: str, others: ShufflePool
) -> tuple[PreparedSample, list[ClipInput]]:
    view = {"no_frames": "gray", "text_only": "text"}.get(
        condition, condition if condition in pipeline.recipe.evaluation.inputs else "own"
    )
    prepared = pipeline.prepare(sample, view)
    if condition == "none" or bare(pipeline, condition):
        return prepared, []
    if condition == "no_pixels":
        prepared = replace(prepared, inputs=pipeline.prepare(sample, "gray").inputs)
    if condition in BUILT_IN:
        return prepared, [prepared.clip(prepared.signal)]
    return prepared, [prepared.clip(pipeline.control(condition, prepared, others))]


def bare(pipeline: Pipeline, condition: str) -> bool:
    """Return whether ``condition`` asks the host without residual and without LoRA."""
    return condition in ("host", "text_only") or condition in pipeline.recipe.evaluation.inputs


def _answers(
    pipeline: Pipeline,
    attachment: Attachment,
    ready: Sequence[tuple[PreparedSample, list[ClipInput]]],
    condition: str,
) -> list[Prediction]:
    """Answer in one forward; in halves when that does not fit into memory, down to single samples,
    which then have failed.
    """
    if not ready:
        return []
    try:
        return _forward(pipeline, attachment, ready, condition)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        text = first_line(error)
    free_cached_memory()
    if len(ready) == 1:
        return [
            _failure(
                ready[0][0].sample,
                condition,
                DataError(
                    f"does not fit into memory, even alone ({text}). Lower sampling.max_frames."
                ),
            )
        ]
    warnings.warn(
        f"A forward of {len(ready)} samples does not fit into memory ({text}); it is done in"
        " halves. A smaller evaluation.batch_size saves the failed attempts.",
        stacklevel=2,
    )
    half = len(ready) // 2
    return _answers(pipeline, attachment, ready[:half], condition) + _answers(
        pipeline, attachment, ready[half:], condition
    )


@torch.inference_mode()
def _forward_for_nothing(pipeline: Pipeline, attachment: Attachment) -> list[Prediction]:
    """Go through a divided host with the others, who could not without us; answer nothing."""
    inputs = pipeline.host.encode_text(pipeline.processor, "-").inputs
    attachment.model(
        **{key: value.to(pipeline.device) for key, value in inputs.items()}, **LAST_LOGITS
    )
    return []


@torch.inference_mode()
def _forward(
    pipeline: Pipeline,
    attachment: Attachment,
    ready: Sequence[tuple[PreparedSample, list[ClipInput]]],
    condition: str,
) -> list[Prediction]:
    prepared = [p for p, _ in ready]
    rows = [clips for _, clips in ready]
    common = 0
    if pipeline.recipe.evaluation.batch_by == "clip":
        common = shared_prefix(
            prepared,
            list(attachment.host.visual_ids.values()),
            [clips[0].signal if clips else None for clips in rows],
        )
    batch = pipeline.collate(prepared, with_inputs=not common)

    def ask(rows: Rows, **inputs: Any) -> Any:
        with attachment.under(rows):
            return attachment.model(**inputs)

    with attachment.bare() if bare(pipeline, condition) else nullcontext():
        if common:
            output: object = answer_together(ask, attachment.model, prepared, rows[0], common)
        else:
            output = ask(rows, **batch.inputs, **LAST_LOGITS)
    logits = batch.option_logits(output).cpu()
    active = (
        attachment.report().active_steps * (len(rows) if common else 1)
        if any(rows)
        else (0,) * len(rows)
    )
    return [
        _prediction(p.sample, condition, row[: len(p.options)].tolist(), n)
        for p, row, n in zip(prepared, logits, active, strict=True)
    ]


def _prediction(sample: Sample, condition: str, logits: list[float], active: int) -> Prediction:
    if not all(
        map(math.isfinite, logits)
    ):  # which of them is the largest nobody can say, and JSON has no word for them
        return _failure(
            sample,
            condition,
            DataError(f"the host's logits of the options are not all finite: {logits}."),
        )
    choice = max(range(len(logits)), key=logits.__getitem__)
    rounded = tuple(round(v, 4) for v in logits)
    return Prediction(
        sample.id,
        sample.task,
        sample.groups.get("video", sample.id),
        condition,
        sample.answer,
        choice,
        choice == sample.answer,
        rounded,
        active,
    )


def _failure(sample: Sample, condition: str, error: Exception) -> Prediction:
    group = sample.groups.get("video", sample.id)
    text = (
        f"{type(error).__name__}: {error}"[:ERROR_LENGTH]
        .encode("utf-8", "backslashreplace")
        .decode()
    )  # names of files may hold what UTF-8 cannot
    return Prediction(
        sample.id, sample.task, group, condition, sample.answer, None, False, (), 0, text
    )


@show_library_warnings()
def evaluate(
    run: Run,
    pipeline: Pipeline,
    modulation: Modulation,
    split: str = "test",
    advance: Callable[[str, int, int], None] = lambda c, d, n: None,
    *,
    stop: StopRequest | None = None,
) -> dict[str, Any]:
    """Evaluate a run under its condition and all controls; write metrics.json and
    predictions.jsonl; return the metrics.

    Deterministic: a second evaluation writes the same files, and one that was ended early, by
    ``stop`` or by anything, goes on after the conditions it had finished. Several processes share
    the work; the first one writes. Raises :class:`DataError` when more samples fail than the recipe
    allows, :class:`Interrupted`, :class:`LockedError`, :class:`StorageError`, :class:`RankError`.
    """
    samples = pipeline.samples(split)
    stop = stop or StopRequest()
    processes = current()
    refuse_out_of_step(run.recipe, processes, training=False)
    if not samples:
        raise DataError(f"The split {split!r} has no samples.")
    with processes.fail_together(), run.held():
        main = run.recipe.training.condition
        conditions = (
            c
            for c in run.recipe.evaluation.conditions
            if c != main and (main != "none" or c in ("host", "text_only"))
        )
        records = _records(
            run,
            pipeline,
            modulation,
            split,
            samples,
            [main, *conditions, *pipeline.recipe.evaluation.inputs],
            advance,
            stop,
        )
        metrics = processes.told(lambda: _written(run, split, main, records))
    share = len(metrics["failed"]) / len(samples)
    if share > run.recipe.evaluation.max_failed_share:
        first = metrics["failed"][0]
        raise DataError(
            f"{len(metrics['failed'])} of {len(samples)} samples failed, more than max_failed_share"
            f" {run.recipe.evaluation.max_failed_share} allows. First: {first['id']}:"
            f" {first['error']}"
        )
    return metrics


def _written(
    run: Run, split: str, main: str, records: dict[str, list[Prediction]]
) -> dict[str, Any]:
    """Write what came of an evaluation; return its metrics."""
    lines = "".join(as_lines(answers) for answers in records.values())
    write_atomically(run.predictions(split), lambda path: path.write_text(lines, encoding="utf-8"))
    metrics = {"split": split, **_metrics(run, main, records)}
    run.write_json(run.metrics(split).name, metrics)
    FinishedConditions(run.evaluation, split, None).clear()
    return metrics


def _records(
    run: Run,
    pipeline: Pipeline,
    modulation: Modulation,
    split: str,
    samples: Sequence[Sample],
    names: Sequence[str],
    advance: Callable[[str, int, int], None],
    stop: StopRequest,
) -> dict[str, list[Prediction]]:
    """Return every condition's answers: kept ones of an evaluation that was ended early, or asked
    for now and kept.
    """
    made_of = [
        dump(run.recipe),
        [s.id for s in samples],
        pipeline.fingerprints(),
        weights_digest(modulation),
        environment(),
    ]
    kept = FinishedConditions(run.evaluation, split, made_of)
    total = len(samples)
    processes = current()
    records: dict[str, list[Prediction]] = {}
    with (
        modulation.eval().to(pipeline.device).attached(pipeline.model) as attachment,
        pipeline.host_caches(),
    ):
        for name in names:

            def advanced(n: int, name: str = name) -> None:
                advance(name, n, total)
                processes.agreed(stop).check()

            answers = (kept.read(name, [s.id for s in samples]) if processes.leads else None) or []
            if not processes.gather(bool(answers))[0]:
                answers = score(pipeline, attachment, samples, name, advanced)
                if processes.leads:
                    kept.write(name, answers)
            else:
                advanced(total)
            records[name] = answers
    return records


def _metrics(run: Run, main: str, records: dict[str, list[Prediction]]) -> dict[str, Any]:
    boot = run.recipe.evaluation.bootstrap
    seed = run.recipe.seed
    failed = {
        r.id: {"id": r.id, "condition": r.condition, "error": r.error}
        for rs in records.values()
        for r in rs
        if r.error
    }
    records = scored(records, run.recipe.evaluation.failed)
    own = records[main]
    if not own:
        first = next(iter(failed.values()))
        raise DataError(
            "Every sample failed under some condition, and is left out (evaluation.failed:"
            f" left_out). First: {first['id']}, {first['condition']}: {first['error']}"
        )
    controls = {name: summarize(r, boot, seed) for name, r in records.items() if name != main}
    return {
        "condition": main,
        **summarize(own, boot, seed),
        "controls": controls,
        "comparisons": {
            f"{main} - {name}": compare(own, r, boot, seed)
            for name, r in records.items()
            if name != main
        },
        "signal": {
            "samples": len(own),
            "samples_with_active_signal": sum(r.active_steps > 0 for r in own),
            "active_steps": sum(r.active_steps for r in own),
        },
        "failed": list(failed.values()),
    }

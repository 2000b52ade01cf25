"""Evaluation: answers under the signal and under every control, each sample accounted for."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import Any

import torch

from modulate.components import Sample
from modulate.errors import ComponentError, DataError, ModulateError
from modulate.files import write_atomically
from modulate.inject import Attachment
from modulate.metrics import Prediction, compare, summarise
from modulate.modulation import ClipInput, Modulation
from modulate.pipeline import Others, Pipeline, Prepared
from modulate.run import Run
from modulate.sections import BUILT_IN


def score(
    pipeline: Pipeline, attachment: Attachment, samples: Sequence[Sample], condition: str, advance: Callable[[int], None] = lambda n: None
) -> list[Prediction]:
    """Answer ``samples`` under ``condition``, in order. Errors of single samples are recorded, never dropped."""
    size, others, records = pipeline.recipe.evaluation.batch_size, Others(samples), []
    for start in range(0, len(samples), size):
        chunk = samples[start : start + size]
        ready: dict[int, tuple[Prepared, list[ClipInput]]] = {}
        for i, sample in enumerate(chunk):
            try:
                ready[i] = _conditioned(pipeline, sample, condition, others)
            except ComponentError:  # a defect of a plugin, no bad sample: the next ones would fail alike
                raise
            except ModulateError as error:
                records.append(_failure(sample, condition, error))
        records += _answers(pipeline, attachment, [ready[i] for i in sorted(ready)], condition)
        advance(len(chunk))
    order = {s.id: i for i, s in enumerate(samples)}
    return sorted(records, key=lambda r: order[r.id])


def _conditioned(pipeline: Pipeline, sample: Sample, condition: str, others: Others) -> tuple[Prepared, list[ClipInput]]:
    view = {"no_frames": "grey", "text_only": "text"}.get(condition, condition if condition in pipeline.inputs else "own")
    prepared = pipeline.prepare(sample, view)
    if condition == "none" or bare(pipeline, condition):
        return prepared, []
    if condition == "no_pixels":
        prepared = replace(prepared, inputs=pipeline.prepare(sample, "grey").inputs)
    if condition in BUILT_IN:
        return prepared, [prepared.clip(prepared.signal)]
    return prepared, [prepared.clip(pipeline.control(condition, prepared, others))]


def bare(pipeline: Pipeline, condition: str) -> bool:
    """Return whether ``condition`` asks the host without residual and without LoRA."""
    return condition in ("host", "text_only") or condition in pipeline.inputs


@torch.inference_mode()
def _answers(pipeline: Pipeline, attachment: Attachment, ready: Sequence[tuple[Prepared, list[ClipInput]]], condition: str) -> list[Prediction]:
    if not ready:
        return []
    batch = pipeline.collate([prepared for prepared, _ in ready])
    rows = [clips for _, clips in ready]
    with attachment.under(rows, bare=bare(pipeline, condition)):
        output = attachment.model(**batch.inputs, **pipeline.LAST_LOGITS)
    logits = pipeline.option_logits(batch, output).cpu()
    active = attachment.report().active_steps if any(rows) else (0,) * len(rows)
    return [_prediction(p.sample, condition, row[: len(p.options)].tolist(), n) for (p, _), row, n in zip(ready, logits, active, strict=True)]


def _prediction(sample: Sample, condition: str, logits: list[float], active: int) -> Prediction:
    choice = max(range(len(logits)), key=logits.__getitem__)
    rounded = tuple(round(v, 4) for v in logits)
    return Prediction(sample.id, sample.task, sample.groups.get("video", sample.id), condition, sample.answer, choice, choice == sample.answer, rounded, active)


def _failure(sample: Sample, condition: str, error: Exception) -> Prediction:
    group = sample.groups.get("video", sample.id)
    return Prediction(sample.id, sample.task, group, condition, sample.answer, None, False, (), 0, f"{type(error).__name__}: {error}")


def evaluate(
    run: Run, pipeline: Pipeline, modulation: Modulation, split: str = "test", advance: Callable[[str, int, int], None] = lambda c, d, n: None
) -> dict[str, Any]:
    """Evaluate a run under its condition and all controls; write metrics.json and predictions.jsonl; return the metrics.

    Deterministic: a second evaluation writes the same files. Raises :class:`DataError` when more samples fail than the recipe allows.
    """
    recipe, samples = run.recipe, pipeline.samples(split)
    if not samples:
        raise DataError(f"The split {split!r} has no samples.")
    main = recipe.training.condition
    names = [main, *(c for c in recipe.evaluation.conditions if c != main and (main != "none" or c in ("host", "text_only"))), *pipeline.inputs]
    records: dict[str, list[Prediction]] = {}
    with modulation.eval().to(pipeline.device).attached(pipeline.model) as attachment:
        for name in names:
            records[name] = score(pipeline, attachment, samples, name, lambda n, name=name: advance(name, n, len(samples)))  # type: ignore[misc]
    lines = "".join(json.dumps(asdict(r), ensure_ascii=False) + "\n" for name in names for r in records[name])
    write_atomically(run.folder / f"predictions{_suffix(split)}.jsonl", lambda path: path.write_text(lines))
    metrics = {"split": split, **_metrics(run, main, records)}
    run.write_json(f"metrics{_suffix(split)}.json", metrics)
    share = len(metrics["failed"]) / len(samples)
    if share > recipe.evaluation.max_failed_share:
        first = metrics["failed"][0]
        raise DataError(
            f"{len(metrics['failed'])} of {len(samples)} samples failed, more than max_failed_share {recipe.evaluation.max_failed_share} allows. First: {first['id']}: {first['error']}"
        )
    return metrics


def _suffix(split: str) -> str:
    """The test split's files have the plain names; another split's never overwrite them."""
    return "" if split == "test" else f"-{split}"


def _metrics(run: Run, main: str, records: dict[str, list[Prediction]]) -> dict[str, Any]:
    boot, seed = run.recipe.evaluation.bootstrap, run.recipe.seed
    failed = {r.id: {"id": r.id, "condition": r.condition, "error": r.error} for rs in records.values() for r in rs if r.error}
    if run.recipe.evaluation.failed == "left_out":
        records = {name: [r for r in rs if r.id not in failed] for name, rs in records.items()}
    own = records[main]
    controls = {name: summarise(r, boot, seed) for name, r in records.items() if name != main}
    return {
        "condition": main,
        **summarise(own, boot, seed),
        "controls": controls,
        "comparisons": {f"{main} - {name}": compare(own, r, boot, seed) for name, r in records.items() if name != main},
        "signal": {"samples": len(own), "samples_with_active_signal": sum(r.active_steps > 0 for r in own), "active_steps": sum(r.active_steps for r in own)},
        "failed": list(failed.values()),
    }

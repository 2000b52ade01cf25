"""Evaluation: answers under the main condition and every control, each sample accounted for."""

from collections.abc import Callable, Sequence
from typing import Any

from modulate.config.recipe import dump
from modulate.data.feature_cache import weights_digest
from modulate.distributed.launch import current
from modulate.errors import DataError
from modulate.evaluation.finished_conditions import FinishedConditions
from modulate.evaluation.metrics import compare, summarize
from modulate.evaluation.predictions import Prediction, apply_failed_rule, as_lines
from modulate.evaluation.scoring import require_scorable, score
from modulate.evaluation.text_scores import signatures
from modulate.hosts.fsdp import refuse_out_of_step
from modulate.inference.pipeline import Pipeline
from modulate.inference.preparation import refuse_untransformable
from modulate.interfaces.sample import Sample
from modulate.modulation.module import Modulation
from modulate.runs.run import Run, environment
from modulate.utils.atomic_files import write_atomically
from modulate.utils.interrupts import StopRequest
from modulate.utils.library_warnings import show_library_warnings


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
    refuse_untransformable(run.recipe, samples)
    with processes.fail_together(), run.locked():
        pipeline.build_deferred()  # Parts that cannot be built fail before the first answer.
        require_scorable(pipeline)
        main = run.recipe.training.condition
        records = _score_conditions(
            run, pipeline, modulation, split, samples, _conditions(run), advance, stop
        )
        skipped_rows = dict(pipeline.dataset.skipped_rows())
        off_clock = sum(
            any(pipeline.signals.off_clock(clip) for clip in sample.clips) for sample in samples
        )
        metrics = processes.broadcast(
            lambda: _write_results(run, split, main, records, skipped_rows, off_clock)
        )
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
    run: Run,
    split: str,
    main: str,
    records: dict[str, list[Prediction]],
    skipped_rows: dict[str, int],
    off_clock: int,
) -> dict[str, Any]:
    """Write predictions and metrics; return the metrics."""
    lines = "".join(as_lines(answers) for answers in records.values())
    write_atomically(run.predictions(split), lambda path: path.write_text(lines, encoding="utf-8"))
    metrics = {"split": split, **compute_metrics(run, main, records)}
    if skipped_rows:
        metrics["skipped_rows"] = skipped_rows
    if off_clock:
        metrics["signal"]["samples_off_clock"] = off_clock
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
    metric = run.recipe.main_metric
    is_text = metric != "accuracy"
    return {
        **({"metric": metric, "signatures": signatures()} if is_text else {}),
        "condition": main,
        **summarize(main_answers, resamples, seed, metric),
        "controls": {
            name: summarize(answers, resamples, seed, metric) for name, answers in scored.items()
        },
        "comparisons": {
            f"{main} - {name}": compare(main_answers, answers, resamples, seed, metric)
            for name, answers in scored.items()
        },
        "signal": {
            "samples": len(main_answers),
            "samples_with_active_signal": sum(record.active_steps > 0 for record in main_answers),
            "active_steps": sum(record.active_steps for record in main_answers),
        },
        "failed": list(failed.values()),
    }

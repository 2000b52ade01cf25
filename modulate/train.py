"""Training: stages, parameter groups, schedule. A short loop of our own on accelerate."""

import json
import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.tracking import LoggerType, get_available_trackers
from torch import Tensor, nn

from modulate.components import Sample
from modulate.errors import ComponentError, DataError, ModulateError, RecipeError
from modulate.evaluate import score
from modulate.inject import ModulatedHost
from modulate.modulation import ClipInput, Modulation
from modulate.pipeline import Batch, Pipeline, Prepared
from modulate.recipe import Recipe
from modulate.run import Run
from modulate.sections import Stage


@dataclass
class Progress:
    """What a progress display is told after every optimiser step. ``active``: share of samples in which the signal reached a token."""

    stage: str
    step: int
    steps: int
    loss: float
    accuracy: float
    active: float
    lr: float
    seconds: float


Listener = Callable[[Progress], None]


@dataclass
class Tally:
    """Running totals since the last report."""

    loss: float = 0.0
    right: int = 0
    active: int = 0
    n: int = 0
    failed: dict[str, str] = field(default_factory=dict)


def train(run: Run, pipeline: Pipeline, listener: Listener = lambda progress: None) -> Modulation:
    """Train a run's recipe, leave the weights in its folder, and return the modulation.

    A run that is finished already, on the same data, is loaded instead. Raises :class:`DataError` when too many samples fail.
    """
    recipe, made_of = run.recipe, pipeline.fingerprints()
    state = run.read_json("state.json")
    if state.get("finished") and state.get("made_of") == made_of:
        return Modulation.from_pretrained(run.weights)
    log = run.folder / "log.jsonl"
    log.unlink(missing_ok=True)
    trainer = Trainer(recipe, pipeline, log, listener)
    modulation = trainer.fit()
    modulation.save_pretrained(run.weights)
    run.write_json("state.json", {"finished": True, "made_of": made_of, "steps": trainer.step, "seconds": round(trainer.seconds, 1), "failed": trainer.failed})
    return modulation


class Trainer:
    """One training: holds the modulation, the modulated host and the counters."""

    def __init__(self, recipe: Recipe, pipeline: Pipeline, log: Path, listener: Listener) -> None:
        self.recipe, self.pipeline, self.log, self.listener = recipe, pipeline, log, listener
        self.accelerator = accelerator_for(recipe, pipeline.device, log.parent)
        if recipe.training.trackers:
            self.accelerator.init_trackers(recipe.name)
        self.modulation = pipeline.fresh_modulation().to(pipeline.device)
        self.samples = pipeline.samples("train")
        self.validation = pipeline.samples("val") if recipe.training.validate_every else []
        if not self.samples:
            raise DataError("The training split has no samples.")
        self.failed: dict[str, str] = {}
        self.step = 0
        self.seconds = 0.0
        self.rng = random.Random(recipe.seed)

    def fit(self) -> Modulation:
        """Run every stage and return the best (or last) modulation, detached."""
        start = time.monotonic()
        host = ModulatedHost(self.modulation, self.pipeline.model)
        try:
            for stage in self.recipe.training.stages:
                self._stage(stage, host)
        finally:
            host.attachment.detach()
            self.accelerator.end_training()
        self.seconds = time.monotonic() - start
        return self.modulation.eval()

    # --- one stage ---------------------------------------------------------------------------------------------------------------

    def _stage(self, stage: Stage, host: ModulatedHost) -> None:
        settings = self.recipe.training
        select(self.modulation, stage)
        per_epoch = math.ceil(len(self.samples) / (settings.batch_size * settings.accumulation))
        steps = max(1, round(stage.epochs * per_epoch))
        optimizer = torch.optim.AdamW(parameter_groups(self.modulation, stage, settings.weight_decay))
        self.accelerator.free_memory()  # forget the last stage's optimiser: fp16 would unscale the gradients that both share twice
        optimizer = self.accelerator.prepare(optimizer)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, warmup_cosine(min(settings.warmup_steps, steps // 2), steps))
        best, stale = -1.0, 0
        best_state: dict[str, Tensor] = {}
        batches = self._batches(stage.name)
        for step in range(1, steps + 1):
            self.modulation.train()
            tally = self._accumulate([next(batches) for _ in range(settings.accumulation)], host)
            self.accelerator.clip_grad_norm_([p for p in self.modulation.parameters() if p.requires_grad], settings.clip_norm)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            self._report(stage, step, steps, tally, float(schedule.get_last_lr()[0]))
            if self.validation and (step == steps or step % (per_epoch * (settings.validate_every or 1)) == 0):
                accuracy = self._validate(host, stage, step)
                best, stale, best_state = (accuracy, 0, self._snapshot()) if accuracy >= best else (best, stale + 1, best_state)
                if settings.patience and stale >= settings.patience:
                    break
        if best_state:
            self.modulation.load_state_dict(best_state)

    def _snapshot(self) -> dict[str, Tensor]:
        return {k: v.detach().clone() for k, v in self.modulation.state_dict().items()}

    def _batches(self, stage: str) -> Iterator[list[Sample]]:
        epoch = 0
        while True:
            order = list(self.samples)
            random.Random(f"{self.recipe.seed}:{stage}:{epoch}").shuffle(order)
            size = self.recipe.training.batch_size
            yield from (order[i : i + size] for i in range(0, len(order), size))
            epoch += 1

    def _accumulate(self, batches: Sequence[Sequence[Sample]], host: ModulatedHost) -> Tally:
        tally = Tally()
        ready = [[p for s in samples if (p := self._prepare(s))] for samples in batches]
        total = sum(len(r) for r in ready)
        for prepared in ready:
            if not prepared:
                continue
            batch = self.pipeline.collate(prepared)
            logits = self._forward(batch, host)
            loss = smoothed_cross_entropy(logits, batch.answers, self.recipe.training.label_smoothing)
            self.accelerator.backward(loss * len(prepared) / total)
            tally.n += len(prepared)
            tally.loss += float(loss.detach()) * len(prepared)
            tally.right += int((logits.argmax(1) == batch.answers).sum())
            tally.active += sum(n > 0 for n in host.attachment.report().active_steps)
        return tally

    def _prepare(self, sample: Sample) -> Prepared | None:
        try:
            return self.pipeline.prepare(sample)
        except ComponentError:  # a defect of a plugin, no bad sample
            raise
        except ModulateError as error:
            self.failed[sample.id] = str(error)
            if len(self.failed) > self.recipe.evaluation.max_failed_share * len(self.samples):
                raise DataError(f"{len(self.failed)} of {len(self.samples)} training samples failed, more than max_failed_share allows. {error}") from error
            return None

    def _forward(self, batch: Batch, host: ModulatedHost) -> Tensor:
        with self.accelerator.autocast():
            output = host([self._clips(p) for p in batch.prepared], **batch.inputs, **self.pipeline.LAST_LOGITS)
        return self.pipeline.option_logits(batch, output)

    def _clips(self, prepared: Prepared) -> list[ClipInput]:
        settings = self.recipe.training
        if settings.condition == "none":
            return []
        signal = prepared.signal.blank() if settings.condition == "blank" else prepared.signal
        return [prepared.clip(signal.augmented(self.rng) if settings.augment else signal)]

    def _validate(self, host: ModulatedHost, stage: Stage, step: int) -> float:
        self.modulation.eval()
        records = score(self.pipeline, host.attachment, self.validation, self.recipe.training.condition)
        accuracy = sum(r.correct for r in records) / len(records)
        self._log({"stage": stage.name, "step": step, "validation_accuracy": accuracy})
        return accuracy

    def _report(self, stage: Stage, step: int, steps: int, tally: Tally, lr: float) -> None:
        self.step += 1
        n = max(1, tally.n)
        progress = Progress(stage.name, step, steps, tally.loss / n, tally.right / n, tally.active / n, lr, time.monotonic())
        self._log({k: v for k, v in asdict(progress).items() if k != "seconds"})
        self.listener(progress)

    def _log(self, record: dict[str, Any]) -> None:
        with self.log.open("a") as file:
            file.write(json.dumps(record) + "\n")
        if self.recipe.training.trackers:
            self.accelerator.log({k: v for k, v in record.items() if isinstance(v, int | float)}, step=self.step)


def accelerator_for(recipe: Recipe, device: torch.device, folder: Path) -> Accelerator:
    """Return accelerate's part of a training on ``device``, with the recipe's precision and with its trackers logging into ``folder``.

    Raises :class:`RecipeError` for what cannot be had here; accelerate itself would go on without.
    """
    settings = recipe.training
    if settings.precision == "fp16" and device.type == "cpu":
        raise RecipeError("training.precision is fp16, which needs a GPU, and the host is on the CPU; take bf16 or no.")
    for tracker in settings.trackers:
        if LoggerType(tracker) not in get_available_trackers():
            raise RecipeError(f"training.trackers asks for {tracker!r}, which is not installed: pip install 'modulate[{tracker}]', or take it out.")
    try:
        return Accelerator(mixed_precision=settings.precision, cpu=device.type == "cpu", log_with=list(settings.trackers) or None, project_dir=str(folder))
    except ValueError as error:
        raise RecipeError(f"accelerate refuses training.precision {settings.precision!r} on {device}: one process trains in one precision. {error}") from error


def select(modulation: Modulation, stage: Stage) -> None:
    """Set which of the modulation's parameters the stage trains."""
    for name, parameter in modulation.named_parameters():
        parameter.requires_grad_(("lora" if name.startswith("lora.") else "modulator") in stage.train)


def parameter_groups(modulation: nn.Module, stage: Stage, weight_decay: float) -> list[dict[str, Any]]:
    """Return AdamW groups: weight decay on matrices only, none on biases, norms, other 1-D parameters and LoRA."""
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in modulation.named_parameters():
        if parameter.requires_grad:
            lora = name.startswith("lora.")
            # By name as well as by rank: a modulator may stack the biases and norms of its layers into matrices.
            plain = parameter.ndim < 2 or name.endswith("bias") or "norm" in name
            decay = 0.0 if lora or plain else weight_decay
            groups.setdefault((decay, (stage.lora_lr or stage.lr) if lora else stage.lr), []).append(parameter)
    return [{"params": parameters, "weight_decay": decay, "lr": lr} for (decay, lr), parameters in groups.items()]


def warmup_cosine(warmup: int, steps: int) -> Callable[[int], float]:
    """Return step → factor of the peak rate: linear up over ``warmup`` steps, cosine down to 0 at ``steps``."""

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warmup) / max(1, steps - warmup))))

    return factor


def smoothed_cross_entropy(logits: Tensor, answers: Tensor, smoothing: float) -> Tensor:
    """Mean cross-entropy over the options that each row offers (others are −inf), smoothed over those options only."""
    offered = logits.isfinite()
    log_p = logits.log_softmax(1).masked_fill(~offered, 0.0)
    nll = -log_p.gather(1, answers[:, None])[:, 0]
    uniform = -log_p.sum(1) / offered.sum(1)
    return ((1 - smoothing) * nll + smoothing * uniform).mean()

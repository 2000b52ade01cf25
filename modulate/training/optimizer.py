"""What an optimizer is given: parameter groups, the course of rate and momentum, the loss; and what
is done with gradients that are not finite.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.tracking import LoggerType, get_available_trackers
from torch import Tensor, nn

from modulate.config.recipe import Recipe
from modulate.config.sections import Stage, Training
from modulate.errors import RecipeError
from modulate.modulation.module import Modulation

MOMENTUM = 0.9
"""AdamW's first beta, where the schedule does not move it."""


# --- accelerate


def accelerator_for(recipe: Recipe, device: torch.device, folder: Path) -> Accelerator:
    """Return accelerate's part of a training on ``device``, with the recipe's precision and with
    its trackers logging into ``folder``.

    Raises :class:`RecipeError` for what cannot be had here; accelerate itself would go on without.
    """
    settings = recipe.training
    if settings.precision == "fp16" and device.type == "cpu":
        raise RecipeError(
            "training.precision is fp16, which needs a GPU, and the host is on the CPU; take bf16"
            " or no."
        )
    for tracker in settings.trackers:
        if LoggerType(tracker) not in get_available_trackers():
            raise RecipeError(
                f"training.trackers asks for {tracker!r}, which is not installed: pip install"
                f" 'modulate[{tracker}]', or take it out."
            )
    try:
        made = Accelerator(
            mixed_precision=settings.precision,
            cpu=device.type == "cpu",
            log_with=list(settings.trackers) or None,
            project_dir=str(folder),
        )
    except ValueError as error:
        raise RecipeError(
            f"accelerate refuses training.precision {settings.precision!r} on {device}: one process"
            f" trains in one precision. {error}"
        ) from error
    if made.num_processes > 1 and made.device.type != device.type:
        raise RecipeError(
            f"The processes of this run are joined for {made.device.type}, and the host is on"
            f" {device}; leave host.params.device at auto, or say it to"
            " `modulate.distributed.launch.join`."
        )
    return made


# --- parameters


def select(modulation: Modulation, stage: Stage) -> None:
    """Set which of the modulation's parameters the stage trains."""
    for name, parameter in modulation.named_parameters():
        parameter.requires_grad_(
            ("lora" if name.startswith("lora.") else "modulator") in stage.train
        )


def parameter_groups(
    modulation: nn.Module, stage: Stage, weight_decay: float
) -> list[dict[str, Any]]:
    """Return AdamW groups: weight decay on matrices only, none on biases, norms, other 1-D
    parameters and LoRA.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in modulation.named_parameters():
        if parameter.requires_grad:
            lora = name.startswith("lora.")
            # By name as well as by rank: a modulator may stack the biases and norms of its layers
            # into matrices.
            plain = parameter.ndim < 2 or name.endswith("bias") or "norm" in name
            decay = 0.0 if lora or plain else weight_decay
            groups.setdefault(
                (decay, (stage.lora_lr or stage.lr) if lora else stage.lr), []
            ).append(parameter)
    return [
        {"params": parameters, "weight_decay": decay, "lr": lr}
        for (decay, lr), parameters in groups.items()
    ]


# --- schedules: functions of the step alone, so that there is no state to resume

#: optimizer step of the stage, from 0 → (factor of the peak rate, AdamW's first beta)
Schedule = Callable[[int], tuple[float, float]]


def schedule_for(training: Training, steps: int) -> Schedule:
    """Return the schedule that the recipe asks for over a stage of ``steps`` optimizer steps."""
    if training.schedule == "one_cycle":
        return one_cycle(steps, min(training.warmup_steps / steps, 0.5))
    factor = warmup_cosine(min(training.warmup_steps, steps // 2), steps)
    return lambda step: (factor(step), MOMENTUM)


def warmup_cosine(warmup: int, steps: int) -> Callable[[int], float]:
    """Return step → factor of the peak rate: linear up over ``warmup`` steps, cosine down to 0 at
    ``steps``.
    """

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warmup) / max(1, steps - warmup))))

    return factor


def one_cycle(steps: int, rising: float = 0.3) -> Schedule:
    """Return torch's OneCycleLR over ``steps``: from 1/25 of the peak up to it and down to
    1/250,000 of it, on cosines.

    ``rising``: share of the steps until the peak, torch's ``pct_start``. The momentum goes the
    other way, 0.95 → 0.85 → 0.95. [GazeQwen's code, where the share is that of the warm-up steps,
    at most a half]
    """
    peak = rising * steps - 1
    last = steps - 1
    start = 1 / 25
    end = 1 / 25 / 1e4
    slow = 0.95
    fast = 0.85

    def course(step: int) -> tuple[float, float]:
        if step <= peak:
            done = step / peak if peak else 1.0  # torch's own divides by 0 here
            return _cosine(start, 1.0, done), _cosine(slow, fast, done)
        done = (step - peak) / (last - peak)
        return _cosine(1.0, end, done), _cosine(fast, slow, done)

    return course


def _cosine(start: float, end: float, done: float) -> float:
    return end + (start - end) / 2 * (1 + math.cos(math.pi * done))


# --- one step


@dataclass
class Optimizer:
    """AdamW on a stage's parameters, prepared by accelerate, with the peak rate of each group and
    the schedule that moves it.
    """

    accelerator: Accelerator
    modulation: Modulation
    adamw: torch.optim.AdamW
    wrapped: AcceleratedOptimizer
    peaks: list[float]
    schedule: Schedule

    @classmethod
    def make(
        cls,
        accelerator: Accelerator,
        modulation: Modulation,
        stage: Stage,
        training: Training,
        steps: int,
    ) -> "Optimizer":
        """Make a stage's parameters, and only these, trainable, and an optimizer for them."""
        select(modulation, stage)
        adamw = torch.optim.AdamW(parameter_groups(modulation, stage, training.weight_decay))
        peaks = [group["lr"] for group in adamw.param_groups]
        # forget the last stage's optimizer: fp16 would unscale the gradients that both share twice
        accelerator.free_memory()
        return cls(
            accelerator,
            modulation,
            adamw,
            accelerator.prepare(adamw),
            peaks,
            schedule_for(training, steps),
        )

    def step(self, number: int, clip_norm: float, usable: bool) -> list[str]:
        """Take step ``number`` of the stage (from 0) with the gradients that are there, and clear
        them.

        No step is taken unless the loss was ``usable`` and all gradients are finite; the names of
        parameters whose gradients are not are returned.
        """
        factor, momentum = self.schedule(number)
        for group, peak in zip(self.adamw.param_groups, self.peaks, strict=True):
            group["lr"], group["betas"] = peak * factor, (momentum, group["betas"][1])
        self.accelerator.unscale_gradients(self.wrapped)
        gradients = {name: p.grad for name, p in self._trained() if p.grad is not None}
        norm = nn.utils.get_total_norm(list(gradients.values()))
        finite = bool(norm.isfinite())
        wrong = (
            []
            if finite
            else [name for name, gradient in gradients.items() if not gradient.isfinite().all()]
            or list(gradients)
        )
        if finite and usable:
            nn.utils.clip_grads_with_norm_([p for _, p in self._trained()], clip_norm, norm)
            self.wrapped.step()
        elif self.accelerator.scaler is not None:
            self.accelerator.scaler.update()  # fp16 looks for a smaller scale
        self.wrapped.zero_grad()
        return wrong

    @property
    def rate(self) -> float:
        """The first group's learning rate in the last step."""
        return float(self.adamw.param_groups[0]["lr"])

    @property
    def scale(self) -> float:
        """By what fp16 multiplies the loss; 1 elsewhere."""
        return (
            1.0 if self.accelerator.scaler is None else float(self.accelerator.scaler.get_scale())
        )

    def _trained(self) -> Iterator[tuple[str, nn.Parameter]]:
        return ((name, p) for name, p in self.modulation.named_parameters() if p.requires_grad)

    # --- its state, for checkpoints

    def state(self) -> dict[str, Tensor]:
        """Return AdamW's moments and step counts: {"exp_avg/<parameter>": …}; parameters that had
        no gradient yet have none.
        """
        return {
            f"{key}/{name}": value
            for name, p in self._trained()
            for key, value in self.adamw.state.get(p, {}).items()
        }

    def restore(self, state: dict[str, Tensor]) -> None:
        """Take over what :meth:`state` returned."""
        for name, p in self._trained():
            own = {
                key: state[f"{key}/{name}"]
                for key in ("step", "exp_avg", "exp_avg_sq")
                if f"{key}/{name}" in state
            }
            if own:
                self.adamw.state[p] = {
                    key: value.clone() if key == "step" else value.to(p.device)
                    for key, value in own.items()
                }


def smoothed_cross_entropy(logits: Tensor, answers: Tensor, smoothing: float) -> Tensor:
    """Mean cross-entropy over the options that each row offers (others are −inf), smoothed over
    those options only.
    """
    offered = ~logits.isneginf()  # and not "is finite": a host's NaN is to reach the loss
    log_p = logits.log_softmax(1).masked_fill(~offered, 0.0)
    nll = -log_p.gather(1, answers[:, None])[:, 0]
    uniform = -log_p.sum(1) / offered.sum(1)
    return ((1 - smoothing) * nll + smoothing * uniform).mean()

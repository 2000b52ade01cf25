"""AdamW on the parameters of a stage: groups, schedule, and steps only if gradients are finite."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from torch import Tensor, nn

from modulate.config.sections import Stage, Training
from modulate.modulation.module import Modulation

MOMENTUM = 0.9
"""AdamW's first beta, unless the schedule changes it."""


# --- parameters


def select(modulation: Modulation, stage: Stage) -> None:
    """Make the parameters that the stage trains require gradients, and no others."""
    for name, parameter in modulation.named_parameters():
        part = "lora" if _is_lora(name) else "modulator"
        parameter.requires_grad_(part in stage.train)


def parameter_groups(
    modulation: nn.Module, stage: Stage, weight_decay: float
) -> list[dict[str, Any]]:
    """Return AdamW's groups of the parameters that require gradients.

    Only matrices decay: not biases, norms, other 1-D parameters, or LoRA. LoRA may have a learning
    rate of its own.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in modulation.named_parameters():
        if not parameter.requires_grad:
            continue
        # By name as well as by rank: a modulator may stack the biases and norms of its layers
        # into matrices.
        plain = parameter.ndim < 2 or name.endswith("bias") or "norm" in name
        decay = 0.0 if plain or _is_lora(name) else weight_decay
        lr = stage.lora_lr if _is_lora(name) and stage.lora_lr else stage.lr
        groups.setdefault((decay, lr), []).append(parameter)
    return [
        {"params": parameters, "weight_decay": decay, "lr": lr}
        for (decay, lr), parameters in groups.items()
    ]


def _is_lora(name: str) -> bool:
    return name.startswith("lora.")


# --- schedules: functions of the step alone, so that resuming needs no state of theirs

Schedule = Callable[[int], tuple[float, float]]
"""Optimizer step of a stage, from 0 → (factor of the peak learning rate, AdamW's first beta)."""


def schedule_for(training: Training, steps: int) -> Schedule:
    """Return the recipe's schedule for a stage of ``steps`` optimizer steps."""
    if training.schedule == "one_cycle":
        return one_cycle(steps, min(training.warmup_steps / steps, 0.5))
    factor = warmup_cosine(min(training.warmup_steps, steps // 2), steps)
    return lambda step: (factor(step), MOMENTUM)


def warmup_cosine(warmup: int, steps: int) -> Callable[[int], float]:
    """Return step → factor of the peak learning rate.

    Rises linearly over ``warmup`` steps, then falls on a cosine to 0 at ``steps``.
    """

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warmup) / max(1, steps - warmup))))

    return factor


def one_cycle(steps: int, rising: float = 0.3) -> Schedule:
    """Return the schedule of torch's OneCycleLR over ``steps``.

    The learning rate rises on a cosine from 1/25 of its peak, then falls on one to 1/250,000. The
    momentum moves the other way: 0.95 → 0.85 → 0.95.

    ``rising``: share of the steps until the peak, torch's ``pct_start``. GazeQwen's code takes the
    share of the warm-up steps, at most a half.
    """
    peak = rising * steps - 1
    last = steps - 1
    start = 1 / 25
    end = 1 / 25 / 1e4
    slow = 0.95
    fast = 0.85

    def schedule(step: int) -> tuple[float, float]:
        if step <= peak:
            done = step / peak if peak else 1.0  # torch itself divides by 0 here
            return _cosine(start, 1.0, done), _cosine(slow, fast, done)
        done = (step - peak) / (last - peak)
        return _cosine(1.0, end, done), _cosine(fast, slow, done)

    return schedule


def _cosine(start: float, end: float, done: float) -> float:
    """Return the value between ``start`` and ``end`` after a share ``done`` of half a cosine."""
    return end + (start - end) / 2 * (1 + math.cos(math.pi * done))


# --- steps


@dataclass
class Optimizer:
    """AdamW on a stage's parameters, prepared by accelerate, under the recipe's schedule.

    ``wrapped``: accelerate's wrapper of ``adamw``. ``peak_rates``: the highest learning rate of
    each parameter group, which ``schedule`` scales.
    """

    accelerator: Accelerator
    modulation: Modulation
    adamw: torch.optim.AdamW
    wrapped: AcceleratedOptimizer
    peak_rates: list[float]
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
        """Select the parameters that a stage of ``steps`` steps trains; return their optimizer."""
        select(modulation, stage)
        adamw = torch.optim.AdamW(parameter_groups(modulation, stage, training.weight_decay))
        peak_rates = [group["lr"] for group in adamw.param_groups]
        # accelerate must forget the last stage's optimizer: under fp16 it would unscale the
        # gradients of parameters that both optimizers have twice.
        accelerator.free_memory()
        wrapped = accelerator.prepare(adamw)
        return cls(
            accelerator, modulation, adamw, wrapped, peak_rates, schedule_for(training, steps)
        )

    def step(self, number: int, clip_norm: float, usable: bool) -> list[str]:
        """Take step ``number`` of the stage (from 0) with the present gradients; then clear them.

        The step is skipped unless the loss was ``usable`` and all gradients are finite. Returns the
        names of parameters whose gradients are not finite.
        """
        self._set_rates(number)
        self.accelerator.unscale_gradients(self.wrapped)
        gradients = {name: p.grad for name, p in self._trained() if p.grad is not None}
        norm = nn.utils.get_total_norm(list(gradients.values()))
        is_finite = bool(norm.isfinite())
        if is_finite and usable:
            nn.utils.clip_grads_with_norm_([p for _, p in self._trained()], clip_norm, norm)
            self.wrapped.step()
        elif self.accelerator.scaler is not None:
            self.accelerator.scaler.update()  # After a skipped step, fp16 tries a smaller scale.
        non_finite = [] if is_finite else _non_finite(gradients)
        self.wrapped.zero_grad()
        return non_finite

    def _set_rates(self, step: int) -> None:
        factor, momentum = self.schedule(step)
        for group, peak_rate in zip(self.adamw.param_groups, self.peak_rates, strict=True):
            group["lr"] = peak_rate * factor
            group["betas"] = (momentum, group["betas"][1])

    @property
    def rate(self) -> float:
        """Learning rate of the first parameter group in the last step."""
        return float(self.adamw.param_groups[0]["lr"])

    @property
    def scale(self) -> float:
        """Factor by which fp16 multiplies the loss; 1 in other precisions."""
        scaler = self.accelerator.scaler
        return 1.0 if scaler is None else float(scaler.get_scale())

    def _trained(self) -> Iterator[tuple[str, nn.Parameter]]:
        return ((name, p) for name, p in self.modulation.named_parameters() if p.requires_grad)

    # --- checkpoints

    def moments(self) -> dict[str, Tensor]:
        """Return AdamW's moments and step counts, by "exp_avg/<parameter>" and the like.

        Parameters that have had no gradient yet have none.
        """
        return {
            f"{key}/{name}": value
            for name, p in self._trained()
            for key, value in self.adamw.state.get(p, {}).items()
        }

    def restore(self, moments: dict[str, Tensor]) -> None:
        """Set what :meth:`moments` returned."""
        for name, p in self._trained():
            own = {
                key: moments[f"{key}/{name}"]
                for key in ("step", "exp_avg", "exp_avg_sq")
                if f"{key}/{name}" in moments
            }
            if own:
                # AdamW keeps its step count on the CPU.
                self.adamw.state[p] = {
                    key: value.clone() if key == "step" else value.to(p.device)
                    for key, value in own.items()
                }


def _non_finite(gradients: dict[str, Tensor]) -> list[str]:
    """Return the names of gradients that are not finite; all, if only their norm overflowed."""
    names = [name for name, gradient in gradients.items() if not gradient.isfinite().all()]
    return names or list(gradients)

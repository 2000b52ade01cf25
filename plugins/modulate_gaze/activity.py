"""Which fixations are active at which time step, for several clips at once.

Two readings of "active", and a third for comparison. ``midpoint`` is the paper's: a fixation is
active at a step when the step's time lies within it. A step is one instant then, so with few frames
a second most fixations fall between two steps and are never seen. ``overlap`` weighs each fixation
by the seconds for which it overlaps the stretch of time that the step stands for; these stretches
touch each other, so that every fixation of the clip counts somewhere. Fixations that overlap in
time share a step in both. ``released`` is ``midpoint`` by the arithmetic of GazeQwen's code, down
to the last bit: in float32, without tolerance at the edges.

Times are compared in float64 on the CPU (float32 is 0.2 ms coarse after an hour of video, and some
devices have no float64); only weights and ages go to the device.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Float64, Int64, Shaped
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from modulate.errors import ConditioningError
from modulate.interfaces.signal import Signal
from modulate.interfaces.visual_grid import VisualGrid
from modulate_gaze.scanpath import Scanpath

Mode = Literal["midpoint", "overlap"]
Released = Literal["released"]

INSTANT = 1e-3
"""Seconds that a fixation or step lasts at least: a sample without duration and a clip of a single
frame would otherwise overlap nothing.
"""

ROUNDING = 1e-6
"""Seconds below which two times are the same: ends that touch do not overlap, and |t − t_i| ≤
Δt_i/2 holds at the very edge.
"""

RELEASED_INSTANT = 1e-6
"""Seconds that a fixation lasts at least in GazeQwen's code."""

FAINT = 1e-3
"""A fixation that has decayed below this share of itself no longer counts as active."""


@dataclass(frozen=True)
class Alignment:
    """Fixations and steps of several clips, padded to the largest of each; all on the CPU.

    ``xy``: fractions of the frame; ``begin``, ``end``: seconds, at least :data:`INSTANT` apart;
    ``middle``, ``lasts``: seconds, as given; ``exists``: false for padding. ``times``: seconds of
    each step, ``spans``: the (start, end) it stands for. ``real``: positions of the steps that
    exist in the flattened (clip·step), in the order of the clips.
    """

    xy: Float64[Tensor, "clip fixation 2"]
    begin: Float64[Tensor, "clip fixation"]
    end: Float64[Tensor, "clip fixation"]
    middle: Float64[Tensor, "clip fixation"]
    lasts: Float64[Tensor, "clip fixation"]
    exists: Bool[Tensor, "clip fixation"]
    times: Float64[Tensor, "clip slot"]
    spans: Float64[Tensor, "clip slot 2"]
    real: Int64[Tensor, " step"]

    def steps_of(self, values: Shaped[Tensor, "clip slot *rest"]) -> Shaped[Tensor, "step *rest"]:
        """Take the steps that exist out of a padded tensor, one clip after the other."""
        return values.flatten(0, 1)[self.real.to(values.device)]


def align(signals: Sequence[Signal], grids: Sequence[VisualGrid]) -> Alignment:
    """Bring the scanpaths of clips and the steps of their grids into one batch.

    Raises :class:`ConditioningError` unless there is one scanpath for every grid.
    """
    wrong = [type(s).__name__ for s in signals if not isinstance(s, Scanpath)]
    if wrong or len(signals) != len(grids) or not grids:
        kinds = ", ".join(wrong) or "scanpaths"
        raise ConditioningError(
            f"Gaze encoders need one scanpath for every grid; got {len(signals)} signals ({kinds})"
            f" for {len(grids)} grids."
        )
    fixations = [torch.tensor(s.fixations) for s in signals if isinstance(s, Scanpath)]
    rows = pad_sequence(fixations, batch_first=True)
    half = rows[..., 3].clamp(min=INSTANT) / 2
    spans = pad_sequence(
        [torch.tensor(g.spans, dtype=torch.float64) for g in grids], batch_first=True
    )
    middle = spans.mean(-1)
    reach = (spans[..., 1] - spans[..., 0]).clamp(min=INSTANT) / 2
    return Alignment(
        xy=rows[..., :2],
        begin=rows[..., 2] - half,
        end=rows[..., 2] + half,
        middle=rows[..., 2],
        lasts=rows[..., 3],
        exists=torch.arange(rows.shape[1]) < torch.tensor([len(f) for f in fixations])[:, None],
        times=pad_sequence(
            [torch.tensor(g.times, dtype=torch.float64) for g in grids], batch_first=True
        ),
        spans=torch.stack([middle - reach, middle + reach], -1),
        real=torch.cat([torch.arange(g.steps) + i * spans.shape[1] for i, g in enumerate(grids)]),
    )


def activity(a: Alignment, mode: Mode | Released) -> Float64[Tensor, "clip slot fixation"]:
    """Weigh every fixation at every step: 1 or 0, or seconds of overlap for ``overlap``.

    [GazeQwen §3: |t − t_i| ≤ Δt_i/2]
    """
    begin = a.begin[:, None]
    end = a.end[:, None]
    if mode == "midpoint":
        time = a.times[..., None]
        weights = ((time >= begin - ROUNDING) & (time <= end + ROUNDING)).double()
    elif mode == "released":
        weights = _as_released(a)
    else:
        seconds = torch.minimum(end, a.spans[..., 1:]) - torch.maximum(begin, a.spans[..., :1])
        weights = torch.where(seconds > ROUNDING, seconds, 0.0)
    return weights * a.exists[:, None]


def _as_released(a: Alignment) -> Float64[Tensor, "clip slot fixation"]:
    """Return 1 where a fixation contains the step's time by GazeQwen's code, whose tensors are
    float32: so the edges and the time are rounded to that.
    """
    middle = a.middle.float()
    half = a.lasts.float().clamp(min=RELEASED_INSTANT) / 2
    time = a.times.float()[..., None]
    return ((time >= (middle - half)[:, None]) & (time <= (middle + half)[:, None])).double()


def decayed(
    a: Alignment, mode: Mode, tau: Float[Tensor, ""]
) -> Float[Tensor, "clip slot fixation"]:
    """Weigh every fixation at every step by how fresh it is: exp(−age/τ), age being the seconds
    since it ended, 0 while it lasts.

    ``midpoint`` takes the age at the step's time. ``overlap`` takes the mean of exp(−age/τ) over
    the step's span (0 before the fixation begins), which tends to the share of the span that the
    fixation overlaps as τ → 0. Both lie in [0, 1], and fixations in the future weigh nothing. fp32,
    on the device of ``tau`` (seconds), differentiable in it.
    """
    begin = a.begin[:, None]
    end = a.end[:, None]
    if mode == "midpoint":
        start = finish = a.times[..., None]
        begun = begin <= finish + ROUNDING
    else:
        start = a.spans[..., :1]
        finish = a.spans[..., 1:]
        begun = begin < finish - ROUNDING
    begun = (begun & a.exists[:, None]).to(tau.device)
    age = (start - end).clamp(min=0).to(tau.device, torch.float32)
    fresh = torch.exp(-age / tau)
    fresh = fresh * (begun & (fresh > FAINT))
    if mode == "midpoint":
        return fresh
    after = (finish - end).clamp(min=0).to(tau.device, torch.float32) - age
    lasted = activity(a, mode).to(tau.device, torch.float32)
    span = (finish - start).to(tau.device, torch.float32)
    # ∫ exp(−age/τ) over the part of the span after the fixation's end; expm1 keeps digits when τ is
    # large
    return (lasted + tau * fresh * -torch.expm1(-after / tau)) / span


def share(weights: Float[Tensor, "clip slot fixation"]) -> Float[Tensor, "clip slot fixation"]:
    """Scale the weights of each step to sum 1; all 0 where no fixation is active."""
    total = weights.sum(-1, keepdim=True)
    return torch.where(total > 0, weights / total.where(total > 0, 1.0), 0.0)

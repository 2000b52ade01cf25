"""Decide which fixations are active at which time step, for several clips at once.

There are two definitions of "active", and a third for comparison. ``midpoint`` is the paper's: a
fixation is active at a step if it contains the step's time. Each step is then one instant, so at
low frame rates most fixations fall between two steps and have no effect. ``overlap`` weighs each
fixation by the seconds that it shares with the step's time span. These spans touch each other, so
every fixation of the clip counts somewhere. In both, fixations that overlap in time share a step.
``released`` is ``midpoint`` with the arithmetic of GazeQwen's code to the last bit: float32, and no
tolerance at the edges.

Times are compared in float64 on the CPU: float32 has a resolution of 0.2 ms after an hour of video,
and some devices have no float64. Only weights and ages move to the device.
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
"""Minimum duration of a fixation or step, s.

Otherwise, samples without duration and clips of a single frame would overlap nothing.
"""

ROUNDING = 1e-6
"""Tolerance of times, s: touching ends do not overlap, and |t − t_i| ≤ Δt_i/2 holds at the edge."""

RELEASED_INSTANT = 1e-6
"""Minimum duration of a fixation in GazeQwen's code, s."""

FAINT = 1e-3
"""A fixation whose weight has decayed below this value is no longer active."""


@dataclass(frozen=True)
class Alignment:
    """Fixations and steps of several clips, padded to the largest clip; all on the CPU.

    ``xy``: fractions of the frame. ``start``, ``end``: seconds, at least :data:`INSTANT` apart.
    ``middle``, ``duration``: seconds, unchanged. ``exists``: false for padding. ``times``: the time
    of each step in seconds, ``spans``: its (start, end). ``real``: indices of the existing steps in
    the flattened (clip·step), clip by clip.
    """

    xy: Float64[Tensor, "clip fixation 2"]
    start: Float64[Tensor, "clip fixation"]
    end: Float64[Tensor, "clip fixation"]
    middle: Float64[Tensor, "clip fixation"]
    duration: Float64[Tensor, "clip fixation"]
    exists: Bool[Tensor, "clip fixation"]
    times: Float64[Tensor, "clip slot"]
    spans: Float64[Tensor, "clip slot 2"]
    real: Int64[Tensor, " step"]

    def steps_of(self, values: Shaped[Tensor, "clip slot *rest"]) -> Shaped[Tensor, "step *rest"]:
        """Return the existing steps of a padded tensor, clip by clip."""
        return values.flatten(0, 1)[self.real.to(values.device)]


def align(signals: Sequence[Signal], grids: Sequence[VisualGrid]) -> Alignment:
    """Batch the scanpaths of clips with the steps of their grids.

    Raises :class:`ConditioningError` unless there is one scanpath for every grid.
    """
    # Other signals cannot be encoded, and a missing one would shift all following clips.
    wrong = [type(signal).__name__ for signal in signals if not isinstance(signal, Scanpath)]
    if wrong or len(signals) != len(grids) or not grids:
        kinds = ", ".join(wrong) or "scanpaths"
        raise ConditioningError(
            f"Gaze encoders need one scanpath for every grid; got {len(signals)} signals ({kinds})"
            f" for {len(grids)} grids."
        )
    fixations = [
        torch.tensor(signal.fixations) for signal in signals if isinstance(signal, Scanpath)
    ]
    rows = pad_sequence(fixations, batch_first=True)
    half = rows[..., 3].clamp(min=INSTANT) / 2
    spans = pad_sequence(
        [torch.tensor(grid.spans, dtype=torch.float64) for grid in grids], batch_first=True
    )
    # A clip of a single frame has an empty span; widen it about its middle.
    middle = spans.mean(-1)
    reach = (spans[..., 1] - spans[..., 0]).clamp(min=INSTANT) / 2
    return Alignment(
        xy=rows[..., :2],
        start=rows[..., 2] - half,
        end=rows[..., 2] + half,
        middle=rows[..., 2],
        duration=rows[..., 3],
        exists=torch.arange(rows.shape[1])
        < torch.tensor([len(each) for each in fixations])[:, None],
        times=pad_sequence(
            [torch.tensor(grid.times, dtype=torch.float64) for grid in grids], batch_first=True
        ),
        spans=torch.stack([middle - reach, middle + reach], -1),
        real=torch.cat(
            [torch.arange(grid.steps) + index * spans.shape[1] for index, grid in enumerate(grids)]
        ),
    )


def activity(alignment: Alignment, mode: Mode | Released) -> Float64[Tensor, "clip slot fixation"]:
    """Return the weight of each fixation at each step: 0 or 1, or seconds for ``overlap``.

    [GazeQwen §3: |t − t_i| ≤ Δt_i/2]
    """
    fixation_start = alignment.start[:, None]
    end = alignment.end[:, None]
    if mode == "midpoint":
        time = alignment.times[..., None]
        weights = ((time >= fixation_start - ROUNDING) & (time <= end + ROUNDING)).double()
    elif mode == "released":
        weights = _as_released(alignment)
    else:
        seconds = torch.minimum(end, alignment.spans[..., 1:]) - torch.maximum(
            fixation_start, alignment.spans[..., :1]
        )
        weights = torch.where(seconds > ROUNDING, seconds, 0.0)
    return weights * alignment.exists[:, None]


def _as_released(alignment: Alignment) -> Float64[Tensor, "clip slot fixation"]:
    """Return 1 where a fixation contains the step's time, in the float32 of GazeQwen's code."""
    middle = alignment.middle.float()
    half = alignment.duration.float().clamp(min=RELEASED_INSTANT) / 2
    time = alignment.times.float()[..., None]
    return ((time >= (middle - half)[:, None]) & (time <= (middle + half)[:, None])).double()


def decayed(
    alignment: Alignment, mode: Mode, tau: Float[Tensor, ""]
) -> Float[Tensor, "clip slot fixation"]:
    """Return the decayed weight exp(−age/τ) of each fixation at each step, in [0, 1].

    The age is the time since the fixation ended, in seconds, and 0 while it lasts. ``midpoint``
    uses the age at the step's time. ``overlap`` uses the mean of exp(−age/τ) over the step's span
    (0 before the fixation begins); as τ → 0, it tends to the overlapped share of the span. Future
    fixations have weight 0. The result is fp32, on the device of ``tau`` (seconds), and
    differentiable in it.
    """
    fixation_start = alignment.start[:, None]
    end = alignment.end[:, None]
    if mode == "midpoint":
        span_start = span_end = alignment.times[..., None]
        begun = fixation_start <= span_end + ROUNDING
    else:
        span_start = alignment.spans[..., :1]
        span_end = alignment.spans[..., 1:]
        begun = fixation_start < span_end - ROUNDING
    begun = (begun & alignment.exists[:, None]).to(tau.device)
    # Weights below FAINT become exactly 0, so that old fixations do not keep a step active.
    age = (span_start - end).clamp(min=0).to(tau.device, torch.float32)
    fresh = torch.exp(-age / tau)
    fresh = fresh * (begun & (fresh > FAINT))
    if mode == "midpoint":
        return fresh
    after = (span_end - end).clamp(min=0).to(tau.device, torch.float32) - age
    overlapped = activity(alignment, mode).to(tau.device, torch.float32)
    span = (span_end - span_start).to(tau.device, torch.float32)
    # The second term is ∫ exp(−age/τ) over the part of the span after the fixation's end. expm1
    # avoids cancellation if τ is large.
    return (overlapped + tau * fresh * -torch.expm1(-after / tau)) / span


def share(weights: Float[Tensor, "clip slot fixation"]) -> Float[Tensor, "clip slot fixation"]:
    """Normalize the weights of each step to sum 1; steps without active fixations stay 0."""
    total = weights.sum(-1, keepdim=True)
    return torch.where(total > 0, weights / total.where(total > 0, 1.0), 0.0)

"""Alignment of a backbone's features with a host's visual grid, by true time."""

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import interpolate

from modulate.interfaces.components import FrameFeatures
from modulate.interfaces.visual_grid import VisualGrid


def align(
    features: FrameFeatures,
    grid: VisualGrid,
    by: Literal["time", "index"] = "time",
    antialias: bool = True,
) -> Float[Tensor, "step token d_features"]:
    """Return the features on the host's grid, float32, on their own device; tokens row by row.

    Interpolation is linear in time, at ``grid.times``, with the first and last features held
    constant outside their range; and bilinear in space, with pixel centers aligned
    (align_corners=False).

    ``by="index"`` and ``antialias=False`` are for comparison with code that does so, such as
    GazeQwen's. Together they equal, to the bit, its trilinear and then bilinear
    :func:`torch.nn.functional.interpolate`.

    Args:
        features: raw features with their times.
        grid: the host's visual grid.
        by: "index" stretches the features' time axis over the steps, whatever their times.
        antialias: low-pass filter where the grid is coarser, so that every feature counts.
            Otherwise each token takes the four features around its center and skips the others.

    Raises :class:`PluginError` if the features' shape and times do not match.
    """
    features.check()
    if by == "index":
        steps = _stretch(features.values, grid.steps)
    else:
        steps = _interpolate_in_time(features, grid.times)
    rows, cols = steps.shape[1:3]
    if (rows, cols) != (grid.rows, grid.cols):
        coarser = grid.rows < rows or grid.cols < cols
        planes = interpolate(
            steps.permute(0, 3, 1, 2),
            (grid.rows, grid.cols),
            mode="bilinear",
            align_corners=False,
            antialias=antialias and coarser,
        )
        steps = planes.permute(0, 2, 3, 1)
    return steps.reshape(grid.steps, grid.tokens_per_step, -1)


def _interpolate_in_time(
    features: FrameFeatures, step_times: Sequence[float]
) -> Float[Tensor, "step row col d_features"]:
    """Return the features at ``step_times`` (s), linear in time, constant outside their range."""
    values = features.values
    # float64: times of long videos in float32 are off by milliseconds.
    times = torch.tensor(features.times, dtype=torch.float64)
    wanted = torch.tensor(step_times, dtype=torch.float64).clamp(times[0], times[-1])
    after = torch.searchsorted(times, wanted).clamp(max=len(times) - 1)
    before = (after - 1).clamp(min=0)
    interval = times[after] - times[before]
    # At the first time both neighbors are the same feature, and the interval is 0.
    safe_interval = interval.clamp(min=torch.finfo(torch.float64).tiny)
    weight = torch.where(interval > 0, (wanted - times[before]) / safe_interval, 0.0)
    fraction = weight.to(values.device, torch.float32)[:, None, None, None]
    before = before.to(values.device)
    after = after.to(values.device)
    return values[before].float() * (1 - fraction) + values[after].float() * fraction


def _stretch(
    values: Float[Tensor, "time row col d_features"], steps: int
) -> Float[Tensor, "step row col d_features"]:
    """Return the features with their time axis resized to ``steps``, whatever their times."""
    if len(values) == steps:
        return values.float()
    volume = values.float().permute(3, 0, 1, 2)[None]
    size = (steps, *values.shape[1:3])
    return interpolate(volume, size, mode="trilinear", align_corners=False)[0].permute(1, 2, 3, 0)

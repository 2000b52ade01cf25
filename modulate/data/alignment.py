"""Features of a backbone brought onto a host's visual grid, by true time."""

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
    """Bring features onto the host's grid; float32, on the features' device.

    Linear in time between the features' times, read at ``grid.times`` and held before the first and
    after the last; bilinear in space, pixel centres matched (align_corners=False). Tokens run row
    by row. ``by`` "index": the features' time axis is stretched over the steps as space is,
    whatever their times. ``antialias``: smooth where the grid is coarser, so that every feature
    counts; without, each token takes the four features around its centre and skips the others.
    "index" and no antialiasing are for comparison with code that does so, GazeQwen's among it:
    together they are, to the bit, its trilinear and then bilinear
    :func:`torch.nn.functional.interpolate`.

    Raises :class:`PluginError` when the features' shape and times contradict each other.
    """
    features.check()
    mixed = (
        _stretched(features.values, grid.steps) if by == "index" else _read_at(features, grid.times)
    )
    rows, cols = mixed.shape[1:3]
    if (rows, cols) != (grid.rows, grid.cols):
        shrinking = grid.rows < rows or grid.cols < cols
        planes = mixed.permute(0, 3, 1, 2)
        planes = interpolate(
            planes,
            (grid.rows, grid.cols),
            mode="bilinear",
            align_corners=False,
            antialias=antialias and shrinking,
        )
        mixed = planes.permute(0, 2, 3, 1)
    return mixed.reshape(grid.steps, grid.tokens_per_step, -1)


def _read_at(
    features: FrameFeatures, at: Sequence[float]
) -> Float[Tensor, "step row col d_features"]:
    """Return the features at the times ``at`` (s): linear between their own, the first and the last
    held beyond.
    """
    values = features.values
    times = torch.tensor(features.times, dtype=torch.float64)
    asked = torch.tensor(at, dtype=torch.float64).clamp(times[0], times[-1])
    after = torch.searchsorted(times, asked).clamp(max=len(times) - 1)
    before = (after - 1).clamp(min=0)
    length = times[after] - times[before]
    weight = torch.where(
        length > 0, (asked - times[before]) / length.clamp(min=torch.finfo(torch.float64).tiny), 0.0
    )
    fraction = weight.to(values.device, torch.float32)[:, None, None, None]
    before = before.to(values.device)
    after = after.to(values.device)
    return values[before].float() * (1 - fraction) + values[after].float() * fraction


def _stretched(
    values: Float[Tensor, "time row col d_features"], steps: int
) -> Float[Tensor, "step row col d_features"]:
    """Return the features with their time axis laid over ``steps`` end to end."""
    if len(values) == steps:
        return values.float()
    volume = values.float().permute(3, 0, 1, 2)[None]
    size = (steps, *values.shape[1:3])
    return interpolate(volume, size, mode="trilinear", align_corners=False)[0].permute(1, 2, 3, 0)

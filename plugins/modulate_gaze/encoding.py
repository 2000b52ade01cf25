"""Base of the four gaze encoders, which align fixations with steps before they encode them."""

from abc import abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor

from modulate.errors import ConditioningError
from modulate.interfaces.components import Params, SignalEncoder, SignalFeatures
from modulate.interfaces.signal import Signal
from modulate.interfaces.visual_grid import VisualGrid
from modulate_gaze.activity import Alignment, align

ACTIVE = (
    "midpoint: fixations that contain the step's time [GazeQwen]; overlap: weighted by the seconds"
    " they share with the step [ours]"
)


class GazeParams(Params):
    """Parameters of every gaze encoder."""

    dim: int = Field(
        256, gt=0, le=2**16, description="width of the features, channels [GazeQwen: 256]"
    )
    to_features: bool = Field(
        False,
        description=(
            "add the features to the modulator's frame features as well as to its keys; needs dim ="
            " its width [ours]"
        ),
    )


def full_precision(device: torch.device) -> AbstractContextManager[object]:
    """Disable autocast in a block: modulations compute in fp32, whatever the host's precision."""
    return torch.autocast(device.type if device.type != "meta" else "cpu", enabled=False)


class GazeEncoder(SignalEncoder):
    """Base of the gaze encoders: pads clips, calls :meth:`step_features`, removes the padding."""

    signal_kind: ClassVar[str] = "gaze"
    params: GazeParams

    def __init__(self, params: GazeParams) -> None:
        super().__init__()
        self.params = params
        self.d_signal = params.dim

    @abstractmethod
    def step_features(
        self, alignment: Alignment, rows: int, cols: int
    ) -> tuple[Float[Tensor, "clip slot token d_signal"], Bool[Tensor, "clip slot"]]:
        """Return the features of every step, and whether any fixation is active at it.

        Features are exactly 0 where no fixation is active.
        """

    @property
    def device(self) -> torch.device:
        """The device of this encoder's tensors."""
        return next(iter([*self.parameters(), *self.buffers()])).device

    def forward(self, signals: Sequence[Signal], grids: Sequence[VisualGrid]) -> SignalFeatures:
        """Return (all steps, rows·cols, dim) in fp32, on the module's device.

        Raises :class:`ConditioningError` for signals other than scanpaths, and for grids that
        differ in rows × cols.
        """
        shapes = {(grid.rows, grid.cols) for grid in grids}
        if len(shapes) > 1:
            raise ConditioningError(
                "Clips encoded together need grids of one size; got rows × columns"
                f" {sorted(shapes)}. Encode each size on its own."
            )
        alignment = align(signals, grids)
        with full_precision(self.device):
            values, active = self.step_features(alignment, grids[0].rows, grids[0].cols)
        return SignalFeatures(
            alignment.steps_of(values),
            alignment.steps_of(active).to(self.device),
            self.params.to_features,
        )


def token_centers(count: int, device: torch.device) -> Float[Tensor, " n"]:
    """Return the centers of ``count`` rows or columns, as fractions of the frame."""
    return (torch.arange(count, device=device) + 0.5) / count

"""What the four gaze encoders have in common: time first, then each their own picture of the active
fixations.
"""

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
    """Switch autocast off for a block: modulations compute in fp32 whatever the host's precision."""
    return torch.autocast(device.type if device.type != "meta" else "cpu", enabled=False)


class GazeEncoder(SignalEncoder):
    """Base of the gaze encoders: pads clips, calls :meth:`picture`, and takes the steps out again."""

    signal_kind: ClassVar[str] = "gaze"
    params: GazeParams

    def __init__(self, params: GazeParams) -> None:
        super().__init__()
        self.params = params
        self.d_signal = params.dim

    @abstractmethod
    def picture(
        self, a: Alignment, rows: int, cols: int
    ) -> tuple[Float[Tensor, "clip slot token d_signal"], Bool[Tensor, "clip slot"]]:
        """Return the features of every step, exactly 0 where no fixation is active, and whether any
        is.
        """

    @property
    def device(self) -> torch.device:
        """Where this encoder's tensors are."""
        return next(iter([*self.parameters(), *self.buffers()])).device

    def forward(self, signals: Sequence[Signal], grids: Sequence[VisualGrid]) -> SignalFeatures:
        """Encode clips whose grids share rows × cols: (all steps, rows·cols, dim) in fp32 on the
        module's device.

        Raises :class:`ConditioningError` for other signals than scanpaths and for grids of
        different sizes.
        """
        shapes = {(g.rows, g.cols) for g in grids}
        if len(shapes) > 1:
            raise ConditioningError(
                "Clips encoded together need grids of one size; got rows × columns"
                f" {sorted(shapes)}. Encode each size on its own."
            )
        a = align(signals, grids)
        with full_precision(self.device):
            values, active = self.picture(a, grids[0].rows, grids[0].cols)
        return SignalFeatures(
            a.steps_of(values), a.steps_of(active).to(self.device), self.params.to_features
        )


def token_centers(n: int, device: torch.device) -> Float[Tensor, " n"]:
    """Centres of ``n`` rows or columns, fractions of the frame."""
    return (torch.arange(n, device=device) + 0.5) / n

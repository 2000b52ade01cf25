"""The signal encoder ``pointer``."""

import torch
from modulate import Params, SignalEncoder, SignalFeatures
from pydantic import Field


class PointerParams(Params):
    dim: int = Field(64, gt=0, description="channels; must be the modulator's width")
    sharpness: float = Field(
        200.0, gt=0, description="decay of the light with squared distance (fractions of the frame)"
    )


class Pointer(SignalEncoder):
    """One unit of light per step, distributed among the tokens by their distance from the latest
    fixation, times one learned vector.
    """

    Params = PointerParams
    signal_kind = "gaze"

    def __init__(self, params):
        super().__init__()
        self.d_signal = params.dim
        self.sharpness = params.sharpness
        self.color = torch.nn.Parameter(torch.randn(params.dim))

    def forward(self, signals, grids):
        light = []
        for signal, grid in zip(signals, grids, strict=True):
            centers = self.color.new_tensor(grid.centers())
            for span in grid.spans:
                fixations = signal.within(*span).fixations
                gaze = centers.new_tensor(fixations[-1:, :2])  # one row, or none
                distance = (gaze[:, None] - centers).square().sum(-1)
                light.append((-self.sharpness * distance).softmax(-1).sum(0))
        light = torch.stack(light)
        return SignalFeatures(light[..., None] * self.color, active=light.any(-1), to_features=True)

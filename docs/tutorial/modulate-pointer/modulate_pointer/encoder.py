"""The encoder ``pointer``."""

import torch
from pydantic import Field
from torch import nn

from modulate import Params, SignalEncoder, SignalFeatures


class PointerParams(Params):
    """Parameters of ``pointer``."""

    dim: int = Field(64, gt=0, description="width of the features, channels; must be the modulator's width")
    sharpness: float = Field(200.0, gt=0, description="fall of the light with squared distance, which is in fractions of the frame")


class Pointer(SignalEncoder):
    """One unit of light per step, shared among the tokens by their nearness to the latest fixation, times one learned vector."""

    Params = PointerParams
    signal_kind = "gaze"

    def __init__(self, params):
        super().__init__()
        self.params, self.d_signal = params, params.dim
        self.colour = nn.Parameter(torch.randn(params.dim))

    def forward(self, signals, grids):
        """Encode clip after clip: (step, token, dim), exactly 0 in steps without a fixation."""
        light = torch.cat([self.light(*clip) for clip in zip(signals, grids, strict=True)])
        return SignalFeatures(light[..., None] * self.colour, active=light.any(-1), to_features=True)

    def light(self, signal, grid):
        """Return (step, token): each step's shares of light."""
        light = torch.zeros(grid.steps, grid.tokens_per_step, device=self.colour.device)
        centres = torch.tensor(grid.centres(), device=light.device)
        for step, span in enumerate(grid.spans):
            if len(seen := signal.within(*span)):
                gaze = centres.new_tensor(seen.fixations[-1, :2])
                light[step] = (-self.params.sharpness * (centres - gaze).square().sum(-1)).softmax(-1)
        return light

"""Heat maps of gaze on the visual grid, weighted by age (``heatmap_tau``) or duration (``_dur``).

The GazeQwen paper names both but gives no formula. Ours: a Gaussian of height 1 at each fixation is
evaluated at the tokens' centers and weighted. The sum over fixations is normalized and mapped to
``dim`` channels by one learned vector without bias.
"""

import math
from typing import Literal

import torch
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor, nn

from modulate_gaze.activity import Alignment, Mode, activity, decayed, share
from modulate_gaze.encoding import ACTIVE, GazeEncoder, GazeParams, token_centers

Normalization = Literal["none", "weight", "peak"]


class HeatmapParams(GazeParams):
    """Parameters of both heat maps."""

    active: Mode = Field("overlap", description=ACTIVE)
    sigma: float = Field(
        0.1,
        gt=0,
        description=(
            "standard deviation of a fixation's Gaussian, fraction of the frame's width and height"
            " [ours]"
        ),
    )


class HeatmapTauParams(HeatmapParams):
    """Parameters of ``heatmap_tau``."""

    tau: float = Field(
        1.0,
        gt=0,
        description=(
            "initial time constant of the decay, s; learned, stays positive [ours; the decay"
            " itself: Voila, GazeQwen]"
        ),
    )
    normalization: Normalization = Field(
        "none",
        description=(
            "none: weighted sum; weight: a step's weights sum to 1; peak: the largest token is 1."
            " The latter two hide the age of a single fixation [ours]"
        ),
    )


class HeatmapDurParams(HeatmapParams):
    """Parameters of ``heatmap_dur``."""

    normalization: Normalization = Field(
        "weight",
        description=(
            "none: weighted sum, in seconds; weight: a step's weights sum to 1; peak: largest token"
            " 1 [ours]"
        ),
    )


class Heatmap(GazeEncoder):
    """Base of the heat maps, which differ in the weights of fixations."""

    params: HeatmapTauParams | HeatmapDurParams

    def __init__(self, params: HeatmapTauParams | HeatmapDurParams) -> None:
        super().__init__(params)
        # No bias: a token without heat must stay exactly 0.
        self.projection = nn.Linear(1, params.dim, bias=False)

    def weights(self, alignment: Alignment) -> Float[Tensor, "clip slot fixation"]:
        """Return the weight of each fixation at each step, ≥ 0."""
        raise NotImplementedError

    def heat(
        self,
        alignment: Alignment,
        weights: Float[Tensor, "clip slot fixation"],
        rows: int,
        cols: int,
    ) -> Float[Tensor, "clip slot row col"]:
        """Return the normalized sum of the weighted Gaussians at the tokens' centers."""
        if self.params.normalization == "weight":
            weights = share(weights)
        xy = alignment.xy.to(self.device, torch.float32)
        gauss_x = torch.exp(
            -0.5 * ((xy[..., :1] - token_centers(cols, self.device)) / self.params.sigma) ** 2
        )
        gauss_y = torch.exp(
            -0.5 * ((xy[..., 1:] - token_centers(rows, self.device)) / self.params.sigma) ** 2
        )
        heat = torch.einsum("csn,cnr,cnq->csrq", weights, gauss_y, gauss_x)
        if self.params.normalization == "peak":
            peak = heat.amax((-2, -1), keepdim=True)
            heat = heat / peak.where(peak > 0, 1.0)
        return heat

    def step_features(
        self, alignment: Alignment, rows: int, cols: int
    ) -> tuple[Float[Tensor, "clip slot token d_signal"], Bool[Tensor, "clip slot"]]:
        """Project the heat of every token to the width of the features."""
        weights = self.weights(alignment)
        return (
            self.projection(self.heat(alignment, weights, rows, cols).flatten(-2)[..., None]),
            weights.sum(-1) > 0,
        )


class HeatmapTau(Heatmap):
    """Heat map of past and present fixations that decays with a learned time constant τ.

    [named in GazeQwen, after Voila; formula ours]

    Earlier fixations count until they have decayed, so a step can be active without a fixation
    during it.
    """

    Params = HeatmapTauParams

    def __init__(self, params: HeatmapTauParams) -> None:
        super().__init__(params)
        # Learning the logarithm keeps τ positive.
        self.log_tau = nn.Parameter(torch.tensor(math.log(params.tau)))

    @property
    def tau(self) -> Float[Tensor, ""]:
        """Time constant of the decay, seconds."""
        return self.log_tau.exp()

    def weights(self, alignment: Alignment) -> Float[Tensor, "clip slot fixation"]:
        """Return exp(−age/τ), see :func:`modulate_gaze.activity.decayed`."""
        return decayed(alignment, self.params.active, self.tau)


class HeatmapDur(Heatmap):
    """Heat map of the active fixations, each weighted by its duration in seconds.

    [named in GazeQwen; formula ours]

    With ``active: overlap`` only the seconds within the step count, with ``midpoint`` the whole
    duration.
    """

    Params = HeatmapDurParams

    def weights(self, alignment: Alignment) -> Float[Tensor, "clip slot fixation"]:
        """Return the seconds that count for each step."""
        seconds = activity(alignment, self.params.active)
        if self.params.active == "midpoint":
            seconds = seconds * (alignment.end - alignment.start)[:, None]
        return seconds.to(self.device, torch.float32)

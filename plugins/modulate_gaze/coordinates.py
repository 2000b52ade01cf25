"""Sine/cosine encodings of gaze (``coord_pe``) or of its offset from each token (``coord_rel``)."""

import math

import torch
from einops import rearrange, repeat
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor

from modulate.interfaces.params import Departure
from modulate_gaze.activity import Alignment, Mode, Released, activity, share
from modulate_gaze.encoding import ACTIVE, GazeEncoder, GazeParams, token_centers


class CoordinateParams(GazeParams):
    """Parameters of both encoders of coordinates."""

    dim: int = Field(
        256,
        gt=0,
        le=2**16,
        multiple_of=4,
        description="width of the encoding, channels: half for x, half for y [GazeQwen: 256]",
    )
    temperature: float = Field(
        10000.0,
        gt=1,
        description=(
            "ratio of the longest to the shortest wavelength, no unit [DETR, GazeQwen: 10000]"
        ),
    )
    scale: float = Field(
        2 * math.pi,
        gt=0,
        description=(
            "radians per frame width or height [DETR: 2π, which tells neighboring tokens apart]"
        ),
    )


class CoordPEParams(CoordinateParams):
    """Parameters of ``coord_pe``."""

    scale: float = Field(
        1.0,
        gt=0,
        description=(
            "radians per frame width or height: 1 as in GazeQwen's code, 6.283185 (2π) as in DETR"
        ),
    )
    active: Mode | Released = Field(
        "midpoint",
        description=(
            f"{ACTIVE}; released: midpoint with the arithmetic of GazeQwen's code, in float32 and"
            " without tolerance at a fixation's ends"
        ),
    )

    def departures(self) -> list[Departure]:
        """Return settings of GazeQwen's code that differ from its paper or are not exact."""
        departures: list[Departure] = []
        if self.scale == 1.0:
            text = (
                "scale is 1: coordinates are not multiplied by 2π as DETR does, so that far places"
                " look nearly alike (cosine .970 from corner to corner)."
            )
            departures.append(("info", text))
        if self.active == "released":
            text = (
                "active is `released`: times are compared in float32, so that a step at the very"
                " end of a fixation may fall on either side."
            )
            departures.append(("info", text))
        return departures


class CoordRelParams(CoordinateParams):
    """Parameters of ``coord_rel``."""

    active: Mode = Field("overlap", description=ACTIVE)
    to_features: bool = Field(
        True,
        description=(
            "add the features to the modulator's frame features as well as to its keys; keys alone"
            " cannot point at a token [ours, measured]"
        ),
    )


def angular_frequencies(params: CoordinateParams) -> Float[Tensor, " quarter"]:
    """Return radians per unit of coordinate for each sine/cosine pair.

    That is scale / temperature^(2i / (dim/2)) for i < dim/4. [DETR, GazeQwen code]
    """
    half = params.dim // 2
    return (
        params.scale
        / params.temperature ** (2 * torch.arange(half // 2, dtype=torch.float64) / half)
    ).float()


def sinusoid(
    values: Float[Tensor, "*shape"], frequencies: Float[Tensor, " quarter"]
) -> Float[Tensor, "*shape half"]:
    """Return sin, cos, sin, cos … of the values, for each frequency."""
    angles = values[..., None] * frequencies
    return torch.stack([angles.sin(), angles.cos()], -1).flatten(-2)


class CoordPE(GazeEncoder):
    """Mean sine/cosine encoding of the active fixations, the same for every token of a step.

    [GazeQwen §3]

    As a key it is constant over space: it can gate frame features against latents, but cannot
    prefer one token to another.
    """

    Params = CoordPEParams
    params: CoordPEParams

    def __init__(self, params: CoordPEParams) -> None:
        super().__init__(params)
        self.frequencies: Tensor
        self.register_buffer("frequencies", angular_frequencies(params), persistent=False)

    def step_features(
        self, alignment: Alignment, rows: int, cols: int
    ) -> tuple[Float[Tensor, "clip slot token d_signal"], Bool[Tensor, "clip slot"]]:
        """Average the encodings over the active fixations and repeat them for every token."""
        weights = share(activity(alignment, self.params.active)).to(self.device, torch.float32)
        encoded = sinusoid(alignment.xy.to(self.device, torch.float32), self.frequencies).flatten(
            -2
        )
        return (
            repeat(weights @ encoded, "clip slot d -> clip slot token d", token=rows * cols),
            weights.sum(-1) > 0,
        )


class CoordRel(GazeEncoder):
    """Mean sine/cosine encoding of the offset gaze − token center over the active fixations,
    different for every token.

    The horizontal half depends on the column alone and the vertical half on the row alone, so the
    cost grows with rows + columns.
    """

    Params = CoordRelParams
    params: CoordRelParams

    def __init__(self, params: CoordRelParams) -> None:
        super().__init__(params)
        self.frequencies: Tensor
        self.register_buffer("frequencies", angular_frequencies(params), persistent=False)

    def step_features(
        self, alignment: Alignment, rows: int, cols: int
    ) -> tuple[Float[Tensor, "clip slot token d_signal"], Bool[Tensor, "clip slot"]]:
        """Encode offsets per column and row, average over active fixations, concatenate halves."""
        weights = share(activity(alignment, self.params.active)).to(self.device, torch.float32)
        xy = alignment.xy.to(self.device, torch.float32)
        x = self._mean(weights, xy[..., :1] - token_centers(cols, self.device))
        y = self._mean(weights, xy[..., 1:] - token_centers(rows, self.device))
        halves = [
            repeat(x, "clip slot col d -> clip slot (row col) d", row=rows),
            repeat(y, "clip slot row d -> clip slot (row col) d", col=cols),
        ]
        return torch.cat(halves, -1), weights.sum(-1) > 0

    def _mean(
        self,
        weights: Float[Tensor, "clip slot fixation"],
        offsets: Float[Tensor, "clip fixation place"],
    ) -> Float[Tensor, "clip slot place half"]:
        encoded = rearrange(
            sinusoid(offsets, self.frequencies), "clip fixation place d -> clip fixation (place d)"
        )
        return rearrange(
            weights @ encoded, "clip slot (place d) -> clip slot place d", place=offsets.shape[-1]
        )

"""The backbone ``vjepa2_1``: features of a clip, with one time index for every two frames."""

import dataclasses
import hashlib
from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

import torch
from einops import rearrange
from pydantic import Field
from torch import Tensor
from torch.nn.functional import interpolate

from modulate.data.feature_cache import check_frame_times, weights_digest
from modulate.errors import RecipeError, VideoError
from modulate.interfaces import components
from modulate.interfaces.components import FrameFeatures
from modulate.interfaces.params import Departure, LocalPath
from modulate.utils.paths import resolve
from modulate_vjepa.encoder import PRESETS, VJepaConfig, VJepaEncoder
from modulate_vjepa.weights import load_encoder, random_encoder

SCHEMA = 1
"""Increase it whenever the same weights and parameters would give other features."""

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


class VJepa21Params(components.Params):
    """Parameters of :class:`VJepa21`."""

    weights: Annotated[str, LocalPath(("random",))] = Field(
        description=(
            "Path, or package:NAME/sub/path, of a .safetensors file or a published .pt; or the word"
            " random."
        ),
    )
    preset: Literal["base", "large", "giant", "gigantic"] | None = Field(
        None, description="One of the published sizes; excludes dims."
    )
    dims: VJepaConfig | None = Field(
        None,
        description=(
            "The encoder's dimensions"
            f" ({', '.join(f.name for f in dataclasses.fields(VJepaConfig))}), if no preset fits;"
            " by default those in the safetensors metadata or in config.json beside the weights."
        ),
    )
    image_size: int = Field(
        384,
        gt=0,
        description="Side of the resized frames in pixels; a multiple of the patch size.",
    )
    layer: int | None = Field(
        None,
        ge=0,
        description=(
            "Block (from 0) whose normalized output is used: one of the encoder's levels; by"
            " default the last."
        ),
    )
    pad_to: int | None = Field(
        None,
        gt=0,
        description=(
            "number of frames of every clip: shorter ones are padded with copies of the last"
            " frame, as in GazeQwen's code (16); null: no padding"
        ),
    )
    antialias: bool = Field(
        True,
        description=(
            "smooth frames when they are reduced to image_size; false: plain bilinear"
            " interpolation, as in GazeQwen's code"
        ),
    )
    seed: int = Field(0, description="Seed of random weights; unused otherwise.")

    def departures(self) -> list[Departure]:
        """Return the settings that differ from an exact computation, as in GazeQwen's code."""
        departures: list[Departure] = []
        if self.pad_to is not None:
            text = (
                f"pad_to is {self.pad_to}: shorter clips end in copies of their last frame, so that"
                " features stand for moments that were not shown."
            )
            departures.append(("warning", text))
        if not self.antialias:
            text = (
                "antialias is false: where larger frames are resized, some of their pixels count"
                " for nothing."
            )
            departures.append(("info", text))
        return departures


class VJepa21(components.Backbone):
    """V-JEPA 2.1, frozen (https://github.com/facebookresearch/vjepa2).

    Frames are resized to a square of ``image_size`` px without regard to their aspect ratio
    (bilinear, by default with antialiasing), so that a feature's row and column are fractions of
    the frame's height and width. They are normalized by the ImageNet mean and deviation. The
    encoder takes all frames at once: memory and time grow with the square of their number.
    """

    Params: ClassVar[type[components.Params]] = VJepa21Params

    def __init__(self, params: VJepa21Params) -> None:
        super().__init__()
        self.params = params
        self.encoder = _encoder(params)
        config = self.encoder.config
        if params.image_size % config.patch:
            raise RecipeError(
                f"image_size must be a multiple of the patch size, {config.patch} px; got"
                f" {params.image_size}."
            )
        if params.layer is not None and params.layer not in config.levels:
            raise RecipeError(
                f"layer must be one of the blocks that have a norm, {config.levels}; got"
                f" {params.layer}."
            )
        self.d_features = config.dim
        self.eval().requires_grad_(False)
        self._digests: dict[torch.dtype, str] = {}

    @torch.no_grad()
    def forward(self, frames: Tensor, frame_times: Sequence[float]) -> FrameFeatures:
        """Return the features of one clip.

        ``frames``: (frame, height, width, 3) uint8 RGB; ``frame_times``: increasing seconds. A
        single frame uses the image embedding. If the frames do not fill the last tubelet, the last
        frame is repeated, and counts as often in the tubelet's mean time. Raises
        :class:`modulate.errors.VideoError`.
        """
        times = check_frame_times(frames, frame_times)
        if self.params.pad_to is not None:
            frames, times = _padded(frames, times, self.params.pad_to)
        tubelet = self.encoder.config.tubelet
        clip = self._prepare(frames)
        missing = -len(times) % tubelet if len(times) > 1 else 0
        clip = torch.cat([clip, clip[-1:].expand(missing, -1, -1, -1)])
        times += times[-1:] * missing
        step = tubelet if len(times) > 1 else 1
        tokens = self.encoder(
            rearrange(clip, "frame rgb height width -> 1 rgb frame height width"), self.params.layer
        )
        side = self.params.image_size // self.encoder.config.patch
        values = rearrange(tokens, "1 (time row col) d -> time row col d", row=side, col=side)
        return FrameFeatures(
            values, tuple(sum(times[i : i + step]) / step for i in range(0, len(times), step))
        )

    def _prepare(self, frames: Tensor) -> Tensor:
        """Return resized, normalized frames (frame, 3, side, side) in the encoder's dtype."""
        weight = self.encoder.video_mod_embed
        images = (
            rearrange(
                frames.to(weight.device), "frame height width rgb -> frame rgb height width"
            ).float()
            / 255
        )
        side = self.params.image_size
        images = interpolate(
            images,
            size=(side, side),
            mode="bilinear",
            antialias=self.params.antialias,
            align_corners=False,
        )
        mean, std = (images.new_tensor(v).view(3, 1, 1) for v in (MEAN, STD))
        return ((images - mean) / std).to(weight.dtype)

    def fingerprint(self) -> str:
        """Return a hash of everything that determines the features.

        That is weights and dtype, dimensions, layer, preprocessing, and SCHEMA.
        """
        dtype = self.encoder.video_mod_embed.dtype
        if dtype not in self._digests:
            self._digests[dtype] = weights_digest(self.encoder)
        layer = self.encoder.config.levels[-1] if self.params.layer is None else self.params.layer
        resizing = "bilinear antialias" if self.params.antialias else "bilinear"
        preprocessing = f"square {self.params.image_size} {resizing}, mean {MEAN}, std {STD}"
        text = (
            f"{self._digests[dtype]}; {self.encoder.config}; layer {layer}; {preprocessing}; schema"
            f" {SCHEMA}"
        )
        text += f"; padded to {self.params.pad_to}" if self.params.pad_to else ""
        return f"vjepa2_1-{hashlib.sha256(text.encode()).hexdigest()[:32]}"


def _padded(
    frames: Tensor, times: tuple[float, ...], wanted: int
) -> tuple[Tensor, tuple[float, ...]]:
    """Pad a clip to ``wanted`` frames with copies of the last, at the mean spacing of times."""
    if len(times) > wanted:
        raise VideoError(
            f"The clip has {len(times)} frames, and `pad_to` of vjepa2_1 is {wanted}; take fewer"
            " frames, or leave pad_to out."
        )
    missing = wanted - len(times)
    spacing = (times[-1] - times[0]) / (len(times) - 1) if len(times) > 1 else 1.0
    padding = tuple(times[-1] + (k + 1) * spacing for k in range(missing))
    return torch.cat([frames, frames[-1:].expand(missing, -1, -1, -1)]), times + padding


def _encoder(params: VJepa21Params) -> VJepaEncoder:
    """Return the encoder of ``params``."""
    if params.preset and params.dims:
        raise RecipeError(
            f"Name either a preset or dims, not both; got preset {params.preset!r} and"
            f" {params.dims}."
        )
    config = PRESETS[params.preset] if params.preset else params.dims
    if params.weights != "random":
        return load_encoder(resolve(params.weights), config)
    if config is None:
        raise RecipeError(f"Random weights need a preset ({', '.join(PRESETS)}) or dims.")
    return random_encoder(config, params.seed)

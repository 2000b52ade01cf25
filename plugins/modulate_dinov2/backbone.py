"""The backbone ``dinov2``: patch tokens of single frames, with timm."""

import dataclasses
import hashlib
from collections.abc import Sequence
from typing import Annotated, ClassVar

import timm
import torch
from einops import rearrange
from pydantic import ConfigDict, Field
from safetensors import SafetensorError
from timm.layers import resample_abs_pos_embed
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor
from torch.nn.functional import interpolate

from modulate.data.feature_cache import check_frame_times, weights_digest
from modulate.errors import CheckpointError, MissingFileError, RecipeError
from modulate.interfaces import components
from modulate.interfaces.components import FrameFeatures
from modulate.interfaces.params import LocalPath
from modulate.utils.atomic_files import read_tensors
from modulate.utils.paths import resolve

SCHEMA = 1
"""Increase it whenever the same weights and parameters would give other features."""

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


@dataclasses.dataclass(frozen=True)
class DinoV2Dims:
    """Dimensions of a timm ``VisionTransformer`` like DINOv2.

    It has a class token, learned positions and LayerScale. ``dim``: width in channels; ``depth``:
    number of blocks; ``heads``: attention heads; ``mlp_ratio``: hidden width of the MLP over
    ``dim``; ``patch``: side of a patch in pixels; ``registers``: number of register tokens.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    dim: int
    depth: int
    heads: int
    mlp_ratio: float = 4.0
    patch: int = 14
    registers: int = 0

    def __post_init__(self) -> None:
        if (
            min(self.dim, self.depth, self.heads, self.patch) < 1
            or self.mlp_ratio <= 0
            or self.registers < 0
            or self.dim % self.heads
        ):
            raise RecipeError(
                f"A ViT's sizes must be positive, and dim a multiple of heads; got {self!r}."
            )


class DinoV2Params(components.Params):
    """Parameters of :class:`DinoV2`."""

    model: str = Field(
        "vit_base_patch14_dinov2.lvd142m",
        description="timm's name of the model; unused if dims are given.",
    )
    weights: Annotated[str, LocalPath(("pretrained", "random"))] = Field(
        "pretrained",
        description=(
            "The word pretrained (timm's weights, downloaded once), the word random, or a"
            " safetensors file in timm's layout: its path or package:NAME/sub/path."
        ),
    )
    dims: DinoV2Dims | None = Field(
        None,
        description=(
            "Dimensions of a custom model"
            f" ({', '.join(f.name for f in dataclasses.fields(DinoV2Dims))}); needs weights from a"
            " file, or random ones."
        ),
    )
    seed: int = Field(0, description="Seed of random weights; unused otherwise.")
    image_size: int = Field(
        518,
        gt=0,
        description="Side of the resized frames in pixels; a multiple of the patch size.",
    )
    batch: int = Field(
        16, gt=0, description="Number of frames encoded at once; affects only memory."
    )


class DinoV2(components.Backbone):
    """DINOv2, frozen (https://github.com/facebookresearch/dinov2), as timm implements it.

    Frames are resized to a square of ``image_size`` px without regard to their aspect ratio
    (bicubic with antialiasing, clamped to valid colors), and normalized by the ImageNet mean and
    deviation.
    Features are the patch tokens after the final norm.
    """

    Params: ClassVar[type[components.Params]] = DinoV2Params

    def __init__(self, params: DinoV2Params) -> None:
        super().__init__()
        self.params = params
        self.vit = _vit(params)
        self.d_features = self.vit.num_features
        self.eval().requires_grad_(False)
        self._digests: dict[torch.dtype, str] = {}

    @torch.no_grad()
    def forward(self, frames: Tensor, frame_times: Sequence[float]) -> FrameFeatures:
        """Return the features of each frame, at the frame's time.

        ``frames``: (frame, height, width, 3) uint8 RGB; ``frame_times``: increasing seconds. Raises
        :class:`modulate.errors.VideoError` for anything else.
        """
        times = check_frame_times(frames, frame_times)
        tokens = torch.cat(
            [
                self.vit.forward_features(self._prepare(part))
                for part in frames.split(self.params.batch)
            ]
        )
        rows, cols = self.vit.patch_embed.grid_size
        patches = tokens[:, self.vit.num_prefix_tokens :]
        return FrameFeatures(
            rearrange(patches, "frame (row col) d -> frame row col d", row=rows, col=cols), times
        )

    def _prepare(self, frames: Tensor) -> Tensor:
        """Return resized, normalized frames (frame, 3, side, side) in the model's dtype."""
        weight = self.vit.patch_embed.proj.weight
        images = (
            rearrange(
                frames.to(weight.device), "frame height width rgb -> frame rgb height width"
            ).float()
            / 255
        )
        side = self.params.image_size
        images = interpolate(
            images, size=(side, side), mode="bicubic", antialias=True, align_corners=False
        ).clamp(0, 1)
        mean, std = (images.new_tensor(v).view(3, 1, 1) for v in (MEAN, STD))
        return ((images - mean) / std).to(weight.dtype)

    def fingerprint(self) -> str:
        """Return a hash of everything that determines the features.

        That is weights and dtype, architecture, preprocessing, and SCHEMA.
        """
        dtype = self.vit.patch_embed.proj.weight.dtype
        if dtype not in self._digests:
            self._digests[dtype] = weights_digest(self.vit)
        architecture = self.params.dims or self.params.model
        preprocessing = f"square {self.params.image_size} bicubic antialias, mean {MEAN}, std {STD}"
        text = (
            f"{self._digests[dtype]}; {architecture}; final norm; {preprocessing}; schema {SCHEMA}"
        )
        return f"dinov2-{hashlib.sha256(text.encode()).hexdigest()[:32]}"


def build_vit(dims: DinoV2Dims, image_size: int) -> VisionTransformer:
    """Return timm's ViT of these dimensions with random weights, for ``image_size`` px squares."""
    return VisionTransformer(
        img_size=image_size,
        patch_size=dims.patch,
        embed_dim=dims.dim,
        depth=dims.depth,
        num_heads=dims.heads,
        mlp_ratio=dims.mlp_ratio,
        reg_tokens=dims.registers,
        no_embed_class=dims.registers > 0,
        init_values=1e-5,
        num_classes=0,
    )


def _vit(params: DinoV2Params) -> VisionTransformer:
    """Return the model of ``params`` with its weights; keeps the global generator's state."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(params.seed)
        return _built(params)


def _built(params: DinoV2Params) -> VisionTransformer:
    pretrained = params.weights == "pretrained"
    if params.dims and pretrained:
        raise RecipeError(
            "A model with dims of one's own has no pretrained weights; name a safetensors file"
            " under weights."
        )
    if params.dims:
        _check_size(params.image_size, params.dims.patch)
        vit = build_vit(params.dims, params.image_size)
    else:
        vit = _timm_model(params, pretrained)
    if params.weights not in ("pretrained", "random"):
        _load(vit, params.weights)
    return vit


def _timm_model(params: DinoV2Params, pretrained: bool) -> VisionTransformer:
    """Return the model of this name from timm.

    Raises :class:`modulate.errors.RecipeError` for a wrong name or size, and
    :class:`modulate.errors.MissingFileError` if pretrained weights cannot be downloaded.
    """
    if not timm.is_model(params.model):
        raise RecipeError(
            f"timm knows no model {params.model!r}; `timm.list_models('*dinov2*')` lists those"
            " meant here."
        )
    if "dinov2" not in params.model:
        raise RecipeError(
            "The backbone dinov2 takes timm's DINOv2 models, whose names contain dinov2; got"
            f" {params.model!r}."
        )
    patch = int(params.model.split("patch")[1].split("_")[0])
    _check_size(params.image_size, patch)
    try:
        vit: VisionTransformer = timm.create_model(
            params.model, pretrained=pretrained, img_size=params.image_size, num_classes=0
        )  # type: ignore[assignment]
    except OSError as error:  # raised for every failure of the hub's client
        raise MissingFileError(
            f"timm's weights of {params.model} are not here and could not be fetched: {error}. Name"
            " a safetensors file under weights."
        ) from error
    return vit


def _load(vit: VisionTransformer, weights: str) -> None:
    """Load a safetensors file strictly; interpolate positions of another image size like timm.

    Raises :class:`modulate.errors.CheckpointError` if it is unreadable or does not fit.
    """
    path = resolve(weights)
    try:
        state = read_tensors(path)
        # Positions of another image size differ in number, which strict loading would refuse.
        if (
            "pos_embed" in state
            and vit.pos_embed is not None
            and state["pos_embed"].shape[1] != vit.pos_embed.shape[1]
        ):
            prefix = 0 if vit.no_embed_class else vit.num_prefix_tokens
            state["pos_embed"] = resample_abs_pos_embed(
                state["pos_embed"], list(vit.patch_embed.grid_size), num_prefix_tokens=prefix
            )
        vit.load_state_dict(state, strict=True)
    except (SafetensorError, OSError, RuntimeError) as error:
        raise CheckpointError(
            f"{path} does not fit the model: {error} Name the model or dims that the weights were"
            " saved with."
        ) from error


def _check_size(image_size: int, patch: int) -> None:
    if image_size % patch:
        raise RecipeError(
            f"image_size must be a multiple of the patch size, {patch} px; got {image_size}."
        )

"""The V-JEPA 2.1 video encoder: a ViT over space-time patches with 3-D rotary positions.

Parameter names follow the checkpoints that Meta published with V-JEPA 2.1
(https://github.com/facebookresearch/vjepa2), so that those load strictly. There is no class token
and no learned position, and neither masking nor a predictor: only inference and plain training.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from einops import rearrange
from jaxtyping import Float
from pydantic import ConfigDict
from torch import Tensor, nn
from torch.nn.functional import gelu, pad, scaled_dot_product_attention

from modulate.errors import ConditioningError, RecipeError

MAX_SIZE = 1 << 16
"""Upper bound of an encoder's sizes.

It is far above the published sizes, and refuses absurd values of a file before anything is built.
"""


@dataclass(frozen=True)
class VJepaConfig:
    """Dimensions of an encoder.

    Raises :class:`modulate.errors.RecipeError` if they contradict each other.

    ``dim``: width in channels; ``depth``: number of blocks; ``heads``: attention heads of a block;
    ``mlp_ratio``: hidden width of the MLP over ``dim``; ``patch``: side of a patch in pixels;
    ``tubelet``: frames merged into one time index; ``levels``: blocks (from 0) whose output can be
    read through its own LayerNorm, ending with the last block; by default four, evenly spread, or
    all blocks of a shallower encoder. ``rope_grid``: side of the pre-training images in patches, to
    which row and column positions are scaled. ``eps``: epsilon of all LayerNorms.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    dim: int
    depth: int
    heads: int
    mlp_ratio: float = 4.0
    patch: int = 16
    tubelet: int = 2
    levels: tuple[int, ...] = ()
    rope_grid: int = 16
    eps: float = 1e-6

    def __post_init__(self) -> None:
        sizes = (self.dim, self.depth, self.heads, self.patch, self.tubelet, self.rope_grid)
        if (
            max(sizes) > MAX_SIZE
            or not 0 < self.mlp_ratio <= MAX_SIZE
            or not math.isfinite(self.eps)
        ):
            raise RecipeError(
                f"An encoder's sizes are positive and at most {MAX_SIZE}; got {self!r:.300}."
            )
        if min(sizes) < 1 or self.dim % self.heads or self.dim // self.heads < 6:
            raise RecipeError(
                "An encoder's sizes must be positive, and dim a multiple of heads with at least 6"
                f" channels per head; got {self!r}."
            )
        if not self.levels:
            count = min(4, self.depth)
            object.__setattr__(
                self, "levels", tuple(self.depth * (i + 1) // count - 1 for i in range(count))
            )
        object.__setattr__(self, "levels", tuple(self.levels))
        if (
            not all(isinstance(level, int) for level in self.levels)
            or sorted(set(self.levels)) != list(self.levels)
            or self.levels[0] < 0
            or self.levels[-1] != self.depth - 1
        ):
            raise RecipeError(
                f"levels must increase and end with the last block, {self.depth - 1}; got"
                f" {self.levels}. Leave them out for the usual ones."
            )

    @property
    def hidden(self) -> int:
        """Hidden width of a block's MLP, channels."""
        return round(self.dim * self.mlp_ratio)


PRESETS: dict[str, VJepaConfig] = {
    "base": VJepaConfig(dim=768, depth=12, heads=12),
    "large": VJepaConfig(dim=1024, depth=24, heads=16),
    "giant": VJepaConfig(dim=1408, depth=40, heads=22, mlp_ratio=48 / 11),
    "gigantic": VJepaConfig(
        dim=1664, depth=48, heads=26, mlp_ratio=64 / 13, levels=(11, 23, 37, 47)
    ),
}
"""The published sizes: ViT-B, ViT-L, ViT-g and ViT-G with patches of 16 pixels."""


class PatchEmbed(nn.Module):
    """Maps space-time patches to tokens by a strided convolution."""

    def __init__(self, config: VJepaConfig, frames: int) -> None:
        super().__init__()
        size = (frames, config.patch, config.patch)
        self.proj = nn.Conv3d(3, config.dim, kernel_size=size, stride=size)

    def forward(
        self, clips: Float[Tensor, "clip 3 frame height width"]
    ) -> Float[Tensor, "clip dim time row col"]:
        """Return the tokens of ``clips``, whose sizes are multiples of the patch's."""
        tokens: Tensor = self.proj(clips)
        return tokens


class Attention(nn.Module):
    """Multi-head self-attention whose queries and keys are rotated by their positions."""

    def __init__(self, config: VJepaConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.qkv = nn.Linear(config.dim, 3 * config.dim)
        self.proj = nn.Linear(config.dim, config.dim)

    def forward(
        self, x: Float[Tensor, "clip token dim"], rotation: tuple[Tensor, Tensor]
    ) -> Float[Tensor, "clip token dim"]:
        """Attend among all tokens of a clip; ``rotation`` is cos and sin, each (token, channel)."""
        q, k, v = rearrange(
            self.qkv(x),
            "clip token (three head c) -> three clip head token c",
            three=3,
            head=self.heads,
        )
        mixed = scaled_dot_product_attention(rotate(q, rotation), rotate(k, rotation), v)
        tokens: Tensor = self.proj(rearrange(mixed, "clip head token c -> clip token (head c)"))
        return tokens


class Mlp(nn.Module):
    """Two linear layers with an exact GELU between them."""

    def __init__(self, config: VJepaConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.dim, config.hidden)
        self.fc2 = nn.Linear(config.hidden, config.dim)

    def forward(self, x: Float[Tensor, "clip token dim"]) -> Float[Tensor, "clip token dim"]:
        """Map each token separately."""
        tokens: Tensor = self.fc2(gelu(self.fc1(x)))
        return tokens


class Block(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, config: VJepaConfig) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.dim, eps=config.eps)
        self.attn = Attention(config)
        self.norm2 = nn.LayerNorm(config.dim, eps=config.eps)
        self.mlp = Mlp(config)

    def forward(
        self, x: Float[Tensor, "clip token dim"], rotation: tuple[Tensor, Tensor]
    ) -> Float[Tensor, "clip token dim"]:
        """Add attention, then the MLP, to the residual stream."""
        x = x + self.attn(self.norm1(x), rotation)
        return x + self.mlp(self.norm2(x))


class VJepaEncoder(nn.Module):
    """The encoder.

    Linear and convolution weights start from N(0, 0.02), biases and both modality embeddings near
    0.
    """

    def __init__(self, config: VJepaConfig) -> None:
        super().__init__()
        self.config = config
        self.patch_embed = PatchEmbed(config, config.tubelet)
        self.patch_embed_img = PatchEmbed(config, 1)
        self.img_mod_embed = nn.Parameter(torch.randn(1, 1, config.dim) * 1e-6)
        self.video_mod_embed = nn.Parameter(torch.randn(1, 1, config.dim) * 1e-6)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.norms_block = nn.ModuleList(
            nn.LayerNorm(config.dim, eps=config.eps) for _ in config.levels
        )
        self.apply(_initialize)

    def forward(
        self, clips: Float[Tensor, "clip 3 frame height width"], layer: int | None = None
    ) -> Float[Tensor, "clip token dim"]:
        """Return the tokens of clips in the order time, row, column.

        Clips are RGB, normalized by the ImageNet mean and deviation. A single frame uses the image
        embedding; otherwise the number of frames must be a multiple of ``config.tubelet``.
        ``layer`` is one of ``config.levels``, by default the last. Raises
        :class:`modulate.errors.ConditioningError` for other sizes or layers.
        """
        level = self._check(clips, layer)
        is_image = clips.shape[2] == 1
        x = (self.patch_embed_img if is_image else self.patch_embed)(clips)
        rotation = self.rotation((x.shape[2], x.shape[3], x.shape[4]), like=x)
        x = rearrange(x, "clip dim time row col -> clip (time row col) dim") + (
            self.img_mod_embed if is_image else self.video_mod_embed
        )
        for block in self.blocks[: self.config.levels[level] + 1]:
            x = block(x, rotation)
        tokens: Tensor = self.norms_block[level](x)
        return tokens

    def _check(self, clips: Tensor, layer: int | None) -> int:
        """Return the index of the requested level, after checking the sizes of ``clips``."""
        config = self.config
        if clips.ndim != 5 or clips.shape[1] != 3 or 0 in clips.shape:
            raise ConditioningError(
                f"The encoder takes (clip, 3, frame, height, width); got {tuple(clips.shape)}."
            )
        frames, height, width = clips.shape[2:]
        if (
            height % config.patch
            or width % config.patch
            or (frames != 1 and frames % config.tubelet)
        ):
            raise ConditioningError(
                f"The encoder takes one frame or a multiple of {config.tubelet}, of sides that are"
                f" multiples of {config.patch} px; got {frames} of {height}×{width}."
            )
        if layer is not None and layer not in config.levels:
            raise ConditioningError(
                f"Features can be read after the blocks {config.levels}, which have a norm; got"
                f" {layer}."
            )
        return len(config.levels) - 1 if layer is None else config.levels.index(layer)

    def rotation(self, grid: tuple[int, int, int], like: Tensor) -> tuple[Tensor, Tensor]:
        """Return cos and sin of every token's angles, each (token, channel of a head).

        ``grid``: number of time indices, rows and columns of patches. A head's channels are split
        into three equal even parts for time, row and column; remaining channels are not rotated.
        Row and column indices are scaled to span ``rope_grid`` patches, time indices are not. The
        result has the device and dtype of ``like``.
        """
        # float32 throughout: bfloat16 cannot represent the positions of long clips.
        _, rows, cols = grid
        head = self.config.dim // self.config.heads
        part = 2 * (head // 3 // 2)
        span = self.config.rope_grid - 1
        axes = [torch.arange(n, device=like.device, dtype=torch.float32) for n in grid]
        axes = [axes[0], axes[1] * (span / max(rows - 1, 1)), axes[2] * (span / max(cols - 1, 1))]
        omega = 10000.0 ** (
            -torch.arange(part // 2, device=like.device, dtype=torch.float32) / (part / 2)
        )
        places = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).reshape(-1, 3)
        angles = rearrange(
            places[:, :, None] * omega, "token part i -> token (part i)"
        ).repeat_interleave(2, dim=-1)
        angles = pad(angles, (0, head - 3 * part))
        return angles.cos().to(like.dtype), angles.sin().to(like.dtype)


def rotate(
    x: Float[Tensor, "clip head token c"], rotation: tuple[Tensor, Tensor]
) -> Float[Tensor, "clip head token c"]:
    """Rotate channel pairs (a, b) of ``x`` by their angle to (a cos − b sin, b cos + a sin)."""
    cos, sin = rotation
    turned = (
        torch.stack((-x[..., 1::2], x[..., 0::2]), dim=-1).flatten(-2)
        if x.shape[-1] % 2 == 0
        else _turn_odd(x)
    )
    return x * cos + turned * sin


def _turn_odd(x: Tensor) -> Tensor:
    """Return (−b, a) for pairs (a, b) of an odd number of channels; the last becomes 0."""
    even = x[..., :-1]
    return pad(torch.stack((-even[..., 1::2], even[..., 0::2]), dim=-1).flatten(-2), (0, 1))


def _initialize(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Conv3d):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)

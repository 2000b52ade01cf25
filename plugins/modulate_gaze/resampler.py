"""The modulator of GazeQwen: learned latents attend to frame features under the guidance of gaze, then the tokens read them back.

All injected layers and all steps go through in one batch: parameters of the layers' independent copies are stacked along a leading axis
``module`` (length 1 when one copy serves every layer). [GazeQwen, arXiv 2603.25841, equations 2–5; details as in its released code]
"""

from typing import Literal

import torch
from einops import repeat
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from modulate.components import Modulator, Params, SignalFeatures
from modulate.errors import RecipeError
from modulate_gaze.encoding import full_precision


class GazeResamplerParams(Params):
    """Parameters of ``gaze_resampler``."""

    latents: int = Field(default=32, gt=0, description="learned latent vectors [GazeQwen: 32]")
    blocks: int = Field(default=2, gt=0, description="cross-attention blocks [GazeQwen: 2]")
    width: int = Field(default=256, gt=0, description="width of latents and attention, channels [GazeQwen: 256]")
    sharing: Literal["per_layer", "shared"] = Field(default="per_layer", description="one copy for each injected layer, or one for all [GazeQwen: per_layer]")


class StackedLinear(nn.Module):
    """A linear map for each module, each initialised like ``nn.Linear``."""

    def __init__(self, modules: int, d_in: int, d_out: int, bias: bool = True) -> None:
        super().__init__()
        single = [nn.Linear(d_in, d_out, bias) for _ in range(modules)]
        self.weight = nn.Parameter(torch.stack([linear.weight.detach() for linear in single]))
        self.bias = nn.Parameter(torch.stack([linear.bias.detach() for linear in single])) if bias else None

    def forward(self, x: Float[Tensor, "module step token d_in"] | Float[Tensor, "step token d_in"]) -> Float[Tensor, "module step token d_out"]:
        """Map inputs of each module, or one input common to all."""
        y = torch.einsum("stf,mof->msto" if x.ndim == 3 else "mstf,mof->msto", x, self.weight)
        return y if self.bias is None else y + self.bias[:, None, None]


class StackedNorm(nn.Module):
    """A LayerNorm for each module."""

    def __init__(self, modules: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(modules, width))
        self.bias = nn.Parameter(torch.zeros(modules, width))

    def forward(self, x: Float[Tensor, "module step token d"]) -> Float[Tensor, "module step token d"]:
        """Normalise the channels, then scale and shift as each module has learned."""
        return functional.layer_norm(x, x.shape[-1:]) * self.weight[:, None, None] + self.bias[:, None, None]


def attend(
    query: Float[Tensor, "module step q d"], key: Float[Tensor, "module step k d"], value: Float[Tensor, "module step k d"]
) -> Float[Tensor, "module step q d"]:
    """Single-head attention, softmax(QKᵀ/√d) V.

    Written out because the fused fp32 kernels' backward is not deterministic on GPUs, and a resumed run must reach the same weights; with 32
    queries or keys the weights are small anyway.
    """
    return torch.softmax(query @ key.mT / query.shape[-1] ** 0.5, -1) @ value


class Block(nn.Module):
    """Latents attend to frame features and to themselves, then pass through a feed-forward net.

    As released: L ← L + attention; L ← LayerNorm(L + FFN(LayerNorm(L))). The biases of ``key`` and ``signal`` shift all logits of a query alike
    and so change nothing; they are kept because released checkpoints have them.
    """

    def __init__(self, modules: int, width: int, d_signal: int) -> None:
        super().__init__()
        self.query, self.key, self.value = (StackedLinear(modules, width, width) for _ in range(3))
        self.signal = StackedLinear(modules, d_signal, width)
        self.ff_norm, self.norm = StackedNorm(modules, width), StackedNorm(modules, width)
        self.ff_in, self.ff_out = StackedLinear(modules, width, 4 * width), StackedLinear(modules, 4 * width, width)

    def forward(
        self, latents: Float[Tensor, "module step latent d"], x: Float[Tensor, "module step token d"], signal: Float[Tensor, "step token_and_latent d_signal"]
    ) -> Float[Tensor, "module step latent d"]:
        """Update the latents. ``signal`` guides the keys of the tokens; its rows for the latents are 0."""
        source = torch.cat([x, latents], 2)
        latents = latents + attend(self.query(latents), self.key(source) + self.signal(signal), self.value(source))
        return self.norm(latents + self.ff_out(functional.gelu(self.ff_in(self.ff_norm(latents)))))


class GazeResampler(Modulator):
    """Frame features and gaze → what each injected layer adds to its visual tokens, at width ``width``.

    Where no fixation is active the keys go without guidance and the result is what the frame features alone make of the latents, as in the
    released code: not 0. Raises :class:`RecipeError` when an encoder wants its features added and has another width.
    """

    Params = GazeResamplerParams

    def __init__(self, params: GazeResamplerParams, *, d_features: int, d_signal: int, n_layers: int) -> None:
        super().__init__()
        self.params, self.n_layers, self.d_signal = params, n_layers, d_signal
        self.d_latent = params.width
        self.shared_output = params.sharing == "shared"
        modules = 1 if self.shared_output else n_layers
        self.latents = nn.Parameter(0.02 * torch.randn(modules, params.latents, params.width))
        self.proj_in = StackedLinear(modules, d_features, params.width, bias=False)
        self.blocks = nn.ModuleList(Block(modules, params.width, d_signal) for _ in range(params.blocks))

    def forward(self, features: Float[Tensor, "step token d_features"], signal: SignalFeatures) -> list[Float[Tensor, "step token d_latent"]]:
        """Return latents for each injected layer. Compute is fp32 whatever the inputs' dtype; with ``shared`` all entries are one tensor."""
        if signal.to_features and self.d_signal != self.params.width:
            raise RecipeError(
                f"The encoder's features (dim {self.d_signal}) are to be added to the resampler's (width {self.params.width}); "
                "set both to the same number, or the encoder's to_features to false."
            )
        with full_precision(self.latents.device):
            guide = signal.values.float()
            x = self.proj_in(features.float())
            if signal.to_features:
                x = x + guide
            latents = repeat(self.latents, "module latent d -> module step latent d", step=len(features))
            padded = functional.pad(guide, (0, 0, 0, self.params.latents))
            for block in self.blocks:
                latents = block(latents, x, padded)
            read = attend(x, latents, latents)
        return list(read.unbind(0)) if not self.shared_output else [read[0]] * self.n_layers

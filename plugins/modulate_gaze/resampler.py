"""The modulator of GazeQwen: learned latents attend to frame features under the guidance of gaze,
then the tokens read them back.

All injected layers and all steps go through in one batch: parameters of the layers' independent
copies are stacked along a leading axis ``module`` (length 1 when one copy serves every layer).
[GazeQwen, arXiv 2603.25841, equations 2–5; details as in its released code]
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from modulate.errors import RecipeError
from modulate.interfaces.components import Modulator, Params, SignalFeatures
from modulate.interfaces.writer import Mixture
from modulate_gaze.encoding import full_precision


class GazeResamplerParams(Params):
    """Parameters of ``gaze_resampler``."""

    latents: int = Field(
        default=32, gt=0, le=2**16, description="learned latent vectors [GazeQwen: 32]"
    )
    blocks: int = Field(default=2, gt=0, le=256, description="cross-attention blocks [GazeQwen: 2]")
    width: int = Field(
        default=256,
        gt=0,
        le=2**16,
        description="width of latents and attention, channels [GazeQwen: 256]",
    )
    sharing: Literal["per_layer", "shared"] = Field(
        default="per_layer",
        description="one copy for each injected layer, or one for all [GazeQwen: per_layer]",
    )


class StackedLinear(nn.Module):
    """A linear map for each module, each initialized like ``nn.Linear``."""

    def __init__(self, modules: int, d_in: int, d_out: int, bias: bool = True) -> None:
        super().__init__()
        single = [nn.Linear(d_in, d_out, bias) for _ in range(modules)]
        self.weight = nn.Parameter(torch.stack([linear.weight.detach() for linear in single]))
        self.bias = (
            nn.Parameter(torch.stack([linear.bias.detach() for linear in single])) if bias else None
        )

    def forward(
        self, x: Float[Tensor, "module step token d_in"]
    ) -> Float[Tensor, "module step token d_out"]:
        """Map each module's inputs."""
        y = torch.einsum("mstf,mof->msto", x, self.weight)
        return y if self.bias is None else y + self.bias[:, None, None]

    def back(
        self, query: Float[Tensor, "module step q d_out"]
    ) -> Float[Tensor, "module step q d_in"]:
        """Return query · W, whose product with x is that of ``query`` with W x."""
        return torch.einsum("msqo,mof->msqf", query, self.weight)

    def constant(
        self, query: Float[Tensor, "module step q d_out"]
    ) -> Float[Tensor, "module step q 1"]:
        """Return the product of ``query`` with the bias."""
        return (
            torch.zeros_like(query[..., :1])
            if self.bias is None
            else torch.einsum("msqo,mo->msq", query, self.bias)[..., None]
        )


class StackedNorm(nn.Module):
    """A LayerNorm for each module."""

    def __init__(self, modules: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(modules, width))
        self.bias = nn.Parameter(torch.zeros(modules, width))

    def forward(
        self, x: Float[Tensor, "module step token d"]
    ) -> Float[Tensor, "module step token d"]:
        """Normalize the channels, then scale and shift as each module has learned."""
        return (
            functional.layer_norm(x, x.shape[-1:]) * self.weight[:, None, None]
            + self.bias[:, None, None]
        )


@dataclass(frozen=True)
class Tokens:
    """The visual tokens as all modules see them, x = W_in f, plus the signal where it is to be
    added: known by their products alone.

    Each is looked at by, and looks at, a few latents only. So queries are mapped to the features'
    side, and means of features to the modules' width: x itself, larger by far than all the rest, is
    never made, nor kept for backward. The same numbers up to rounding. Attention is written out
    because the fused fp32 kernels' backward is not deterministic on GPUs, and a resumed run must
    reach the same weights.
    """

    features: Float[Tensor, "step token d_features"]
    proj_in: StackedLinear
    added: Float[Tensor, "step token d"] | None

    def products(self, query: Tensor) -> Float[Tensor, "module step q token"]:
        """Return query · x. ``query``: (module, step, q, d), of one step where they are the same in
        all.
        """
        found = torch.einsum("msqf,stf->msqt", self.proj_in.back(query), self.features)
        return (
            found
            if self.added is None
            else found + torch.einsum("msqd,std->msqt", query, self.added)
        )

    def means(
        self, weights: Float[Tensor, "module step q token"]
    ) -> Float[Tensor, "module step q d"]:
        """Return the sums of x by these weights."""
        found = self.proj_in(torch.einsum("msqt,stf->msqf", weights, self.features))
        return (
            found
            if self.added is None
            else found + torch.einsum("msqt,std->msqd", weights, self.added)
        )


class Block(nn.Module):
    """Latents attend to frame features and to themselves, then pass through a feed-forward net.

    As released: L ← L + attention; L ← LayerNorm(L + FFN(LayerNorm(L))). The biases of ``key`` and
    ``signal`` shift all logits of a query alike and so change nothing; they are kept because
    released checkpoints have them.
    """

    def __init__(self, modules: int, width: int, d_signal: int) -> None:
        super().__init__()
        self.query, self.key, self.value = (StackedLinear(modules, width, width) for _ in range(3))
        self.signal = StackedLinear(modules, d_signal, width)
        self.ff_norm = StackedNorm(modules, width)
        self.norm = StackedNorm(modules, width)
        self.ff_in = StackedLinear(modules, width, 4 * width)
        self.ff_out = StackedLinear(modules, 4 * width, width)

    def forward(
        self, latents: Tensor, tokens: Tokens, signal: Float[Tensor, "step token d_signal"]
    ) -> Float[Tensor, "module step latent d"]:
        """Update the latents: they attend to the tokens, whose keys ``signal`` guides, and to
        themselves, whose keys it leaves alone.

        ``latents``: (module, step, latent, d), of one step where they are the same in all.
        """
        query = self.query(latents)
        keyed = self.key.back(query)
        constant = self.key.constant(query) + self.signal.constant(query)
        guided = torch.einsum("msqf,stf->msqt", self.signal.back(query), signal)
        products = tokens.products(keyed) + guided
        own = (keyed @ latents.mT).expand(-1, products.shape[1], -1, -1)
        logits = torch.cat([products, own], -1) + constant
        weights = torch.softmax(logits / query.shape[-1] ** 0.5, -1)
        n = signal.shape[1]
        seen = tokens.means(weights[..., :n]) + weights[..., n:] @ latents
        latents = latents + self.value(seen)  # its bias once, as weights sum to 1
        return self.norm(latents + self.ff_out(functional.gelu(self.ff_in(self.ff_norm(latents)))))


class GazeResampler(Modulator):
    """Frame features and gaze → what each injected layer adds to its visual tokens, at width
    ``width``.

    Where no fixation is active the keys go without guidance and the result is what the frame
    features alone make of the latents, as in the released code: not 0. Raises :class:`RecipeError`
    when an encoder wants its features added and has another width.
    """

    Params = GazeResamplerParams

    def __init__(
        self, params: GazeResamplerParams, *, d_features: int, d_signal: int, n_layers: int
    ) -> None:
        super().__init__()
        self.params = params
        self.n_layers = n_layers
        self.d_signal = d_signal
        self.d_latent = params.width
        self.shared_output = params.sharing == "shared"
        modules = 1 if self.shared_output else n_layers
        self.latents = nn.Parameter(0.02 * torch.randn(modules, params.latents, params.width))
        self.proj_in = StackedLinear(modules, d_features, params.width, bias=False)
        self.blocks = nn.ModuleList(
            Block(modules, params.width, d_signal) for _ in range(params.blocks)
        )

    def forward(
        self, features: Float[Tensor, "step token d_features"], signal: SignalFeatures
    ) -> list[Mixture]:
        """Return for each injected layer the latents as its tokens read them.

        Compute is fp32 whatever the inputs' dtype; with ``shared`` all entries are one.
        """
        if signal.to_features and self.d_signal != self.params.width:
            raise RecipeError(
                f"The encoder's features (dim {self.d_signal}) are to be added to the resampler's"
                f" (width {self.params.width}); set both to the same number, or the encoder's"
                " to_features to false."
            )
        with full_precision(self.latents.device):
            guide = signal.values.float()
            tokens = Tokens(features.float(), self.proj_in, guide if signal.to_features else None)
            latents = self.latents[
                :, None
            ]  # the same in all steps until they have looked at something
            for block in self.blocks:
                latents = block(latents, tokens, guide)
            back = torch.softmax(
                tokens.products(latents) / self.params.width**0.5, 2
            )  # each token over the latents
        read = [
            Mixture(weights.mT, vectors) for weights, vectors in zip(back, latents, strict=True)
        ]
        return read if not self.shared_output else read * self.n_layers

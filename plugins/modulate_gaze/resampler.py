"""GazeQwen's modulator: latents attend to frame features guided by gaze, then tokens read them.

All injected layers and steps are computed in one batch: the parameters of the layers' independent
copies are stacked along a leading axis ``module``, of length 1 if one copy serves every layer.
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
    """One linear map for each module, initialized like ``nn.Linear``."""

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
        """Apply each module's map to its inputs."""
        y = torch.einsum("mstf,mof->msto", x, self.weight)
        return y if self.bias is None else y + self.bias[:, None, None]

    def back(
        self, query: Float[Tensor, "module step q d_out"]
    ) -> Float[Tensor, "module step q d_in"]:
        """Return query · W, so that (query · W) · x = query · (W x)."""
        return torch.einsum("msqo,mof->msqf", query, self.weight)

    def constant(
        self, query: Float[Tensor, "module step q d_out"]
    ) -> Float[Tensor, "module step q 1"]:
        """Return query · bias."""
        return (
            torch.zeros_like(query[..., :1])
            if self.bias is None
            else torch.einsum("msqo,mo->msq", query, self.bias)[..., None]
        )


class StackedNorm(nn.Module):
    """One LayerNorm for each module."""

    def __init__(self, modules: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(modules, width))
        self.bias = nn.Parameter(torch.zeros(modules, width))

    def forward(
        self, x: Float[Tensor, "module step token d"]
    ) -> Float[Tensor, "module step token d"]:
        """Normalize the channels, then apply each module's scale and shift."""
        return (
            functional.layer_norm(x, x.shape[-1:]) * self.weight[:, None, None]
            + self.bias[:, None, None]
        )


@dataclass(frozen=True)
class Tokens:
    """The visual tokens x = W_in f (plus the signal, if it is added), without computing x.

    Only a few latents attend to the tokens, and the tokens to them. So queries are mapped to the
    width of the features, and means of features to the width of the modules. x itself, by far the
    largest tensor, is neither computed nor saved for backward. Results are equal up to rounding.

    Attention is written out because the backward pass of fused fp32 kernels is not deterministic on
    GPUs, but a resumed run must reach the same weights.
    """

    features: Float[Tensor, "step token d_features"]
    proj_in: StackedLinear
    added: Float[Tensor, "step token d"] | None

    def products(self, query: Tensor) -> Float[Tensor, "module step q token"]:
        """Return query · x; ``query`` is (module, step, q, d), with one step if all are equal."""
        products = torch.einsum("msqf,stf->msqt", self.proj_in.back(query), self.features)
        if self.added is None:
            return products
        return products + torch.einsum("msqd,std->msqt", query, self.added)

    def means(
        self, weights: Float[Tensor, "module step q token"]
    ) -> Float[Tensor, "module step q d"]:
        """Return the weighted sums of x."""
        sums = self.proj_in(torch.einsum("msqt,stf->msqf", weights, self.features))
        if self.added is None:
            return sums
        return sums + torch.einsum("msqt,std->msqd", weights, self.added)


class Block(nn.Module):
    """Latents attend to frame features and to themselves, then pass through a feed-forward net.

    As released: L ← L + attention; L ← LayerNorm(L + FFN(LayerNorm(L))). The biases of ``key`` and
    ``signal`` shift all logits of a query equally and so have no effect; they exist because
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
        """Return the updated latents.

        ``signal`` guides the keys of the tokens, but not those of the latents. ``latents`` is
        (module, step, latent, d), with one step if all are equal.
        """
        # Keys are never computed: each of the two key maps is applied to the few queries instead of
        # the many tokens.
        query = self.query(latents)
        keyed = self.key.back(query)
        constant = self.key.constant(query) + self.signal.constant(query)
        guided = torch.einsum("msqf,stf->msqt", self.signal.back(query), signal)
        products = tokens.products(keyed) + guided
        # Latents also attend to themselves, without guidance.
        own = (keyed @ latents.mT).expand(-1, products.shape[1], -1, -1)
        logits = torch.cat([products, own], -1) + constant
        weights = torch.softmax(logits / query.shape[-1] ** 0.5, -1)
        # Likewise, the value map is applied to the mean of the tokens, not to each token.
        n = signal.shape[1]
        seen = tokens.means(weights[..., :n]) + weights[..., n:] @ latents
        latents = latents + self.value(seen)  # the bias counts once, because weights sum to 1
        return self.norm(latents + self.ff_out(functional.gelu(self.ff_in(self.ff_norm(latents)))))


class GazeResampler(Modulator):
    """Maps frame features and gaze to the update of each injected layer's visual tokens.

    The updates have the width ``width``. Without an active fixation the keys have no guidance, and
    the result depends on the frame features alone, as in the released code; it is not 0. Raises
    :class:`RecipeError` if an encoder's features are to be added but have another width.
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
        """Return a mixture of latents for each injected layer.

        Computes in fp32, whatever the dtype of the inputs. With ``shared``, all entries are the
        same object.
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
            # Latents are equal in all steps until the first block, so one step suffices here.
            latents = self.latents[:, None]
            for block in self.blocks:
                latents = block(latents, tokens, guide)
            # Each token's attention over the latents (axis 2).
            attention = torch.softmax(tokens.products(latents) / self.params.width**0.5, 2)
        mixtures = [
            Mixture(weights.mT, vectors)
            for weights, vectors in zip(attention, latents, strict=True)
        ]
        return mixtures * self.n_layers if self.shared_output else mixtures

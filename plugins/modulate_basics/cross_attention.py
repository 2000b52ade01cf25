"""The modulator ``gated_cross_attention``: hidden states look things up in frame and signal
features. [Flamingo, arXiv 2204.14198, its tanh gate]
"""

import torch
from jaxtyping import Bool, Float, Int64
from pydantic import Field, model_validator
from torch import Tensor, nn

from modulate import Memory, Modulator, Params, SignalFeatures, Writer


class GatedCrossAttentionParams(Params):
    """Parameters of ``gated_cross_attention``."""

    width: int = Field(
        64, gt=0, le=2**16, description="width of the memory and of the attention, channels [ours]"
    )
    heads: int = Field(4, gt=0, description="attention heads; must divide the width [ours]")

    @model_validator(mode="after")
    def _divides(self) -> "GatedCrossAttentionParams":
        if self.width % self.heads:
            raise ValueError(
                f"heads must divide width; got {self.heads} heads for a width of {self.width}"
            )
        return self


class GatedAttention(Writer):
    """tanh(g) · W_o Attention(LayerNorm(h), memory), g = 0 at first.

    A position attends to the latents of its own span only.
    """

    def __init__(self, width: int, heads: int, d_model: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(d_model)
        self.query = nn.Linear(d_model, width, bias=False)
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width, bias=False)
        self.out = nn.Linear(width, d_model, bias=False)
        self.gate = nn.Parameter(torch.zeros(()))

    def forward(
        self,
        latents: Float[Tensor, "token d_latent"],
        hidden: Float[Tensor, "token d_model"],
        memory: Memory,
    ) -> Float[Tensor, "token d_model"]:
        """Attend from the states to the memory."""
        spans, which = torch.unique(memory.span, dim=0, return_inverse=True)
        query, at = _pack(self.query(self.norm(hidden.float())), which, len(spans))
        source, there = _gather(memory.latents, spans)
        q = self._split(query)
        k = self._split(self.key(source))
        v = self._split(self.value(source))
        read = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=there[:, None, None])
        return torch.tanh(self.gate) * self.out(read.transpose(1, 2).flatten(2)[which, at])

    def _split(
        self, x: Float[Tensor, "group position width"]
    ) -> Float[Tensor, "group head position d"]:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


def _pack(
    x: Float[Tensor, "token d"], which: Int64[Tensor, " token"], groups: int
) -> tuple[Float[Tensor, "group position d"], Int64[Tensor, " token"]]:
    """Sort rows into their groups, padded with 0; also return each row's place in its group."""
    order = torch.argsort(which, stable=True)
    counts = torch.bincount(which, minlength=groups)
    at = torch.empty_like(which)
    at[order] = (
        torch.arange(len(which), device=which.device) - (counts.cumsum(0) - counts)[which[order]]
    )
    return x.new_zeros(groups, int(counts.max()), x.shape[-1]).index_put((which, at), x), at


def _gather(
    latents: Float[Tensor, "latent d"], spans: Int64[Tensor, "group 2"]
) -> tuple[Float[Tensor, "group position d"], Bool[Tensor, "group position"]]:
    """Return each span's latents, padded, and where they are."""
    length = spans[:, 1] - spans[:, 0]
    place = torch.arange(int(length.max()), device=spans.device)
    there = place < length[:, None]
    return latents[torch.where(there, spans[:, :1] + place, 0)], there


class GatedCrossAttention(Modulator):
    """Each token's hidden state asks the frame and signal features of its step (of its whole row,
    for text) and adds what it reads, gated.

    Frame features count without a signal too, so that a blank signal does not give 0, as with the
    resampler.
    """

    Params = GatedCrossAttentionParams

    def __init__(
        self, params: GatedCrossAttentionParams, *, d_features: int, d_signal: int, n_layers: int
    ) -> None:
        super().__init__()
        self.params = params
        self.n_layers = n_layers
        self.d_latent = params.width
        self.features = nn.Linear(d_features, params.width)
        self.signal = nn.Linear(d_signal, params.width, bias=False)

    def forward(
        self, features: Float[Tensor, "step token d_features"], signal: SignalFeatures
    ) -> list[Float[Tensor, "step token d_latent"]]:
        """Return the memory, one for all layers."""
        return [
            self.features(features.float()) + self.signal(signal.values.float())
        ] * self.n_layers

    def writer(self, layer: int, d_model: int) -> Writer:
        """Return one layer's attention."""
        return GatedAttention(self.params.width, self.params.heads, d_model)

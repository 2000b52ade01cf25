"""The modulator ``gated_cross_attention``: hidden states attend to frame and signal features.

The tanh gate is Flamingo's [arXiv 2204.14198].
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
    """Writes tanh(g) · W_o Attention(LayerNorm(h), memory); g starts at 0.

    A position attends only to the latents of its own span.
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
        """Return the residual: what each hidden state reads from the memory."""
        spans, group = torch.unique(memory.span, dim=0, return_inverse=True)
        query, position = _pack(self.query(self.norm(hidden.float())), group, len(spans))
        source, exists = _gather(memory.latents, spans)
        q = self._split(query)
        k = self._split(self.key(source))
        v = self._split(self.value(source))
        read = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=exists[:, None, None])
        return torch.tanh(self.gate) * self.out(read.transpose(1, 2).flatten(2)[group, position])

    def _split(
        self, x: Float[Tensor, "group position width"]
    ) -> Float[Tensor, "group head position d"]:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


def _pack(
    x: Float[Tensor, "token d"], group: Int64[Tensor, " token"], groups: int
) -> tuple[Float[Tensor, "group position d"], Int64[Tensor, " token"]]:
    """Return rows sorted into groups, padded with 0, and each row's position in its group."""
    order = torch.argsort(group, stable=True)
    counts = torch.bincount(group, minlength=groups)
    position = torch.empty_like(group)
    position[order] = (
        torch.arange(len(group), device=group.device) - (counts.cumsum(0) - counts)[group[order]]
    )
    empty = x.new_zeros(groups, int(counts.max()), x.shape[-1])
    return empty.index_put((group, position), x), position


def _gather(
    latents: Float[Tensor, "latent d"], spans: Int64[Tensor, "group 2"]
) -> tuple[Float[Tensor, "group position d"], Bool[Tensor, "group position"]]:
    """Return the latents of each span, padded, and a mask of the existing ones."""
    length = spans[:, 1] - spans[:, 0]
    place = torch.arange(int(length.max()), device=spans.device)
    exists = place < length[:, None]
    return latents[torch.where(exists, spans[:, :1] + place, 0)], exists


class GatedCrossAttention(Modulator):
    """Lets hidden states attend to the frame and signal features of their step.

    Text tokens attend to the features of their whole row. Frame features count without a signal,
    too, so a blank signal does not give 0, as with the resampler.
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
        """Return the memory, which all layers share."""
        return [
            self.features(features.float()) + self.signal(signal.values.float())
        ] * self.n_layers

    def writer(self, layer: int, d_model: int) -> Writer:
        """Return the attention of one layer."""
        return GatedAttention(self.params.width, self.params.heads, d_model)

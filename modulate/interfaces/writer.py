"""Writers: from latents to the residuals that an injected layer adds to its tokens.

The default is a zero-initialized linear map that does not read the hidden states.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn


@dataclass(frozen=True)
class Memory:
    """All latents of a conditioning, and the range of them that belongs to each written position.

    Attributes:
        latents: (latent, d_latent).
        span: (token, 2), index of a position's first latent and one past its last. A visual token
            has the latents of its time step; any other token has those of all clips in its row.
    """

    latents: Float[Tensor, "latent d_latent"]
    span: Int64[Tensor, "token 2"]


@dataclass(frozen=True)
class Mixture:
    """Latents of a clip's tokens, each a weighted sum of a few vectors of its step.

    A linear map of the latents is a map of the vectors, which are fewer.
    """

    weights: Float[Tensor, "step token latent"]
    vectors: Float[Tensor, "step latent d_latent"]

    @property
    def device(self) -> torch.device:
        """Device of the latents."""
        return self.vectors.device

    def dense(self) -> Float[Tensor, "step token d_latent"]:
        """Return the latent of each token."""
        return self.weights @ self.vectors

    def split(self, steps: Sequence[int]) -> list["Mixture"]:
        """Return the latents of each clip; ``steps``: number of steps of each."""
        sizes = list(steps)
        return [
            Mixture(weights, vectors)
            for weights, vectors in zip(
                self.weights.split(sizes), self.vectors.split(sizes), strict=True
            )
        ]


class Writer(nn.Module, ABC):
    """Computes the residuals of one injected layer, in fp32 with autocast off.

    A new writer must return exactly 0 for every input, so that attaching an untrained modulation
    does not change the host.
    """

    @abstractmethod
    def forward(
        self,
        latents: Float[Tensor, "token d_latent"],
        hidden: Float[Tensor, "token d_model"],
        memory: Memory,
    ) -> Float[Tensor, "token d_model"]:
        """Return the residual of each written position.

        Args:
            latents: of each position, the latent of its visual token. A position that is not a
                visual token has the mean over its span.
            hidden: the hidden states before the residual is added, in the host's dtype.
            memory: all latents, for writers that read more than their own token's.
        """


class Projection(Writer):
    """The linear map W z, with W initialized to 0."""

    def __init__(self, d_latent: int, d_model: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(d_model, d_latent))

    def forward(
        self,
        latents: Float[Tensor, "token d_latent"],
        hidden: Float[Tensor, "token d_model"],
        memory: Memory,
    ) -> Float[Tensor, "token d_model"]:
        """Return W z; ``hidden`` and ``memory`` are not used."""
        return nn.functional.linear(latents, self.weight)

    def write_mixture(
        self, mixture: Mixture, amplitude: Float[Tensor, ""]
    ) -> Float[Tensor, "token d_model"]:
        """Return α W z for all tokens of a clip; equal to :meth:`forward` up to rounding."""
        vectors = amplitude * nn.functional.linear(mixture.vectors.float(), self.weight)
        return Mixture(mixture.weights.float(), vectors).dense().flatten(0, 1)

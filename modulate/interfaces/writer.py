"""From latents to what a layer adds to its tokens; by default one zero-initialized linear map that
does not look at the hidden states.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn


@dataclass(frozen=True)
class Memory:
    """All latents of a conditioning, and which of them belong to each position that is written.

    ``latents``: (latent, d_latent). ``span``: (token, 2), the first of a position's own latents and
    one past the last: those of its time step for a visual token, those of all clips of its row for
    any other.
    """

    latents: Float[Tensor, "latent d_latent"]
    span: Int64[Tensor, "token 2"]


@dataclass(frozen=True)
class Mixture:
    """Latents of a clip's tokens as sums of a few vectors of their step.

    A linear map of them is a map of the vectors, which are fewer.
    """

    weights: Float[Tensor, "step token latent"]
    vectors: Float[Tensor, "step latent d_latent"]

    @property
    def device(self) -> torch.device:
        """Where they are."""
        return self.vectors.device

    def dense(self) -> Float[Tensor, "step token d_latent"]:
        """Return each token's own."""
        return self.weights @ self.vectors

    def split(self, steps: Sequence[int]) -> list["Mixture"]:
        """Return those of clips of so many steps."""
        sizes = list(steps)
        return [
            Mixture(w, v)
            for w, v in zip(self.weights.split(sizes), self.vectors.split(sizes), strict=True)
        ]


class Writer(nn.Module, ABC):
    """Makes the residual of one injected layer. Compute is fp32 with autocast off.

    Must give exactly 0 for every input when fresh.
    """

    @abstractmethod
    def forward(
        self,
        latents: Float[Tensor, "token d_latent"],
        hidden: Float[Tensor, "token d_model"],
        memory: Memory,
    ) -> Float[Tensor, "token d_model"]:
        """Return what is added to each position.

        Args:
            latents: of each position: those of its own visual token, or the mean over its span where it is none.
            hidden: the states that are about to be modified, in the host's dtype.
            memory: for writers that look further than their own token.
        """


class Projection(Writer):
    """W z with W = 0 at first."""

    def __init__(self, d_latent: int, d_model: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(d_model, d_latent))

    def forward(
        self,
        latents: Float[Tensor, "token d_latent"],
        hidden: Float[Tensor, "token d_model"],
        memory: Memory,
    ) -> Float[Tensor, "token d_model"]:
        """Map the latents; ``hidden`` and ``memory`` are not used."""
        return nn.functional.linear(latents, self.weight)

    def mixed(
        self, mixture: Mixture, amplitude: Float[Tensor, ""]
    ) -> Float[Tensor, "token d_model"]:
        """Return what is added to all tokens of a clip, α W z: the same up to rounding."""
        vectors = amplitude * nn.functional.linear(mixture.vectors.float(), self.weight)
        return Mixture(mixture.weights.float(), vectors).dense().flatten(0, 1)

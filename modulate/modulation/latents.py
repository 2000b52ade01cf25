"""Latents: what a modulator makes of one conditioning, at its own width, before the writers."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from modulate.interfaces.visual_grid import VisualGrid
from modulate.interfaces.writer import Memory, Mixture


@dataclass(frozen=True)
class Latents:
    """Residuals at the modulator's width, once per conditioning.

    ``parts[k]``: of the k-th injected layer, clip by clip: (token of the clip, d_latent), or
    mixtures, where every writer takes these. ``steps[i]`` of clip i, of which a signal reached
    ``active[i]``. ``span``: (visual token of all clips, 2), the first and one past the last latent
    of each one's step.
    """

    parts: list[list[Tensor | Mixture]]
    steps: tuple[int, ...]
    active: tuple[int, ...]
    span: Tensor

    @property
    def layers(self) -> list[Tensor]:
        """Return for each injected layer (visual token of all clips, d_latent)."""
        return [self.layer(k) for k in range(len(self.parts))]

    def layer(self, k: int) -> Tensor:
        """Return the ``k``-th of ``layers``."""
        return torch.cat(
            [
                part if isinstance(part, Tensor) else part.dense().flatten(0, 1)
                for part in self.parts[k]
            ]
        )

    @property
    def device(self) -> torch.device:
        """Where they are."""
        return self.parts[0][0].device

    def mixtures(self, k: int) -> list[Mixture]:
        """Return the ``k``-th layer's mixtures; none where it has each token's own latents."""
        return [part for part in self.parts[k] if isinstance(part, Mixture)]

    def with_means(self, spans: Sequence[tuple[int, int]]) -> "Latents":
        """Return these latents and behind them, for each of ``spans``, the mean over it, for
        positions that are no visual tokens.
        """
        parts: list[list[Tensor | Mixture]] = [
            [z, *(z[a:b].mean(0, keepdim=True) for a, b in spans)] for z in self.layers
        ]
        return replace(self, parts=parts, span=torch.cat([self.span, torch.tensor(spans)]))

    def at(self, k: int, token: Tensor, span: Tensor) -> tuple[Tensor, Memory]:
        """Return the ``k``-th layer's latents of these rows, and the memory that goes with them.

        ``token``, ``span``: where the latents are.
        """
        latents = self.layer(k)
        return latents[token], Memory(latents, span)


def step_spans(grids: Sequence[VisualGrid]) -> Tensor:
    """Return, for every visual token of clips laid end to end, where the tokens of its step begin
    and end: (token, 2).
    """
    sizes = torch.tensor([grid.tokens_per_step for grid in grids for _ in range(grid.steps)])
    ends = sizes.cumsum(0)
    return torch.stack([ends - sizes, ends], 1).repeat_interleave(sizes, 0)

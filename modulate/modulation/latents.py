"""Latents: what a modulator computes once for a conditioning, before the layers' writers."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from modulate.interfaces.visual_grid import VisualGrid
from modulate.interfaces.writer import Memory, Mixture


@dataclass(frozen=True)
class Latents:
    """Residuals at the modulator's own width, computed once per conditioning.

    ``parts[k]``: those of the k-th injected layer, clip by clip: (token of the clip, d_latent), or
    mixtures if every writer accepts them. ``steps[i]``: time steps of clip i, of which a signal
    reached ``active[i]``. ``span``: (visual token of all clips, 2), the first and one past the last
    latent of each token's time step.
    """

    parts: list[list[Tensor | Mixture]]
    steps: tuple[int, ...]
    active: tuple[int, ...]
    span: Tensor

    @property
    def layers(self) -> list[Tensor]:
        """Return (visual token of all clips, d_latent) for each injected layer."""
        return [self.layer(k) for k in range(len(self.parts))]

    def layer(self, k: int) -> Tensor:
        """Return (visual token of all clips, d_latent) for the ``k``-th injected layer."""
        tensors = [
            part.dense().flatten(0, 1) if isinstance(part, Mixture) else part
            for part in self.parts[k]
        ]
        return torch.cat(tensors)

    @property
    def device(self) -> torch.device:
        """Return the device of the latents."""
        return self.parts[0][0].device

    def mixtures(self, k: int) -> list[Mixture]:
        """Return the ``k``-th layer's mixtures; [] where each token has latents of its own."""
        return [part for part in self.parts[k] if isinstance(part, Mixture)]

    def with_means(self, spans: Sequence[tuple[int, int]]) -> "Latents":
        """Return these latents, followed by their mean over each of ``spans``.

        Positions that are not visual tokens read the means.
        """
        # Means need every token's latents, so mixtures are written out from here on.
        parts: list[list[Tensor | Mixture]] = []
        for layer in self.layers:
            means = [layer[begin:end].mean(0, keepdim=True) for begin, end in spans]
            parts.append([layer, *means])
        return replace(self, parts=parts, span=torch.cat([self.span, torch.tensor(spans)]))

    def at(self, k: int, token: Tensor, span: Tensor) -> tuple[Tensor, Memory]:
        """Return the ``k``-th layer's latents of some tokens, and the memory for their writer.

        ``token``: (written position,) long; ``span``: (written position, 2), the rows of
        ``self.span`` for these tokens. Both are on the device of the latents.
        """
        latents = self.layer(k)
        return latents[token], Memory(latents, span)


def step_spans(grids: Sequence[VisualGrid]) -> Tensor:
    """Return (token, 2): begin and end of each token's time step, for clips laid end to end."""
    sizes = torch.tensor([grid.tokens_per_step for grid in grids for _ in range(grid.steps)])
    ends = sizes.cumsum(0)
    return torch.stack([ends - sizes, ends], 1).repeat_interleave(sizes, 0)

"""Where the injected layers of one forward add residuals, and the addition itself."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from modulate.errors import ConditioningError
from modulate.interfaces.writer import Memory, Mixture
from modulate.modulation.latents import Latents

REENTRANT_ERROR = (
    "The host's layers run without gradients although the modulation needs them: reentrant"
    " activation checkpointing of whole layers, hooks included, would go through the modulation's"
    " graph once for every layer. Checkpoint with `use_reentrant=False`."
)

Residual = Callable[[int, Tensor | list[Mixture], Memory | None, Tensor], Tensor]
"""See :meth:`modulate.modulation.module.Modulation.residual`."""


@dataclass(eq=False)
class WritePlan:
    """The positions that one forward modulates, and the latents that they read.

    ``index``: (written position,) long, into the flattened (batch · position) hidden states.
    ``token``: (written position,) long, the latent that each one reads. ``shape``: (batch,
    position) of the forward. ``needs_grad``: whether gradients must reach the modulation.
    ``fired``: the injected layers, by their number, that have added their residuals. ``norms``: of
    each of these (‖Δh‖, ‖h‖) over the written positions.
    """

    latents: Latents
    index: Tensor
    token: Tensor
    shape: tuple[int, int]
    needs_grad: bool = False
    fired: set[int] = field(default_factory=set)
    norms: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        # Where every token of all clips is written once, in order, whole clips can go through the
        # writers as mixtures, which is cheaper than token by token.
        all_tokens = torch.arange(len(self.latents.span), device=self.token.device)
        has_mixtures = bool(self.latents.mixtures(0))
        self._writes_whole_clips = has_mixtures and torch.equal(self.token, all_tokens)
        if not self._writes_whole_clips:
            # Moved to the latents' device once: all layers read the same rows.
            token = self.token.to(self.latents.device)
            self._source = token, self.latents.span.to(self.latents.device)[token]

    def read(self, k: int) -> tuple[Tensor | list[Mixture], Memory | None]:
        """Return what the writer of the ``k``-th injected layer reads: latents and their memory.

        The latents are (written position, d_latent), or the mixtures of whole clips, without a
        memory.
        """
        if self._writes_whole_clips:
            return self.latents.mixtures(k), None
        return self.latents.at(k, *self._source)

    def add_residual(self, k: int, layer: int, hidden: Tensor, residual: Residual) -> Tensor:
        """Return ``hidden``, (batch, position, d_model), plus the ``k``-th layer's residuals.

        ``layer``: the index of the decoder layer, for errors. Raises :class:`ConditioningError`
        for states of another shape, and where gradients would be lost.
        """
        if (hidden.shape[0], hidden.shape[1]) != self.shape:
            raise ConditioningError(
                f"Decoder layer {layer} returned states of shape {tuple(hidden.shape)} for inputs"
                f" of {self.shape}."
            )
        if self.needs_grad and not torch.is_grad_enabled():
            raise ConditioningError(REENTRANT_ERROR)
        states = hidden.reshape(-1, hidden.shape[-1])
        index = self.index.to(hidden.device)
        written = states[index]
        delta = residual(k, *self.read(k), written).to(hidden.device, hidden.dtype)
        self.norms[k] = (delta.detach().float().norm(), written.detach().float().norm())
        self.fired.add(k)
        # Out of place: the host may still need its own states.
        return states.index_add(0, index, delta).view_as(hidden)

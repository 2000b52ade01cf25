"""Which positions of a forward are written when they are not the visual tokens: text, the last
token, or a mask of the user's.
"""

from typing import Any

import torch
from torch import Tensor

from modulate.config.injection import Tokens
from modulate.errors import ConditioningError
from modulate.modulation.token_positions import ForwardTokens, begins_with


class TokenSelection:
    """The positions of one conditioning that are written, forward by forward.

    Position decides, never call order.

    ``prompt``: (row, position) bool, where the prompt's tokens are, for ``last``; without it a
    forward that fills no cache is taken to begin with the whole prompt. ``mask``: (row, position)
    bool, for ``mask``; what lies beyond it is not chosen. Raises :class:`ConditioningError` where
    one is missing or would have no effect.
    """

    def __init__(self, tokens: Tokens, prompt: Tensor | None, mask: Tensor | None) -> None:
        self.kind = tokens.kind
        for name, given, kind in (("prompt", prompt, "last"), ("mask", mask, "mask")):
            if given is not None and self.kind != kind:
                raise ConditioningError(
                    f"`{name}` has no effect here: this modulation writes on {self.kind} tokens."
                )
        if self.kind == "mask" and mask is None:
            raise ConditioningError(
                "This modulation writes on the tokens of a mask: give `condition(rows, mask=…)`,"
                " (row, position) bool."
            )
        self.given = prompt if prompt is not None else mask
        self.first: Tensor | None = None  # ids of the prompt, where no mask of it was given

    def choose(self, here: ForwardTokens) -> Tensor:
        """Return (row, position) bool for a forward that gets ``here``."""
        if self.kind == "text":
            return here.attended & ~here.mask
        batch, length = here.mask.shape
        position = torch.arange(here.past, here.past + length, device=here.mask.device)
        if self.kind == "mask":
            return self._columns(batch, position)
        if self.given is not None:
            end = self.given.shape[1]
            last = (
                _last(self.given).to(position.device).repeat_interleave(batch // len(self.given), 0)
            )
        else:
            if here.cache is not None:
                raise ConditioningError(
                    "Where the prompt ends cannot be known of a forward that fills a cache (it may"
                    " be a chunk); give `condition(rows, prompt=attention_mask)`."
                )
            if not begins_with(here.ids, self.first):
                self.first = here.ids
                self.attended = here.attended
            end = self.attended.shape[1]
            last = _last(self.attended).repeat_interleave(batch // len(self.attended), 0)
        return ((position == last[:, None]) | (position >= end)) & here.attended

    def _columns(self, batch: int, position: Tensor) -> Tensor:
        mask: Any = self.given
        mask = mask.to(position.device).repeat_interleave(batch // len(mask), 0)
        inside = position < mask.shape[1]
        return mask[:, position.clamp(max=mask.shape[1] - 1)] & inside


def _last(attended: Tensor) -> Tensor:
    """Return each row's last position that is set; −1 for rows without."""
    position = torch.arange(1, attended.shape[1] + 1, device=attended.device)
    return (attended.bool() * position).amax(1) - 1

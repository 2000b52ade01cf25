"""Which positions of a forward get residuals when they are not the visual tokens.

These are text, the last token, or a mask of the caller.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from modulate.config.injection import Tokens
from modulate.errors import ConditioningError
from modulate.modulation.token_positions import ForwardTokens, begins_with


class TokenSelection:
    """Selects the positions that one conditioning modulates, forward by forward.

    Absolute position decides, never the order of calls.

    ``prompt``: (row, position) bool, the prompt's tokens, for kind ``last``. Without it, a forward
    without a cache is assumed to begin with the whole prompt. ``mask``: (row, position) bool, for
    kind ``mask``; positions beyond it are not selected. Raises :class:`ConditioningError` where one
    is missing or would have no effect.
    """

    def __init__(self, tokens: Tokens, prompt: Tensor | None, mask: Tensor | None) -> None:
        self.kind = tokens.kind
        for name, hint, kind in (("prompt", prompt, "last"), ("mask", mask, "mask")):
            if hint is not None and self.kind != kind:
                raise ConditioningError(
                    f"`{name}` has no effect here: this modulation writes on {self.kind} tokens."
                )
        if self.kind == "mask" and mask is None:
            raise ConditioningError(
                "This modulation writes on the tokens of a mask: give `condition(rows, mask=…)`,"
                " (row, position) bool."
            )
        self._prompt = prompt
        self._mask = mask
        self._end = 0  # absolute position by which all forwards so far ended
        # Without a hint: the prompt of the last forward that began a sequence.
        self._prompt_ids: Tensor | None = None
        self._prompt_attended: Tensor | None = None

    def choose(self, tokens: ForwardTokens) -> Tensor:
        """Return (row, position) bool: the selected positions of a forward."""
        if self.kind == "text":
            return tokens.attended & ~tokens.visual
        batch, length = tokens.visual.shape
        past = tokens.past_length
        self._end = max(self._end, past + length)
        position = torch.arange(past, past + length, device=tokens.visual.device)
        if self._mask is not None:
            return _read_mask(self._mask, batch, position)
        prompt = self._prompt if self._prompt is not None else self._assumed_prompt(tokens)
        last = _last_position(prompt).to(position.device)
        last = last.repeat_interleave(batch // len(prompt), 0)
        # Every generated token counts too: it was the last one when it was computed.
        generated = position >= prompt.shape[1]
        return ((position == last[:, None]) | generated) & tokens.attended

    def finish(self, rows: Sequence[int]) -> None:
        """Raise :class:`ConditioningError` where a hint names only tokens that never came.

        ``rows``: those that have something to write.
        """
        if self._prompt is not None:
            last = _last_position(self._prompt).tolist()
            for row in rows:
                if last[row] < 0:
                    raise ConditioningError(
                        f"Row {row}: `prompt` names no token, so there is no last one."
                    )
                if last[row] >= self._end:
                    raise self._never_came("prompt", row, last[row])
        if self._mask is not None:
            first = [_first_position(self._mask[row]) for row in rows]
            named = [place for place in first if place is not None]
            if named and min(named) >= self._end:
                place = min(named)
                raise self._never_came("mask", rows[first.index(place)], place)

    def _never_came(self, hint: str, row: int, position: int) -> ConditioningError:
        return ConditioningError(
            f"Row {row}: `{hint}` names position {position}, but the forwards ended at {self._end}:"
            " nothing was written there. It has one entry for each token of the inputs, padding"
            " included."
        )

    def _assumed_prompt(self, tokens: ForwardTokens) -> Tensor:
        """Return (row, position) bool: the prompt, which a forward without a cache begins with."""
        if tokens.cache is not None:
            raise ConditioningError(
                "A forward that fills a cache may be a chunk of the prompt, so where the prompt"
                " ends is not known; give `condition(rows, prompt=attention_mask)`."
            )
        # Generation without a cache repeats the prompt with more tokens behind it each time.
        if self._prompt_attended is None or not begins_with(tokens.ids, self._prompt_ids):
            self._prompt_ids = tokens.ids
            self._prompt_attended = tokens.attended
        return self._prompt_attended


def _read_mask(mask: Tensor, batch: int, position: Tensor) -> Tensor:
    """Return (row, position) bool: ``mask`` at these absolute positions, False beyond its end."""
    mask = mask.to(position.device).repeat_interleave(batch // len(mask), 0)
    inside = position < mask.shape[1]
    return mask[:, position.clamp(max=mask.shape[1] - 1)] & inside


def _first_position(mask: Tensor) -> int | None:
    """Return the first position that is set in a (position,) mask, or None."""
    positions = mask.nonzero()
    return int(positions[0]) if len(positions) else None


def _last_position(attended: Tensor) -> Tensor:
    """Return (row,) long: each row's last position that is set; −1 for rows without one."""
    position = torch.arange(1, attended.shape[1] + 1, device=attended.device)
    return (attended.bool() * position).amax(1) - 1

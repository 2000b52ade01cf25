"""Which positions of this forward are which visual tokens of the conditioning.

Everything is derived from what a forward really gets: token ids, token types where they come, and the absolute position through the
cache. Position, never call order, decides: a :class:`Ledger` remembers for every row which absolute positions held visual tokens.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from modulate.errors import ConditioningError, HostError


def visual_mask(input_ids: Tensor, token_types: Tensor | None, visual_ids: Sequence[int]) -> Tensor:
    """Return (row, position) bool: placeholders of vision among ``input_ids``.

    ``token_types`` (0 text, 1 image, 2 video), where given for the same positions, rules out placeholder ids that were generated as text.
    """
    mask = torch.isin(input_ids, torch.tensor(list(visual_ids), device=input_ids.device))
    if token_types is not None and token_types.shape == input_ids.shape:
        mask = mask & (token_types != 0)
    return mask


def cache_length(cache: Any) -> int:
    """Return how many positions ``cache`` (a transformers ``Cache`` or None) already holds."""
    return 0 if cache is None else int(cache.get_seq_length())


class Ledger:
    """Follows the rows of one conditioning through one or many forwards.

    ``expected[r]`` visual tokens belong to conditioned row ``r`` (None: a row without conditioning, whose visual tokens are left alone); input row ``i`` of a batch uses conditioned row ``i // (batch / rows)``.
    """

    def __init__(self, expected: Sequence[int | None]) -> None:
        self.expected = list(expected)
        self.seen: Tensor | None = None  # (batch, absolute position) bool
        self.prompt_end = 0  # absolute position after the last prompt chunk that still held visual tokens
        self.forwards = 0

    def rows_of(self, batch: int) -> list[int]:
        """Return the conditioned row of every input row. Raises :class:`ConditioningError` unless the batch is a multiple."""
        rows = len(self.expected)
        if rows == 0 or batch % rows:
            raise ConditioningError(
                f"The conditioning has {rows} rows, the forward a batch of {batch}: the batch must be a multiple of the rows (beams, num_return_sequences)."
            )
        return [i // (batch // rows) for i in range(batch)]

    def place(self, mask: Tensor, past: int, typed: bool) -> Tensor:
        """Record one forward and return the ordinal of every visual token in its row: (row, position) long, −1 where not visual.

        Args:
            mask: (batch, position) placeholders of this forward.
            past: absolute position of its first column.
            typed: token types vouched for the mask, so that no generated placeholder is in it.
        """
        batch, length = mask.shape
        counts = [self.expected[r] for r in self.rows_of(batch)]
        expected = torch.tensor([c or 0 for c in counts], device=mask.device)
        mask = mask & torch.tensor([c is not None for c in counts], device=mask.device)[:, None]
        before = self._history(batch, past, mask.device)
        start = before.sum(1)
        ordinal = start[:, None] + mask.long().cumsum(1) - 1
        surplus = mask & (ordinal >= expected[:, None])
        # Without token types a placeholder beyond the prompt is one that the host generated: text, and none of ours. Prompt ends are known
        # once every row has all its tokens; a longer re-run from position 0 (no cache) then starts its generated part there.
        generated = torch.zeros_like(mask)
        if not typed and self.prompt_end:
            generated = torch.arange(past, past + length, device=mask.device)[None] >= self.prompt_end
        wrong = (surplus & ~generated).any(1)
        if wrong.any():
            row = int(wrong.nonzero()[0])
            total = int((start + mask.sum(1))[row])
            raise ConditioningError(
                f"Row {row}: the inputs hold {total} visual tokens, the conditioning {int(expected[row])}. Give one ClipInput with its grid for every clip of the row."
            )
        visual = mask & ~generated & ~surplus
        self.seen = torch.cat([before, visual], 1)
        self.forwards += 1
        if bool((self.seen.sum(1) == expected).all()):
            self.prompt_end = self.prompt_end or past + length
        elif length == 1 and past > 0 and not bool(visual.any()):
            self.finish()
        return torch.where(visual, ordinal, -1)

    def _history(self, batch: int, past: int, device: torch.device) -> Tensor:
        if past == 0:
            return torch.zeros(batch, 0, dtype=torch.bool, device=device)
        known = 0 if self.seen is None else self.seen.shape[1]
        if self.seen is None or past > known:
            raise ConditioningError(
                f"The cache holds {past} positions, of which this conditioning saw {known}: a cache filled elsewhere cannot be conditioned. Start from an empty cache."
            )
        if self.seen.shape[0] != batch:
            raise ConditioningError(f"The batch changed from {self.seen.shape[0]} to {batch} rows in the middle of a cache.")
        return self.seen[:, :past]

    def finish(self) -> None:
        """Raise :class:`ConditioningError` when a row got fewer visual tokens than its conditioning holds."""
        if self.seen is None:
            return
        rows = self.rows_of(self.seen.shape[0])
        for i, got in enumerate(self.seen.sum(1).tolist()):
            if got != (self.expected[rows[i]] or 0):
                raise ConditioningError(
                    f"Row {i}: the inputs hold {got} visual tokens, the conditioning {self.expected[rows[i]]}. Give the grid that the host really used."
                )


def forward_tokens(kwargs: dict[str, Any]) -> Tensor:
    """Return the token ids of a forward. Raises :class:`HostError` when only embeddings came."""
    ids = kwargs.get("input_ids")
    if ids is None:
        raise HostError("This forward got inputs_embeds without input_ids, so visual tokens cannot be located; pass input_ids as well.")
    return ids

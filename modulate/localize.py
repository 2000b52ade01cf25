"""Which positions of this forward are which visual tokens of the conditioning.

Everything is derived from what a forward really gets: token ids, token types where they come, and the absolute position through the
cache. Position, never call order, decides: a :class:`Ledger` remembers for every row which absolute positions held visual tokens.
"""

from collections.abc import MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.nn.functional import pad

from modulate.caches import cache_among, length_of, refuse_unseen_past
from modulate.errors import ConditioningError, HostError

TYPES = ("mm_token_type_ids", "token_type_ids")
"""Names under which hosts take token types: 0 is text, anything else vision."""


@dataclass(frozen=True)
class Columns:
    """What one forward gets, as far as it says where visual tokens are.

    ``mask``: (row, position) bool, placeholders of vision; ``some``: whether any token looks like one; ``past``: absolute position of its first
    column; ``typed``: token types, or positions given by hand, vouch that no generated placeholder is in the mask; ``ids``: the token ids, where
    there are any; ``attention``: the attention mask, if one came.
    """

    mask: Tensor
    some: bool
    past: int
    typed: bool
    ids: Tensor | None
    attention: Any = None
    cache: Any = None

    @property
    def attended(self) -> Tensor:
        """Return (row, position) bool, where these columns are no padding; without an attention mask of two axes, everywhere."""
        rows, length = self.mask.shape
        if isinstance(self.attention, Tensor) and self.attention.shape == (rows, self.past + length):
            return self.attention[:, self.past :].to(self.mask.device).bool()
        return torch.ones_like(self.mask)


def columns(given: dict[str, Any], visual_ids: Sequence[int], positions: Tensor | None) -> Columns:
    """Read the arguments of a forward.

    Args:
        given: arguments of the host's entry module by name.
        visual_ids: ids of the placeholders.
        positions: (row, absolute position) bool, the visual tokens, where the caller knows them; they are taken instead of the ids.

    Raises :class:`HostError` when only embeddings came and no positions are given.
    """
    cache: Any = cache_among(given)
    ids: Any = given.get("input_ids")
    tokens = ids if ids is not None else given.get("inputs_embeds")
    if tokens is None or (ids is None and positions is None):
        raise HostError("This forward got inputs_embeds without input_ids, so visual tokens cannot be located; pass input_ids, or condition(…, positions=mask).")
    if cache is None:
        refuse_unseen_past(given, tokens)
    past = length_of(cache)
    rows, length = tokens.shape[:2]
    attention = given.get("attention_mask")
    if positions is not None:
        here = positions.to(tokens.device)[:, past : past + length]
        mask = pad(here, (0, length - here.shape[1]))  # what lies beyond was generated
        if rows % max(len(mask), 1) == 0:
            mask = mask.repeat_interleave(rows // max(len(mask), 1), 0)
        return Columns(mask, bool(mask.any()), past, True, ids, attention, cache)
    first, *others = visual_ids  # a number at a time: nothing has to be brought to the ids' device, as isin's list had
    mask = ids == first
    for visual in others:
        mask |= ids == visual
    some = bool(mask.any())
    types = _types(given, past, ids) if some else None
    return Columns(mask if types is None else mask & (types != 0), some, past, types is not None, ids, attention, cache)


def _types(given: dict[str, Any], past: int, ids: Tensor) -> Tensor | None:
    """Return the token types of exactly the positions of ``ids``; some hosts are handed those of the whole prompt so far."""
    types = next((given[name] for name in TYPES if given.get(name) is not None), None)
    if types is None or types.shape[0] != ids.shape[0]:
        return None
    if types.shape[1] == past + ids.shape[1]:
        types = types[:, past:]
    return types.to(ids.device) if types.shape == ids.shape else None


def begins_with(ids: Tensor | None, prompt: Tensor | None) -> bool:
    """Return whether every row of ``ids`` begins with its row of ``prompt`` (rows may be multiplied: beams)."""
    if ids is None or prompt is None or ids.shape[0] % prompt.shape[0] or ids.shape[1] < prompt.shape[1]:
        return False
    return torch.equal(ids[:, : prompt.shape[1]], prompt.repeat_interleave(ids.shape[0] // prompt.shape[0], 0))


class Ledger:
    """Follows the rows of one conditioning through one or many forwards.

    ``expected[r]`` visual tokens belong to conditioned row ``r`` (None: a row without conditioning, whose visual tokens are left alone); input
    row ``i`` of a batch uses conditioned row ``i // (batch / rows)``. ``histories`` says of every cache filled under one attachment which of
    its positions were visual, (batch, position) bool: a later conditioning may continue such a cache, and counts from where it begins.
    """

    def __init__(self, expected: Sequence[int | None], histories: MutableMapping[Any, Tensor] | None = None) -> None:
        self.expected = list(expected)
        self.histories = WeakKeyDictionary() if histories is None else histories
        self.begins: WeakKeyDictionary[Any, int] = WeakKeyDictionary()  # cache → absolute position from which its tokens are ours
        self.begin = 0
        self.seen: Tensor | None = None  # (batch, absolute position) bool, of the last forward and what its cache holds; none lies beyond
        self.held: list[int] = []  # per input row: its visual tokens in ``seen``, from ``begin`` on
        self.prompt: Tensor | None = None  # ids of the prompt, once every row has all its tokens
        self.prompt_end = 0  # absolute position after it
        self.forwards = 0

    def rows_of(self, batch: int) -> list[int]:
        """Return the conditioned row of every input row. Raises :class:`ConditioningError` unless the batch is a multiple."""
        rows = len(self.expected)
        if rows == 0 or batch % rows:
            raise ConditioningError(
                f"The conditioning has {rows} rows, the forward a batch of {batch}: the batch must be a multiple of the rows (beams, num_return_sequences)."
            )
        return [i // (batch // rows) for i in range(batch)]

    def place(self, here: Columns) -> Tensor | None:
        """Record one forward and return the ordinal of every visual token in its row: (row, position) long, −1 where not visual; None when none is."""
        expected = [self.expected[r] for r in self.rows_of(len(here.mask))]
        begun, known = self.begin, self._history(here)
        ordinal = None
        if here.some:
            ordinal, visual = self._count(here, known, expected)
            known = torch.cat([pad(known, (0, here.past - known.shape[1])), visual], 1)  # what came between was not conditioned
        if known is not self.seen or self.begin != begun:
            self.seen, self.held = known, known[:, self.begin :].sum(1).tolist()
        self.forwards += 1
        self.remember(here.cache)
        if self.held == [n or 0 for n in expected]:
            if not self.prompt_end or (here.past == 0 and not self._goes_on(here)):
                self.prompt, self.prompt_end = here.ids, here.past + here.mask.shape[1]
        elif here.mask.shape[1] == 1 and here.past > self.begin and (ordinal is None or not bool((ordinal >= 0).any())):
            self.finish()
        return ordinal

    def _count(self, here: Columns, known: Tensor, expected: Sequence[int | None]) -> tuple[Tensor, Tensor]:
        """Return every visual token's ordinal in its row, −1 where not visual, and where they are: (row, position) both."""
        device = here.mask.device
        most = torch.tensor([n or 0 for n in expected], device=device)
        mask = here.mask & torch.tensor([n is not None for n in expected], device=device)[:, None]
        start = known[:, self.begin :].sum(1)
        ordinal = start[:, None] + mask.long().cumsum(1) - 1
        surplus = mask & (ordinal >= most[:, None])
        self._check_surplus(here, surplus, start + mask.sum(1), most)
        visual = mask & ~surplus
        return torch.where(visual, ordinal, -1), visual

    def _check_surplus(self, here: Columns, surplus: Tensor, total: Tensor, expected: Tensor) -> None:
        """Raise when a row holds more visual tokens than its conditioning, unless they can only be placeholders that the host generated."""
        if not here.typed and self.prompt_end and self._goes_on(here):
            position = torch.arange(here.past, here.past + surplus.shape[1], device=surplus.device)
            surplus = surplus & (position < self.prompt_end)
        wrong = surplus.any(1)
        if bool(wrong.any()):
            row = int(wrong.nonzero()[0])
            raise ConditioningError(
                f"Row {row}: the inputs hold {int(total[row])} visual tokens, the conditioning {int(expected[row])}. Give one ClipInput with its grid for every clip of the row."
            )

    def _goes_on(self, here: Columns) -> bool:
        """Return whether this forward continues the prompt: by the cache, or, without one, by beginning with the same ids."""
        return here.past > 0 or begins_with(here.ids, self.prompt)

    def _history(self, here: Columns) -> Tensor:
        """Return (batch, at most past) bool: visual tokens that the cache holds; find out from where on they are of this conditioning."""
        batch, device = len(here.mask), here.mask.device
        if here.past == 0:
            self.begin = 0
            return torch.zeros(batch, 0, dtype=torch.bool, device=device)
        known = self.histories.get(here.cache)
        if known is None:
            raise ConditioningError(
                f"The cache holds {here.past} positions, of which this conditioning saw 0: a cache filled elsewhere cannot be conditioned. Start from an empty cache."
            )
        if known.shape[0] != batch:
            raise ConditioningError(f"The batch changed from {known.shape[0]} to {batch} rows in the middle of a cache.")
        self.begin = self.begins.setdefault(here.cache, here.past)
        return known.to(device) if known.shape[1] <= here.past else known[:, : here.past].to(device)

    def remember(self, cache: Any) -> None:
        """Note what ``cache`` holds after this forward, for those that continue it."""
        if cache is not None and self.seen is not None:
            self.histories[cache] = self.seen
            self.begins.setdefault(cache, self.begin)
            if self.begin == 0:
                self.begins[cache] = 0

    def finish(self) -> None:
        """Raise :class:`ConditioningError` when a row got fewer visual tokens than its conditioning holds."""
        if self.seen is None:
            return
        rows = self.rows_of(len(self.held))
        for i, got in enumerate(self.held):
            if got != (self.expected[rows[i]] or 0):
                raise ConditioningError(
                    f"Row {i}: the inputs hold {got} visual tokens, the conditioning {self.expected[rows[i]]}. Give the grid that the host really used."
                )

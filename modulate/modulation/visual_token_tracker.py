"""Which visual tokens of one conditioning came already, in every line of forwards on one cache.

Position, never call order, decides. What a cache holds is noted on the cache itself, so that a deep
copy knows it too.
"""

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor
from torch.nn.functional import pad

from modulate.errors import ConditioningError
from modulate.modulation.cache_notes import CacheHistory, CacheSamples, histories_on, note
from modulate.modulation.token_positions import ForwardTokens, begins_with, placeholders_in

_numbers = itertools.count(1)
_trackers: "WeakValueDictionary[int, VisualTokenTracker]" = WeakValueDictionary()


class VisualTokenTracker:
    """Follows the rows of one conditioning through one or many forwards.

    ``expected[r]`` visual tokens belong to conditioned row ``r`` (None: a row without conditioning,
    whose visual tokens are left alone); input row ``i`` of a batch uses conditioned row ``i //
    (batch / rows)``. ``everywhere``: other tokens than visual ones are written too, so that rows
    must be told apart, and prompts from branches without clips, in every forward.
    """

    def __init__(self, expected: Sequence[int | None], everywhere: bool = False) -> None:
        self.expected = list(expected)
        self.everywhere = everywhere
        self.number = next(_numbers)
        _trackers[self.number] = self
        self.forwards = 0
        self.complete = False  # some line of forwards had all its tokens
        self.prompt: Tensor | None = (
            None  # ids of the last prompt that had, from position ``prompt_begin`` on
        )
        self.prompt_begin = self.prompt_end = 0
        self.aside = False  # the forward that was placed last belongs to a branch without clips
        self._counter = itertools.count(1)
        self._open: dict[
            int, CacheHistory
        ] = {}  # those that have some of their tokens, and that no forward went on with
        self._last: CacheHistory | None = None
        self._textual: tuple[str, Tensor] | None = None
        self._samples = CacheSamples()
        self._pending: tuple[CacheHistory, CacheHistory, ForwardTokens] | None = (
            None  # of the forward that runs: before, after
        )

    def rows_of(self, batch: int) -> list[int]:
        """Return the conditioned row of every input row.

        Raises :class:`ConditioningError` unless the batch is a multiple.
        """
        rows = len(self.expected)
        if batch % rows:
            raise ConditioningError(
                f"The conditioning has {rows} rows, the forward a batch of {batch}: the batch must "
                "be a multiple of the rows (beams, num_return_sequences)."
            )
        return [i // (batch // rows) for i in range(batch)]

    # --- one forward

    def place(self, here: ForwardTokens) -> Tensor | None:
        """Return the ordinal of every visual token of a forward in its row.

        (row, position) long, −1 where not visual; None when none is.

        :meth:`remember` follows once the forward went through. Raises :class:`ConditioningError`
        where tokens and conditioning contradict.
        """
        self._pending = None
        before = self._continued(here) or self._begun(here)
        after, ordinal = (
            (self._left(before, here), None) if before.lost else self._advanced(before, here)
        )
        if (
            after.wide
            and after.singles > 1
            and not after.end
            and (any(after.held) or not self.complete)
        ):
            raise self._short(after)  # these are no chunks of a prompt
        self._pending = (before, after, here)
        self.aside = after.aside
        return ordinal

    def remember(self, cache: Any) -> None:
        """Note what the forward that was placed last did; ``cache``: the one that it gave out.

        Raises :class:`ConditioningError` for a forward without cache, which nothing can continue,
        that lacked some of its tokens.
        """
        if self._pending is None:
            return
        (before, after, here), self._pending = self._pending, None
        self.forwards += 1
        caches = [c for c in (here.cache, cache) if c is not None]
        self._open.pop(before.number, None)
        self._textual = here.textual or self._textual
        if after.end:
            self._complete(before, after, here)
        else:
            after = replace(after, number=next(self._counter))
            if any(after.held):
                if not caches:
                    raise self._short(after)
                self._open[after.number] = after
        self._last = after
        if caches and after.held != before.held:
            self._samples.keep(after, caches[-1])
        for held in caches:
            if histories_on(held).get(self.number) is not after:
                note(held, self.number, after, _trackers)

    def finish(self) -> None:
        """Raise :class:`ConditioningError` where visual tokens are missing.

        A line of forwards ended with some of them, or none had all.
        """
        for stream in self._open.values():
            raise self._short(stream)
        if self._last is not None and not self.complete:
            raise self._short(self._last)

    # --- which line it belongs to

    def _continued(self, here: ForwardTokens) -> CacheHistory | None:
        """Return the line of forwards that this one goes on with; None where it begins one."""
        stream = (
            (histories_on(here.cache).get(self.number) or self._samples.find(here.cache, here.past))
            if here.past
            else None
        )
        return stream and stream.cropped(here.past).fitted(
            len(here.mask), alike=len(self.expected) == 1
        )

    def _begun(self, here: ForwardTokens) -> CacheHistory:
        """Return the line that this forward begins.

        What its cache holds is from before the conditioning, and not of it.
        """
        batch, width = here.mask.shape
        again = here.past == self.prompt_begin and begins_with(here.ids, self.prompt)
        aside = self.complete and not again and self._beside(here)
        seen = here.mask.new_zeros(batch, 0)
        return CacheHistory(
            0,
            here.past,
            seen,
            [0] * batch,
            self.prompt_end if again else 0,
            wide=width > 1,
            aside=aside,
        )

    def _beside(self, here: ForwardTokens) -> bool:
        """Return whether a forward that begins a line, after a complete one, belongs to no prompt.

        It shows no placeholder, and is no first part of the prompt that was complete.
        """
        if not here.plain or (
            here.by_hand
            and self.prompt is not None
            and not bool(placeholders_in(self.prompt, here.visual_ids).any())
        ):
            return False
        return here.past != self.prompt_begin or not begins_with(self.prompt, here.ids)

    def _left(self, before: CacheHistory, here: ForwardTokens) -> CacheHistory:
        """Return ``before`` where it does not matter which rows are left in a batch that shrank."""
        if self.everywhere or not before.end or (here.some and (here.typed or here.shown)):
            why = (
                "so residuals cannot be told apart by row"
                if before.end
                else "and not all visual tokens had come"
            )
            raise ConditioningError(
                f"The batch of this cache was of {len(before.held)} rows and is of "
                f"{len(here.mask)} now; which rows are left cannot be known, {why}. "
                "Leave the batch as it is, or begin with an empty cache and a conditioning of the "
                "rows that are left."
            )
        return before

    # --- counting

    def _advanced(
        self, before: CacheHistory, here: ForwardTokens
    ) -> tuple[CacheHistory, Tensor | None]:
        """Return the line after this forward, and the ordinal of every visual token in its row."""
        expected = [self.expected[r] for r in self.rows_of(len(here.mask))]
        ordinal = None
        seen = before.seen
        held = before.held
        if here.some and not (here.by_hand and before.aside):
            ordinal, visual = self._count(here, before, expected)
            seen = torch.cat([pad(seen, (0, here.past - before.begin - seen.shape[1])), visual], 1)
            held = seen.sum(1).tolist()
        elif before.end and histories_on(here.cache).get(self.number) is before:
            return before, None  # generating
        aside = before.aside and held == before.held
        if self.everywhere and before.aside and not aside:
            raise ConditioningError(
                f"{here.past - before.begin} tokens of this cache were taken for a branch without "
                "clips, as guidance has one, since they begin no "
                "prompt of this conditioning; now visual tokens follow. Give this prompt a "
                "conditioning of its own."
            )
        whole = held == [n or 0 for n in expected]
        width = here.mask.shape[1]
        ids = (
            here.ids
            if before.ids is None and here.past == before.begin
            else _joined(before.ids, here.ids)
        )
        after = replace(
            before,
            seen=seen,
            held=held,
            aside=aside,
            end=(before.end or here.past + width) if whole else 0,
            ids=None if whole else ids,
            singles=before.singles + 1 if width == 1 and held == before.held else 0,
        )
        return after, ordinal

    def _count(
        self, here: ForwardTokens, before: CacheHistory, expected: Sequence[int | None]
    ) -> tuple[Tensor, Tensor]:
        """Return every visual token's ordinal in its row, −1 elsewhere, and where they are.

        Both are (row, position).
        """
        device = here.mask.device
        most = torch.tensor([n or 0 for n in expected], device=device)
        mask = here.mask & torch.tensor([n is not None for n in expected], device=device)[:, None]
        start = before.seen.to(device).sum(1)
        ordinal = start[:, None] + mask.long().cumsum(1) - 1
        surplus = mask & (ordinal >= most[:, None])
        self._check_surplus(here, before, surplus, start + mask.sum(1), most)
        visual = mask & ~surplus
        return torch.where(visual, ordinal, -1), visual

    def _check_surplus(
        self,
        here: ForwardTokens,
        before: CacheHistory,
        surplus: Tensor,
        total: Tensor,
        expected: Tensor,
    ) -> None:
        """Raise when a row holds more visual tokens than its conditioning.

        Placeholders that the host can only have generated do not count.
        """
        if before.end and not here.typed and not here.shown:
            position = torch.arange(here.past, here.past + surplus.shape[1], device=surplus.device)
            surplus = surplus & (position < before.end)
        wrong = surplus.any(1)
        if bool(wrong.any()):
            row = int(wrong.nonzero()[0])
            later = (
                " Those of the conditioning had come before; a clip that comes later has a "
                "conditioning of its own."
                if before.end and here.past
                else ""
            )
            raise ConditioningError(
                f"Row {row}: the inputs hold {int(total[row])} visual tokens, the conditioning "
                f"{int(expected[row])}. "
                "Give one ClipInput with its grid for every clip of the "
                f"row.{later}{before.beginning}"
            )

    # --- noting

    def _complete(self, before: CacheHistory, after: CacheHistory, here: ForwardTokens) -> None:
        self.complete = True
        if not before.end:
            self.prompt = here.ids if here.past == before.begin else _joined(before.ids, here.ids)
            self.prompt_begin = before.begin
            self.prompt_end = after.end

    def _short(self, stream: CacheHistory) -> ConditioningError:
        """Return the error for a row that got fewer visual tokens than its conditioning holds."""
        rows = self.rows_of(len(stream.held))
        wrong = [i for i, got in enumerate(stream.held) if got != (self.expected[rows[i]] or 0)]
        text = ""
        if self._textual is not None and (n := int(self._textual[1].sum())):
            text = (
                f" {n} placeholders of its last forward are text by their `{self._textual[0]}`, "
                "which is 0 there."
            )
        return ConditioningError(
            f"Row {wrong[0]}: the inputs hold {stream.held[wrong[0]]} visual tokens, the "
            f"conditioning {self.expected[rows[wrong[0]]]}. "
            f"Give the grid that the host really used.{stream.beginning}{text}"
        )


def _joined(first: Tensor | None, then: Tensor | None) -> Tensor | None:
    return None if first is None or then is None else torch.cat([first, then], 1)

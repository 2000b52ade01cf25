"""Counts the visual tokens of one conditioning over all chains of forwards that share a cache.

Absolute position decides, never the order of calls. What a cache holds is noted on the cache
itself, so that a deep copy is recognized too.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor
from torch.nn.functional import pad

from modulate.errors import ConditioningError
from modulate.modulation.cache_notes import (
    CacheHistory,
    CacheSamples,
    histories_on,
    note_history,
)
from modulate.modulation.token_positions import (
    ForwardTokens,
    begins_with,
    check_repeats,
    placeholders_in,
)

_numbers = itertools.count(1)
_trackers: "WeakValueDictionary[int, VisualTokenTracker]" = WeakValueDictionary()
"""Trackers still in use; only their histories stay on a cache."""


PromptCheck = Callable[[list[int], Tensor, Tensor | None, ForwardTokens | None], None]


@dataclass(frozen=True, eq=False)
class _PendingForward:
    """A forward that is running: its history before and after, in case it succeeds."""

    before: CacheHistory
    after: CacheHistory
    tokens: ForwardTokens


@dataclass(frozen=True, eq=False)
class _Prompt:
    """The last prompt that was complete: ``ids`` from position ``begin`` on, up to ``end``."""

    ids: Tensor | None
    begin: int
    end: int


class VisualTokenTracker:
    """Follows the rows of one conditioning through one or many forwards.

    ``expected[r]`` visual tokens belong to conditioned row ``r``. None marks a row without clips,
    whose visual tokens are left alone. Input row ``i`` of a batch uses conditioned row ``i //
    (batch / rows)``. ``everywhere``: residuals go to other tokens than visual ones too, so that
    every forward must be told apart by row, and a prompt from a branch without clips.
    ``check_prompt``: called with each prompt that has all its visual tokens, before they are
    written: conditioned row of each input row, (row, position) bool, ids or None, and the forward
    if it brought the whole prompt.
    """

    def __init__(
        self,
        expected: Sequence[int | None],
        everywhere: bool = False,
        check_prompt: PromptCheck | None = None,
    ) -> None:
        self.expected = list(expected)
        self.everywhere = everywhere
        self._check_prompt = check_prompt
        self.number = next(_numbers)
        _trackers[self.number] = self
        self.forwards = 0
        self.in_clipless_branch = False  # of the forward that was placed last
        self._prompt: _Prompt | None = None
        self._forward_numbers = itertools.count(1)
        # Histories that lack visual tokens and that no forward has continued, by number.
        self._incomplete: dict[int, CacheHistory] = {}
        self._last: CacheHistory | None = None
        self._text_placeholders: tuple[str, Tensor] | None = None
        self._samples = CacheSamples()
        self._pending: _PendingForward | None = None

    @property
    def complete(self) -> bool:
        """Return whether any chain of forwards has received all of its visual tokens."""
        return self._prompt is not None

    def rows_of(self, batch: int) -> list[int]:
        """Return the conditioned row of every input row.

        Raises :class:`ConditioningError` unless the batch is a multiple of the rows.
        """
        rows = len(self.expected)
        if batch % rows:
            raise ConditioningError(
                f"The conditioning has {rows} rows, the forward a batch of {batch}: the batch must "
                "be a multiple of the rows (beams, num_return_sequences)."
            )
        return [i // (batch // rows) for i in range(batch)]

    # --- one forward

    def place(self, tokens: ForwardTokens) -> Tensor | None:
        """Return (row, position) long: the ordinal of each visual token in its row, −1 elsewhere.

        None if there is no visual token. Call :meth:`remember` once the forward has succeeded: a
        forward that fails leaves no trace. Raises :class:`ConditioningError` where tokens and
        conditioning contradict each other.
        """
        self._pending = None
        before = self._continued_history(tokens) or self._new_history(tokens)
        ordinal = None
        if before.rows_unknown:
            self._check_rows_do_not_matter(before, tokens)
            after = before
        else:
            after, ordinal = self._advance(before, tokens)
        # Two text steps in a row are decoding, not chunks of a prompt, so nothing more will come.
        # A chain that began with a single token may be a prompt fed token by token; one without
        # visual tokens, once a prompt was complete, may be a text prompt beside it.
        is_decoding = after.began_with_chunk and after.text_steps > 1
        is_short = not after.end and (any(after.counts) or not self.complete)
        if is_decoding and is_short:
            raise self._shortage(after)
        self._pending = _PendingForward(before, after, tokens)
        self.in_clipless_branch = after.clipless
        return ordinal

    def remember(self, cache: Any) -> None:
        """Record the forward that was placed last; ``cache``: the one that it returned, or None.

        Raises :class:`ConditioningError` for a forward that lacked visual tokens and has no cache,
        so that nothing can continue it.
        """
        if self._pending is None:
            return
        before = self._pending.before
        after = self._pending.after
        tokens = self._pending.tokens
        self._pending = None
        self.forwards += 1
        caches = [each for each in (tokens.cache, cache) if each is not None]
        # `before` has been continued. Copies of its cache share its number: the first that goes on
        # removes it, and each that goes on enters a history of its own.
        self._incomplete.pop(before.number, None)
        self._text_placeholders = tokens.text_placeholders or self._text_placeholders
        if after.end:
            self._note_complete(before, after, tokens)
        else:
            after = replace(after, number=next(self._forward_numbers))
            if any(after.counts):
                if not caches:
                    raise self._shortage(after)
                self._incomplete[after.number] = after
        self._last = after
        # Only visual tokens identify a rebuilt cache, so forwards without any add no sample.
        if caches and after.counts != before.counts:
            self._samples.add(after, caches[-1])
        # Both caches: some hosts return another object than they were given.
        for each in caches:
            if histories_on(each).get(self.number) is not after:
                note_history(each, self.number, after, _trackers)

    def finish(self) -> None:
        """Raise :class:`ConditioningError` where visual tokens are missing.

        Either a chain of forwards ended with only some of them, or none received all.
        """
        for history in self._incomplete.values():
            raise self._shortage(history)
        if self._last is not None and not self.complete:
            raise self._shortage(self._last)

    # --- the history that a forward belongs to

    def _continued_history(self, tokens: ForwardTokens) -> CacheHistory | None:
        """Return the history that a forward continues; None where it begins one."""
        if not tokens.past_length:
            return None
        history = histories_on(tokens.cache).get(self.number)
        if history is None:
            history = self._samples.find(tokens.cache, tokens.past_length)
        if history is None:
            return None
        batch = len(tokens.visual)
        rows_alike = len(self.expected) == 1
        return history.cropped(tokens.past_length).resized(batch, rows_alike)

    def _new_history(self, tokens: ForwardTokens) -> CacheHistory:
        """Return the history that a forward begins.

        What its cache holds came before the conditioning, so it does not count.
        """
        batch, length = tokens.visual.shape
        # Generation without a cache feeds the whole prompt again, with more tokens behind it. Its
        # end is known then, and placeholders beyond it were generated.
        prompt = self._prompt
        repeats_prompt = (
            prompt is not None
            and tokens.past_length == prompt.begin
            and begins_with(tokens.ids, prompt.ids)
        )
        return CacheHistory(
            number=0,
            begin=tokens.past_length,
            seen=tokens.visual.new_zeros(batch, 0),
            counts=[0] * batch,
            end=prompt.end if prompt is not None and repeats_prompt else 0,
            began_with_chunk=length > 1,
            clipless=not repeats_prompt and self._is_clipless_branch(tokens),
        )

    def _is_clipless_branch(self, tokens: ForwardTokens) -> bool:
        """Return whether a forward that begins a history belongs to a branch without clips.

        Such a branch follows a complete prompt, shows no placeholder, and is not the first part of
        that prompt.
        """
        prompt = self._prompt
        if prompt is None or not tokens.is_text_only:
            return False
        # Positions of the caller may mark tokens without placeholder ids: then missing
        # placeholders say nothing.
        if tokens.from_caller and prompt.ids is not None:
            prompt_is_text = not bool(placeholders_in(prompt.ids, tokens.visual_ids).any())
            if prompt_is_text:
                return False
        return tokens.past_length != prompt.begin or not begins_with(prompt.ids, tokens.ids)

    def _check_rows_do_not_matter(self, history: CacheHistory, tokens: ForwardTokens) -> None:
        """Raise :class:`ConditioningError` where a batch shrank and its rows must be told apart.

        They need not be while text is generated: nothing is written then.
        """
        may_hold_clips = tokens.has_placeholders and (tokens.trusted or tokens.has_vision_inputs)
        if history.end and not self.everywhere and not may_hold_clips:
            return
        why = (
            "so residuals cannot be told apart by row"
            if history.end
            else "and not all visual tokens had come"
        )
        raise ConditioningError(
            f"The batch of this cache had {len(history.counts)} rows and has "
            f"{len(tokens.visual)} now; which rows are left cannot be known, {why}. "
            "Leave the batch as it is, or begin with an empty cache and condition the rows that "
            "are left."
        )

    # --- counting

    def _advance(
        self, before: CacheHistory, tokens: ForwardTokens
    ) -> tuple[CacheHistory, Tensor | None]:
        """Return the history after a forward, and its ordinals as :meth:`place` does."""
        rows = self.rows_of(len(tokens.visual))
        expected = [self.expected[row] for row in rows]
        if not before.clipless:
            check_repeats(tokens, [number is not None for number in self.expected], before.end)
        ordinal = None
        seen = before.seen
        counts = before.counts
        if tokens.has_placeholders and not (tokens.from_caller and before.clipless):
            ordinal, visual = self._count(tokens, before, expected)
            # Text since the last visual token was not recorded.
            gap = tokens.past_length - before.begin - seen.shape[1]
            seen = torch.cat([pad(seen, (0, gap)), visual], 1)
            counts = seen.sum(1).tolist()
        elif before.end and histories_on(tokens.cache).get(self.number) is before:
            return before, None  # the usual decode step: nothing to note
        clipless = before.clipless and counts == before.counts
        if self.everywhere and before.clipless and not clipless:
            raise ConditioningError(
                f"{tokens.past_length - before.begin} tokens of this cache were taken for a branch"
                " without clips, as guidance uses one, because they begin no prompt of this"
                " conditioning; now visual tokens follow. Give this prompt a conditioning of its"
                " own."
            )
        is_complete = counts == [number or 0 for number in expected]
        if is_complete and not before.end:
            self._check_complete(before, tokens, rows, seen)
        length = tokens.visual.shape[1]
        is_text_step = length == 1 and counts == before.counts
        after = replace(
            before,
            seen=seen,
            counts=counts,
            clipless=clipless,
            end=(before.end or tokens.past_length + length) if is_complete else 0,
            # Only needed until the prompt is complete; `_note_complete` keeps it then.
            ids=None if is_complete else _extended_ids(before, tokens),
            text_steps=before.text_steps + 1 if is_text_step else 0,
        )
        return after, ordinal

    def _count(
        self, tokens: ForwardTokens, before: CacheHistory, expected: Sequence[int | None]
    ) -> tuple[Tensor, Tensor]:
        """Return each visual token's ordinal in its row, −1 elsewhere, and where they are.

        Both are (row, position).
        """
        device = tokens.visual.device
        limit = torch.tensor([number or 0 for number in expected], device=device)
        has_clips = torch.tensor([number is not None for number in expected], device=device)
        candidates = tokens.visual & has_clips[:, None]
        seen_before = before.seen.to(device).sum(1)
        ordinal = seen_before[:, None] + candidates.long().cumsum(1) - 1
        surplus = candidates & (ordinal >= limit[:, None])
        self._check_surplus(tokens, before, surplus, seen_before + candidates.sum(1), limit)
        visual = candidates & ~surplus
        return torch.where(visual, ordinal, -1), visual

    def _check_complete(
        self, before: CacheHistory, tokens: ForwardTokens, rows: list[int], seen: Tensor
    ) -> None:
        """Check the clips of a prompt whose visual tokens have all come, where it tells them."""
        # Positions of the caller leave out separators, so that their runs say nothing.
        if self._check_prompt is None or tokens.from_caller:
            return
        is_whole = tokens.past_length == before.begin
        ids = _extended_ids(before, tokens)
        self._check_prompt(rows, seen, ids, tokens if is_whole else None)

    def _check_surplus(
        self,
        tokens: ForwardTokens,
        before: CacheHistory,
        surplus: Tensor,
        total: Tensor,
        limit: Tensor,
    ) -> None:
        """Raise :class:`ConditioningError` where a row holds more visual tokens than its clips.

        Placeholders that the host can only have generated do not count.
        """
        # Behind a complete prompt, without pictures and types, a placeholder was generated. Within
        # the prompt (generation without a cache repeats it) it belongs to a clip.
        if before.end and not tokens.trusted and not tokens.has_vision_inputs:
            begin = tokens.past_length
            position = torch.arange(begin, begin + surplus.shape[1], device=surplus.device)
            surplus = surplus & (position < before.end)
        has_surplus = surplus.any(1)
        if not bool(has_surplus.any()):
            return
        row = int(has_surplus.nonzero()[0])
        later = (
            " Those of the conditioning had come before; a clip that comes later has a "
            "conditioning of its own."
            if before.end and tokens.past_length
            else ""
        )
        raise ConditioningError(
            f"Row {row}: the inputs hold {int(total[row])} visual tokens, the conditioning "
            f"{int(limit[row])}. "
            "Give one ClipInput with its grid for every clip of the "
            f"row.{later}{before.offset_note}"
        )

    # --- recording

    def _note_complete(
        self, before: CacheHistory, after: CacheHistory, tokens: ForwardTokens
    ) -> None:
        """Note that a history has all its visual tokens; keep its prompt if they came just now."""
        if not before.end:
            self._prompt = _Prompt(_extended_ids(before, tokens), before.begin, after.end)

    def _shortage(self, history: CacheHistory) -> ConditioningError:
        """Return the error for a row that received fewer visual tokens than its clips have."""
        rows = self.rows_of(len(history.counts))
        expected = [self.expected[row] for row in rows]
        short = next(i for i, count in enumerate(history.counts) if count != (expected[i] or 0))
        hint = ""
        if self._text_placeholders is not None:
            name, is_text = self._text_placeholders
            number = int(is_text.sum())
            if number:
                hint = (
                    f" {number} placeholders of its last forward are text by their `{name}`, "
                    "which is 0 there."
                )
        return ConditioningError(
            f"Row {short}: the inputs hold {history.counts[short]} visual tokens, the "
            f"conditioning {expected[short]}. "
            f"Give the grid that the host really used.{history.offset_note}{hint}"
        )


def _extended_ids(before: CacheHistory, tokens: ForwardTokens) -> Tensor | None:
    """Return the token ids of a history and of the forward behind it; None if some are unknown."""
    if tokens.past_length == before.begin:
        return tokens.ids
    if before.ids is None or tokens.ids is None:
        return None
    return torch.cat([before.ids, tokens.ids], 1)

"""What a key-value cache has received of a conditioning, noted on the cache itself.

A copy of the cache carries the note along, so that it is recognized too.
"""

from collections import deque
from collections.abc import Container, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from modulate.errors import HostError
from modulate.hosts.kv_cache import keys_at

NOTES = "_modulate_histories"
"""Attribute of a cache: number of an active conditioning → its :class:`CacheHistory`."""


@dataclass(frozen=True, eq=False)
class CacheHistory:
    """What a chain of forwards, on one cache or without one, has received of a conditioning.

    ``number``: of the last forward that continued it while visual tokens were missing. ``begin``:
    absolute position of its first token. ``seen``: (row, position from ``begin`` on) bool, visual
    tokens; none beyond. ``counts``: visual tokens per row. ``end``: absolute position by which all
    had come, 0 until then. ``ids``: (row, position from ``begin`` on), tokens until then.
    ``began_with_chunk``: the first forward had more than one token. ``text_steps``: how many of the
    last forwards in a row were a single token that is not visual. ``clipless``: a branch without
    clips beside a complete prompt, as classifier-free guidance has one. ``rows_unknown``: the batch
    has changed, and which rows are left cannot be told.
    """

    number: int
    begin: int
    seen: Tensor
    counts: list[int]
    end: int = 0
    ids: Tensor | None = None
    began_with_chunk: bool = False
    text_steps: int = 0
    clipless: bool = False
    rows_unknown: bool = False

    @property
    def offset_note(self) -> str:
        """Return what errors about counts add when the cache was not empty at first, else ""."""
        if not self.begin:
            return ""
        return (
            f" The cache held {self.begin} positions before this conditioning began; "
            "tokens there are not counted."
        )

    def cropped(self, length: int) -> "CacheHistory":
        """Return the history of a cache that was cropped to ``length`` positions."""
        # Cropped to before the conditioning, it begins again where the cache ends now.
        begin = min(self.begin, length)
        if length >= max(self.begin + self.seen.shape[1], self.end):
            return self
        seen = self.seen[:, : length - begin]
        counts = seen.sum(1).tolist()
        # A prompt stays complete only as long as no visual token of it was cut off.
        end = min(self.end, length) if counts == self.counts else 0
        ids = None if self.ids is None else self.ids[:, : length - begin]
        return replace(self, begin=begin, seen=seen, counts=counts, end=end, ids=ids)

    def resized(self, batch: int, rows_alike: bool) -> "CacheHistory":
        """Return the history for a batch of another size.

        Rows that were multiplied stand beside each other. Otherwise the batch may be any of the
        old rows: harmless where these are the same (``rows_alike``: they read the same latents),
        else ``rows_unknown``.
        """
        rows = len(self.counts)
        if self.rows_unknown or batch == rows:
            return self
        if batch % rows == 0:
            repeats = batch // rows  # beams, or num_return_sequences
        elif rows_alike and bool((self.seen == self.seen[:1]).all()):
            rows = 1
            repeats = batch
        else:
            return replace(self, rows_unknown=True)
        ids = None if self.ids is None else self.ids[:rows].repeat_interleave(repeats, 0)
        return replace(
            self,
            seen=self.seen[:rows].repeat_interleave(repeats, 0),
            ids=ids,
            counts=[count for count in self.counts[:rows] for _ in range(repeats)],
        )


def histories_on(cache: Any) -> Mapping[int, CacheHistory]:
    """Return the histories noted on a cache, by the number of their conditioning."""
    histories: Mapping[int, CacheHistory] = getattr(cache, NOTES, {})
    return histories


def note_history(
    cache: Any, conditioning: int, history: CacheHistory, active: Container[int]
) -> None:
    """Note a history on ``cache`` under the number of its conditioning.

    Histories of conditionings that are not ``active`` any more are dropped, so that the notes stay
    bounded. Raises :class:`HostError` for a cache that takes no attribute.
    """
    still_active = {n: known for n, known in histories_on(cache).items() if n in active}
    try:
        setattr(cache, NOTES, still_active | {conditioning: history})
    except AttributeError as error:
        raise HostError(
            f"A {type(cache).__name__} takes no attribute, so what it holds cannot be noted; "
            "use a transformers Cache."
        ) from error


class CacheSamples:
    """Recognizes a rebuilt cache by the keys of the last visual token that it holds.

    A cache that was built anew from another one's keys and values, instead of copied with
    ``copy``, carries no notes. Samples of the last ``limit`` histories are kept.
    """

    def __init__(self, limit: int = 32) -> None:
        self._samples: deque[tuple[CacheHistory, int, Tensor]] = deque(maxlen=limit)

    def add(self, history: CacheHistory, cache: Any) -> None:
        """Sample what ``cache`` holds of the last visual token of ``history``, which has some."""
        row = next(i for i, count in enumerate(history.counts) if count)
        position = history.begin + int(history.seen[row].nonzero()[-1])
        keys = keys_at(cache, position)
        # Cloned: a slice would keep the whole cache alive.
        if keys is not None:
            self._samples.append((history, position, keys[row].clone()))

    def find(self, cache: Any, length: int) -> CacheHistory | None:
        """Return the history that ``cache``, which holds ``length`` positions, was rebuilt from."""
        # Latest first: of equal prompts the newest history knows most.
        for history, position, sample in reversed(self._samples):
            keys = keys_at(cache, position) if position < length else None
            if keys is None or keys.shape[1:] != sample.shape:
                continue
            # Any row may match: rebuilding may have reordered, repeated or dropped rows.
            if bool((keys == sample.to(keys.device)).flatten(1).all(1).any()):
                return history
        return None

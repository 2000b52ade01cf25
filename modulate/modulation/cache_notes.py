"""What one cache has had of a conditioning, noted on the cache, so that a copy knows it too."""

from collections import deque
from collections.abc import Container, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from modulate.errors import HostError
from modulate.hosts.kv_cache import keys_at

NOTES = "_modulate_streams"
"""Attribute of a cache: number of a conditioning that goes on → its :class:`CacheHistory`."""


@dataclass(frozen=True, eq=False)
class CacheHistory:
    """What a line of forwards, on one cache or alone, has had of a conditioning.

    ``number``: of the last forward that went on with it while tokens were missing; ``begin``:
    absolute position from which its tokens are the conditioning's; ``seen``: (row, position from
    ``begin`` on) bool, visual tokens, none beyond; ``held``: how many per row; ``end``: absolute
    position by which all had come, 0 until then; ``ids``: tokens until then, (row, position from
    ``begin`` on); ``wide``: the first forward had more than one token; ``singles``: forwards of a
    single token without any visual one, the last ones in a row; ``aside``: a branch without clips
    beside a complete prompt; ``lost``: the batch has changed, and which rows are left is not known.
    """

    number: int
    begin: int
    seen: Tensor
    held: list[int]
    end: int = 0
    ids: Tensor | None = None
    wide: bool = False
    singles: int = 0
    aside: bool = False
    lost: bool = False

    @property
    def beginning(self) -> str:
        """Return what an error about its count must add; "" where the conditioning began it."""
        if not self.begin:
            return ""
        return (
            f" The cache held {self.begin} positions before this conditioning began; "
            "tokens there are not counted."
        )

    def cropped(self, past: int) -> "CacheHistory":
        """Return what is left of it where the cache holds ``past`` positions."""
        begin = min(self.begin, past)
        if past >= max(self.begin + self.seen.shape[1], self.end):
            return self
        seen = self.seen[:, : past - begin]
        held = seen.sum(1).tolist()
        end = min(self.end, past) if held == self.held else 0
        ids = None if self.ids is None else self.ids[:, : past - begin]
        return replace(self, begin=begin, seen=seen, held=held, end=end, ids=ids)

    def fitted(self, batch: int, alike: bool) -> "CacheHistory":
        """Return it for a batch of another size.

        Rows repeat in place, or, where all are ``alike``, are any of them; else they are lost.
        """
        rows = len(self.held)
        if self.lost or batch == rows:
            return self
        if batch % rows == 0:
            n = batch // rows
        elif alike and bool((self.seen == self.seen[:1]).all()):
            rows = 1
            n = batch
        else:
            return replace(self, lost=True)
        ids = None if self.ids is None else self.ids[:rows].repeat_interleave(n, 0)
        return replace(
            self,
            seen=self.seen[:rows].repeat_interleave(n, 0),
            ids=ids,
            held=[h for h in self.held[:rows] for _ in range(n)],
        )


def histories_on(cache: Any) -> Mapping[int, CacheHistory]:
    """Return what is noted on a cache."""
    found: Mapping[int, CacheHistory] = getattr(cache, NOTES, {})
    return found


def note(cache: Any, number: int, stream: CacheHistory, going_on: Container[int]) -> None:
    """Note a stream on ``cache``; those of conditionings that do not go on any more are dropped.

    Raises :class:`HostError` for a cache that takes no attribute.
    """
    others = {n: other for n, other in histories_on(cache).items() if n in going_on}
    try:
        setattr(cache, NOTES, others | {number: stream})
    except AttributeError as error:
        raise HostError(
            f"A {type(cache).__name__} takes no attribute, so what it holds cannot be noted; "
            "use a transformers Cache."
        ) from error


class CacheSamples:
    """Keys of the last visual tokens of some streams: by these a cache is known again that was
    rebuilt.

    Copies that were not made by ``copy``, but from a cache's keys and values, have no notes. The
    last ``most`` streams are remembered.
    """

    def __init__(self, most: int = 32) -> None:
        self._kept: deque[tuple[CacheHistory, int, Tensor]] = deque(maxlen=most)

    def keep(self, stream: CacheHistory, cache: Any) -> None:
        """Remember a stream that has visual tokens by what ``cache`` holds of the last one."""
        row = next(i for i, n in enumerate(stream.held) if n)
        position = stream.begin + int(stream.seen[row].nonzero()[-1])
        keys = keys_at(cache, position)
        if keys is not None:
            self._kept.append((stream, position, keys[row].clone()))

    def find(self, cache: Any, past: int) -> CacheHistory | None:
        """Return the stream that ``cache``, which holds ``past`` positions, was rebuilt from."""
        for stream, position, sample in reversed(self._kept):
            keys = keys_at(cache, position) if position < past else None
            if keys is None or keys.shape[1:] != sample.shape:
                continue
            if bool((keys == sample.to(keys.device)).flatten(1).all(1).any()):
                return stream
        return None

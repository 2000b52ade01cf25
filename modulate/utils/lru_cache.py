"""What was used last, kept in memory up to a number of bytes."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


class LRUCache(Generic[Key, Value]):
    """Values by key, at most ``max_bytes`` of them together; those used longest ago go first.

    Safe for several threads.

    ``size`` says how many bytes a value takes, the same whenever it is asked. A value larger than
    ``max_bytes`` is not kept at all, so that it pushes no others out; 0 keeps nothing.
    """

    def __init__(self, max_bytes: int, size: Callable[[Value], int]) -> None:
        self.max_bytes = max_bytes
        self._size = size
        self._bytes = 0
        self._values: OrderedDict[Key, Value] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Key) -> Value | None:
        """Return the value of ``key``, now the one used last; None when it is not kept."""
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
            return self._values.get(key)

    def put(self, key: Key, value: Value) -> None:
        """Keep ``value`` under ``key``, in place of what was there; drop what was used longest ago
        until all fits.
        """
        with self._lock:
            if key in self._values:
                self._bytes -= self._size(self._values.pop(key))
            size = self._size(value)
            if size > self.max_bytes:
                return
            self._values[key] = value
            self._bytes += size
            while self._bytes > self.max_bytes:
                self._bytes -= self._size(self._values.popitem(last=False)[1])

"""A least-recently-used cache with a limit in bytes."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


class LRUCache(Generic[Key, Value]):
    """Values by key, of at most ``max_bytes`` in total; least recently used ones are evicted first.

    ``size`` returns the bytes of a value, always the same for the same value. A value larger than
    ``max_bytes`` is not stored, so that it cannot evict all others; 0 stores nothing. Thread-safe.
    """

    def __init__(self, max_bytes: int, size: Callable[[Value], int]) -> None:
        self.max_bytes = max_bytes
        self._size = size
        self._bytes = 0
        self._values: OrderedDict[Key, Value] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Key) -> Value | None:
        """Return the value of ``key`` and mark it as most recently used; None if absent."""
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
            return self._values.get(key)

    def discard(self, key: Key) -> None:
        """Remove the value of ``key``, if there is one."""
        with self._lock:
            if key in self._values:
                self._bytes -= self._size(self._values.pop(key))

    def put(self, key: Key, value: Value) -> None:
        """Store or replace the value of ``key``, and evict others until all fit."""
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

"""The description of one parser under test, and helpers that every group of parsers shares."""

import functools
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.durability import mutations as mutate


@dataclass(frozen=True)
class Parser:
    """One parser of foreign files, valid inputs to start from, and the check of its results."""

    name: str
    what: str
    """What the parser reads, in words for the page."""
    seeds: Callable[[], list[bytes]]
    """Makes the valid inputs that are mutated."""
    parse: Callable[[bytes], Any]
    check: Callable[[Any, bytes], None]
    """Raises AssertionError if the result cannot be right for these bytes."""
    modules: tuple[str, ...]
    """Modules that hold the parser's code."""
    mutation: mutate.Mutation = mutate.mutate_bytes
    read: Callable[[Path], Any] | None = None
    """The same parser, reading from a file; gets every hundredth input."""
    suffix: str = ".csv"
    only: tuple[str, ...] = ()
    """Functions that count for coverage; empty for all functions of `modules`."""
    never: tuple[str, ...] = ()
    """Functions that never count for coverage."""
    share: float = 1.0
    """Number of inputs, relative to the other parsers."""
    same: bool = True
    """Whether `read` must accept exactly the inputs that `parse` accepts."""


@functools.cache
def scratch() -> Path:
    """Return a temporary folder, in memory if the system offers it."""
    shared = Path("/dev/shm")
    folder = tempfile.TemporaryDirectory(prefix="torture-", dir=shared if shared.is_dir() else None)
    _open_folders.append(folder)  # deleted at exit, not when this function returns
    return Path(folder.name)


_open_folders: list[Any] = []


def through_file(read: Callable[[Path], Any], name: str) -> Callable[[bytes], Any]:
    """Return a parser of bytes that writes them to a file and reads that."""

    def parse(data: bytes) -> Any:
        path = scratch() / name
        path.write_bytes(data)
        return read(path)

    return parse


def same(found: Any, given: Any) -> bool:
    """Return whether two values are equal and of the same type: 1 is not True."""
    return bool(found == given) and type(found) is type(given)


def agrees(found: Any, given: Any) -> bool:
    """Return whether ``found`` holds the same values as the JSON tree ``given``.

    An integer may have become a float, and a missing key its default.
    """
    if isinstance(found, dict):
        return (
            isinstance(given, dict)
            and given.keys() <= found.keys()
            and all(agrees(found[key], value) for key, value in given.items())
        )
    if isinstance(found, list | tuple):
        return (
            isinstance(given, list) and len(found) == len(given) and all(map(agrees, found, given))
        )
    return same(found, given) or (
        type(found) is float and type(given) is int and found == float(given)
    )


def decoded(data: bytes) -> str:
    """Return bytes as text; bytes that are not UTF-8 become lone surrogates."""
    return data.decode("utf-8", "surrogateescape")

"""Check the pickle in a ``torch.save`` file before it is loaded.

``torch.load(weights_only=True)`` creates only tensors, numbers, strings and containers, but shared
containers can multiply: thirty short lists, each of which contains the previous one nine times,
have more values than any machine can print or hash. This module counts shared values as often as
they are used, from the instructions of the pickle alone, as :mod:`modulate.utils.safe_load` does
for YAML.
"""

import pickletools
import zipfile
from pathlib import Path
from typing import Any

from modulate.errors import CheckpointError

PICKLE_BYTES = 64 << 20
"""Largest pickle; that of GazeQwen's released checkpoint has 30 KB.

The numbers of the tensors are elsewhere in the file.
"""

PICKLE_VALUES = 20_000_000
"""Most values, after expanding shared ones."""

_CHANGES = frozenset({"APPEND", "APPENDS", "SETITEM", "SETITEMS", "ADDITEMS", "BUILD"})
"""Instructions that change the container below their arguments on the stack."""


class _Value:
    """The size of one value after expansion; ``inside``: whether another value contains it."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.inside = False


def check_archive(path: Path, most_unpacked: int | None = None) -> None:
    """Raise :class:`CheckpointError` for a file that ``torch.save`` would not write.

    This includes pickles crafted to exhaust memory or time. ``most_unpacked``: largest unpacked
    size of the whole archive, bytes.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            unpacked = sum(entry.file_size for entry in entries)
            if most_unpacked is not None and unpacked > most_unpacked:
                raise CheckpointError(
                    f"{path} has {unpacked} bytes unpacked, more than the {most_unpacked} that are"
                    " read."
                )
            for entry in entries:
                if entry.filename.endswith("data.pkl"):
                    if entry.file_size > PICKLE_BYTES:
                        raise CheckpointError(
                            f"{path} holds a pickle of {entry.file_size} bytes, more than the"
                            f" {PICKLE_BYTES} that are read."
                        )
                    with archive.open(entry) as file:
                        check_pickle(file.read(PICKLE_BYTES), str(path))
    except CheckpointError:
        raise
    # A tampered archive fails in many ways; each means that torch.save did not write it.
    except Exception as error:
        raise CheckpointError(
            f"{path} is not a file that torch.save writes: {error!s:.200}. Download it again."
        ) from error


def check_pickle(data: bytes, source: str) -> int:
    """Return how many values the pickle ``data`` creates, after expanding shared ones.

    ``source`` names it in errors. Raises :class:`CheckpointError` for more than
    :data:`PICKLE_VALUES`, for an invalid pickle, and for a container that changes after it was put
    into another: pickles of plain values never do that, and its size would be counted too early.
    """
    stack: list[_Value | None] = []  # None is a mark
    memo: dict[Any, _Value | None] = {}
    try:
        for code, argument, _ in pickletools.genops(data):
            name = code.name
            if name == "STOP":
                return _pop(stack, 1)[0].size
            if name in ("PUT", "BINPUT", "LONG_BINPUT"):
                memo[argument] = stack[-1]
            elif name == "MEMOIZE":
                memo[len(memo)] = stack[-1]
            elif name in ("GET", "BINGET", "LONG_BINGET"):
                stack.append(memo[argument])
            elif name == "MARK":
                stack.append(None)
            elif name == "DUP":
                stack.append(stack[-1])
            else:
                _execute(code, stack, source)
    except CheckpointError:
        raise
    # Tampered instructions fail in many ways.
    except Exception as error:
        raise CheckpointError(
            f"{source} cannot be read as a file of plain tensors: its pickle is damaged"
            f" ({type(error).__name__})."
        ) from error
    raise CheckpointError(
        f"{source} cannot be read as a file of plain tensors: its pickle ends early."
    )


def _execute(code: Any, stack: list[_Value | None], source: str) -> None:
    """Apply one instruction to the stack, as pickletools describes its effect."""
    before = [item.name for item in code.stack_before]
    taken: list[_Value] = []
    if "mark" in before:
        mark = len(stack) - 1 - stack[::-1].index(None)
        taken = _pop(stack, len(stack) - mark - 1)
        stack.pop()
        before = before[: before.index("mark")]
    taken = _pop(stack, len(before)) + taken
    target = None
    if code.name in _CHANGES:
        target, *taken = taken
        if target.inside or target in taken:
            raise CheckpointError(
                f"{source} is refused: its pickle changes a container after putting it into"
                " another."
            )
    size = (target.size if target else 1) + sum(value.size for value in taken)
    if size > PICKLE_VALUES:
        raise CheckpointError(
            f"{source} is refused: its pickle makes more than {PICKLE_VALUES} values after"
            " expanding shared ones."
        )
    for value in taken:
        value.inside = True
    if target:
        target.size = size
        stack.append(target)
    else:
        stack.extend(_Value(size) for _ in code.stack_after)


def _pop(stack: list[_Value | None], count: int) -> list[_Value]:
    """Pop ``count`` values from the stack; raise :class:`ValueError` if one is a mark."""
    if not count:
        return []
    popped = stack[-count:]
    del stack[-count:]
    if len(popped) < count or None in popped:
        raise ValueError("the stack holds too few values")
    return [value for value in popped if value is not None]

"""Looks at the pickle in a file of ``torch.save`` before anything is made of it.

``torch.load(weights_only=True)`` makes nothing but tensors, numbers, texts and containers, but
these may stand in each other many times over: thirty short lists, each naming the one before nine
times, are more values than any machine counts, printed or hashed. Here each is counted as if it
were written out, as :mod:`modulate.utils.safe_load` does for YAML, from the pickle's instructions
alone.
"""

import pickletools
import zipfile
from pathlib import Path
from typing import Any

from modulate.errors import CheckpointError

PICKLE_BYTES = 64 << 20
"""Largest pickle; that of GazeQwen's released checkpoint has 30 KB, the tensors' numbers being
elsewhere in the file.
"""

PICKLE_VALUES = 20_000_000
"""Most values, shared ones written out."""

_CHANGES = frozenset({"APPEND", "APPENDS", "SETITEM", "SETITEMS", "ADDITEMS", "BUILD"})


class _Value:
    """What one value takes, written out; ``inside``: whether it stands in another already."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.inside = False


def check_archive(path: Path, most_unpacked: int | None = None) -> None:
    """Raise :class:`CheckpointError` for a file that ``torch.save`` does not write, or whose pickle
    is made to exhaust memory or time.

    ``most_unpacked``: bytes that all of it may have when unpacked.
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
    # an altered archive fails in many ways; each means that torch.save did not write it
    except Exception as error:
        raise CheckpointError(
            f"{path} is not a file that torch.save writes: {error!s:.200}. Download it again."
        ) from error


def check_pickle(data: bytes, source: str) -> int:
    """Return how many values the pickle ``data`` makes, shared ones written out; ``source`` names
    it in errors.

    Raises :class:`CheckpointError` for more than :data:`PICKLE_VALUES`, for a container that
    changes after it was put into another, as none does that is no part of itself, and for what is
    no pickle.
    """
    stack: list[_Value | None] = []  # None: a mark
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
                _run(code, stack, source)
    except CheckpointError:
        raise
    except Exception as error:  # altered instructions fail in many ways
        raise CheckpointError(
            f"{source} cannot be read as a file of plain tensors: its pickle is damaged"
            f" ({type(error).__name__})."
        ) from error
    raise CheckpointError(
        f"{source} cannot be read as a file of plain tensors: its pickle ends early."
    )


def _run(code: Any, stack: list[_Value | None], source: str) -> None:
    """Do to the stack what one instruction does, by pickletools' own description of it."""
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
                f"{source} is refused: its pickle changes a container that stands in another"
                " already."
            )
    size = (target.size if target else 1) + sum(value.size for value in taken)
    if size > PICKLE_VALUES:
        raise CheckpointError(
            f"{source} is refused: its pickle makes more than {PICKLE_VALUES} values, shared ones"
            " written out."
        )
    for value in taken:
        value.inside = True
    if target:
        target.size = size
        stack.append(target)
    else:
        stack.extend(_Value(size) for _ in code.stack_after)


def _pop(stack: list[_Value | None], count: int) -> list[_Value]:
    """Take ``count`` values from the stack, none of them a mark."""
    if not count:
        return []
    found = stack[-count:]
    del stack[-count:]
    if len(found) < count or None in found:
        raise ValueError("the stack holds too little")
    return [value for value in found if value is not None]

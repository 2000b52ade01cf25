"""Standard output and standard error of a command: what they cannot take is one clear line or an
escape, never a traceback.

A disk that is full, a pipe whose reader has gone, a stream that was closed before the command
began: on standard output these are an error, because what was asked for is lost; on standard error
nothing can be said of them, and the work goes on. Characters that the streams' encoding lacks are
written as escapes, as Python does on standard error.
"""

import io
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

import typer

from modulate.errors import StorageError

LOST = (
    "What was to be printed is lost; what the command wrote into files is there. Give it a"
    " terminal, a pipe that is read to its end, or a file with room."
)


class _Sink(io.FileIO):
    """The end of a stream. The first write that fails is its last: later ones, and what Python
    flushes at its exit, go nowhere.
    """

    def __init__(self, handle: int, strict: bool) -> None:
        super().__init__(handle, "w", closefd=False)
        self.strict = strict
        self.gone = False

    def write(self, data: Any) -> int:
        if self.gone:
            return memoryview(data).nbytes
        try:
            return super().write(data)
        except OSError as error:
            self.gone = True
            if self.strict:
                raise StorageError(
                    f"Standard output cannot be written: {error.strerror}. {LOST}"
                ) from error
            return memoryview(data).nbytes


@contextmanager
def checked() -> Iterator[None]:
    """For the length of a block, let ``sys.stdout`` and ``sys.stderr`` be such streams; those that
    somebody put in their place are left alone.

    Raises :class:`StorageError` where standard output takes no more, at the latest when the block
    ends without another error.
    """
    closed = _filled()
    before = sys.stdout, sys.stderr
    if sys.stdout is sys.__stdout__ and (sys.stdout is not None or 1 in closed):
        sys.stdout = _stream(sys.stdout, 1, strict=True)
    if sys.stderr is sys.__stderr__ and (sys.stderr is not None or 2 in closed):
        sys.stderr = _stream(sys.stderr, 2, strict=False)
    try:
        yield
        _flush()
    except SystemExit as end:
        if not end.code:  # else there is something worse to tell
            _flush()
        raise
    finally:
        sys.stdout, sys.stderr = before


def _flush() -> None:
    if sys.stdout is not None:
        sys.stdout.flush()


def _filled() -> set[int]:
    """Give handles 0, 1 and 2 that are closed to nothing, or the next file that is opened gets
    them, and with it what is printed; return which.
    """
    closed = set()
    for handle, way in (
        (0, os.O_RDONLY),
        (1, os.O_RDONLY),
        (2, os.O_WRONLY),
    ):  # 1 cannot be written: what is printed is lost, which is an error
        try:
            os.fstat(handle)
        except OSError:
            if os.open(os.devnull, way) == handle:
                closed.add(handle)
    return closed


def _stream(old: TextIO | None, handle: int, strict: bool) -> TextIO:
    """Return a stream on the handle of ``old``, with its encoding, for every character; on
    ``handle`` where it is closed.
    """
    if old is not None:
        old.flush()
        handle = old.fileno()
    sink = io.BufferedWriter(_Sink(handle, strict))
    return io.TextIOWrapper(
        sink,
        encoding=getattr(old, "encoding", None) or "utf-8",
        errors="backslashreplace",
        line_buffering=getattr(old, "line_buffering", False),
        write_through=getattr(old, "write_through", False),
    )


def echo_json(value: Any) -> None:
    """Print ``value`` as JSON; with JSON's own escapes where standard output does not take every
    character.
    """
    encoding = (getattr(sys.stdout, "encoding", None) or "utf-8").lower()
    typer.echo(json.dumps(value, indent=2, ensure_ascii=not encoding.startswith("utf")))

"""Standard output and standard error of a command, guarded against failing writes.

The disk may be full, the reader of a pipe gone, or the stream closed before the command started. On
standard output that is an error of one line, because the requested result is lost. On standard
error nothing can be reported, so the command carries on. Characters that the encoding lacks are
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
    "The printed output is lost; files that the command wrote are complete. Print to a terminal, to"
    " a pipe that is read to its end, or to a file on a disk with free space."
)


class _Sink(io.FileIO):
    """The raw end of a stream; after a failed write, it discards everything that follows.

    Without that, Python's own flush at exit would fail again and print a traceback.
    """

    def __init__(self, handle: int, strict: bool) -> None:
        super().__init__(handle, "w", closefd=False)
        self.strict = strict
        self.failed = False

    def write(self, data: Any) -> int:
        if self.failed:
            return memoryview(data).nbytes
        try:
            return super().write(data)
        except OSError as error:
            self.failed = True
            if self.strict:
                raise StorageError(
                    f"Standard output cannot be written: {error.strerror}. {LOST}"
                ) from error
            return memoryview(data).nbytes


@contextmanager
def guarded_streams() -> Iterator[None]:
    """Guard ``sys.stdout`` and ``sys.stderr`` during a block, unless somebody replaced them.

    Raises :class:`StorageError` if standard output cannot be written, at the latest when the block
    ends without another error.
    """
    closed = _open_closed_handles()
    before = (sys.stdout, sys.stderr)
    # Streams that a test or a notebook put in place are not ours to wrap.
    if sys.stdout is sys.__stdout__ and (sys.stdout is not None or 1 in closed):
        sys.stdout = _guarded(sys.stdout, 1, strict=True)
    if sys.stderr is sys.__stderr__ and (sys.stderr is not None or 2 in closed):
        sys.stderr = _guarded(sys.stderr, 2, strict=False)
    try:
        yield
        _flush()
    except SystemExit as end:
        # A command that already fails has a more important message.
        if not end.code:
            _flush()
        raise
    finally:
        sys.stdout, sys.stderr = before


def _flush() -> None:
    if sys.stdout is not None:
        sys.stdout.flush()


def _open_closed_handles() -> set[int]:
    """Open the null device on every closed handle of 0, 1 and 2; return those handles.

    Otherwise the next file the command opens would get such a handle, and everything printed would
    be written into that file.
    """
    closed = set()
    # Handle 1 is opened for reading only: output that goes nowhere must be an error.
    for handle, mode in ((0, os.O_RDONLY), (1, os.O_RDONLY), (2, os.O_WRONLY)):
        try:
            os.fstat(handle)
        except OSError:
            if os.open(os.devnull, mode) == handle:
                closed.add(handle)
    return closed


def _guarded(old: TextIO | None, handle: int, strict: bool) -> TextIO:
    """Return a guarded stream with the handle and encoding of ``old``.

    ``handle`` is used where ``old`` is None, as Python leaves a closed stream.
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
    """Print ``value`` as JSON, with JSON escapes if standard output is not UTF-8."""
    encoding = (getattr(sys.stdout, "encoding", None) or "utf-8").lower()
    typer.echo(json.dumps(value, indent=2, ensure_ascii=not encoding.startswith("utf")))

"""The command line; an expected error is one line and an exit code."""

import sys
import traceback
from collections.abc import Sequence

from modulate.cli import output
from modulate.cli.app import build
from modulate.errors import ComponentError, Interrupted, ModulateError, StorageError
from modulate.utils.library_warnings import show_library_warnings

__all__ = ["build", "main"]


def main(args: Sequence[str] | None = None) -> None:
    """Run the command line on ``args``, by default those of the process.

    Errors that modulate raises on purpose are printed without a traceback, with exit code 1. A
    failing component keeps its traceback, because its author needs it; so does every other
    exception. A run stopped by a signal exits with 128 plus the signal's number after it has saved.
    Output that cannot be written is an error of one line. Warnings are printed to stderr as plain
    lines, without the source line that caused them.
    """
    try:
        with output.guarded_streams():
            _run(args)
    # Raised when the last buffered output is flushed. By then the guards are gone, and standard
    # error may be unwritable as well.
    except StorageError as error:
        with output.guarded_streams():
            print(f"Error: {error}", file=sys.stderr)
            raise SystemExit(1) from None


def _run(args: Sequence[str] | None) -> None:
    try:
        with show_library_warnings(every=True):
            build()(args=list(args) if args is not None else None)
    # ComponentError is a ModulateError too, so it must come first.
    except ComponentError as error:
        traceback.print_exception(error)
        raise SystemExit(1) from None
    except Interrupted as error:
        print(error, file=sys.stderr)
        raise SystemExit(error.code) from None
    except ModulateError as error:
        print(f"Error: {error}", file=sys.stderr)
        raise SystemExit(1) from None

"""What libraries warn of while they work for us, brought to the user: each distinct warning once,
as a plain line.

Left to themselves, deprecations are lost in four ways. Python ignores a DeprecationWarning unless
the script itself causes it. The handler that transformers installs writes to the stderr of its
import, past a progress display, which draws over it. Whoever changes Python's filters, as torch and
PEFT do on every call, makes Python forget what was said, so that it is said again; and what is said
at every step is what nobody reads.
"""

import logging
import re
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

DEPRECATIONS = (DeprecationWarning, PendingDeprecationWarning, FutureWarning)
LOGGERS = ("transformers", "huggingface_hub", "peft", "accelerate")
"""Libraries that warn by logging as well."""

_MODULES = re.compile(r"(transformers|huggingface_hub|peft|accelerate|modulate)(\W|_|$)")
_STOCK = warnings.formatwarning
_lock = threading.RLock()
_told: set[str] = set()
_depth = 0
_undo = ExitStack()


class _Once(logging.Handler):
    """Prints records on the stderr of the moment; warnings that were told already not again."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print a record."""
        text = record.getMessage()
        if record.levelno != logging.WARNING or _first(text):
            print(f"{record.levelname.lower()}: {text}", file=sys.stderr, flush=True)


_handler = _Once()


@contextmanager
def show_library_warnings(every: bool = False) -> Iterator[None]:
    """For the length of a block, let every deprecation of a library reach the user, once in this
    process. Blocks may lie in each other and in several threads.

    What the user set stays: filters (``-W``, PYTHONWARNINGS, ``warnings.filterwarnings``), who
    records warnings, handlers of one's own. ``every``: other warnings are plain lines too, and
    nothing counts as told before, as for a command.
    """
    global _depth
    with _lock:
        if every:
            _told.clear()
        if _depth == 0:
            _install(every)
        _depth += 1
        for name in LOGGERS:
            _listen(name)  # again in an inner block: the library may have been imported since
    try:
        yield
    finally:
        with _lock:
            _depth -= 1
            if _depth == 0:
                _undo.close()


def _first(text: str) -> bool:
    """Return whether ``text`` was not told before, and note that it was."""
    with _lock:
        new = text not in _told
        _told.add(text)
        return new


def _install(every: bool) -> None:
    before = warnings.formatwarning

    def line(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        line: str | None = None,
    ) -> str:
        # Here and not by a filter, because it is called for what is really printed: whoever records
        # warnings gets them all.
        once = issubclass(category, DEPRECATIONS)
        if once and not _first(str(message)):
            return ""
        return (
            f"warning: {message}\n"
            if every or (once and before is _STOCK)
            else before(message, category, filename, lineno, line)
        )

    warnings.formatwarning = line
    _undo.callback(setattr, warnings, "formatwarning", before)
    if not sys.warnoptions:
        for category in (DeprecationWarning, PendingDeprecationWarning):
            _let_through(category)


def _let_through(category: type[Warning]) -> None:
    """Put a filter for libraries in front of the one by which Python ignores ``category`` on its
    own; behind all that somebody set.
    """
    filters: Any = warnings.filters
    ignored = ("ignore", None, category, None, 0)
    ours = ("default", None, category, _MODULES, 0)
    if ignored not in filters:
        return
    at = filters.index(ignored)
    own = {
        ("default", DeprecationWarning),
        ("ignore", DeprecationWarning),
    }  # what comes before it where nobody asked for it
    if at == 0 or (filters[at - 1][0], filters[at - 1][2]) not in own:
        return
    filters.insert(at, ours)
    _undo.callback(_remove, filters, ours)


def _remove(filters: Any, entry: Any) -> None:
    with suppress(ValueError):
        filters.remove(entry)


def _listen(name: str) -> None:
    """Print a library's records in place of the handler that it installs itself, and where nobody
    else handles them.
    """
    if name not in sys.modules:
        return
    logger = logging.getLogger(name)
    default = getattr(sys.modules.get(f"{name}.utils.logging"), "_default_handler", None)
    stock = [
        h
        for h in logger.handlers
        if h is default
        or (type(h) is logging.StreamHandler and h.stream in (sys.stderr, sys.__stderr__))
    ]
    if _handler in logger.handlers or not (stock or not logger.hasHandlers()):
        return
    for handler in stock:
        logger.removeHandler(handler)
        _undo.callback(logger.addHandler, handler)
    logger.addHandler(_handler)
    _undo.callback(logger.removeHandler, _handler)

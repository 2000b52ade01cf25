"""Show the deprecation warnings of libraries to the user: each one once, as a plain line.

By default they are lost. Python ignores a DeprecationWarning unless the script itself causes it.
The log handler of transformers writes to the stderr that existed at its import, so a progress
display draws over it. And whenever a library changes Python's filters, as torch and PEFT do on
every call, Python forgets which warnings it has shown and repeats them at every step, until nobody
reads them.
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
"""Libraries that also warn through logging."""

_MODULES = re.compile(r"(transformers|huggingface_hub|peft|accelerate|modulate)(\W|_|$)")
_STOCK = warnings.formatwarning
_lock = threading.RLock()
_shown: set[str] = set()
_depth = 0
_undo = ExitStack()


class _Once(logging.Handler):
    """Print records to the current stderr, and each warning only once."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print a record."""
        text = record.getMessage()
        if record.levelno != logging.WARNING or _first(text):
            print(f"{record.levelname.lower()}: {text}", file=sys.stderr, flush=True)


_handler = _Once()


@contextmanager
def show_library_warnings(every: bool = False) -> Iterator[None]:
    """Show every deprecation of a library during a block, once per process.

    Blocks may be nested and run in several threads. The user's own settings keep priority: filters
    (``-W``, PYTHONWARNINGS, ``warnings.filterwarnings``), code that records warnings, and log
    handlers. ``every``: print other warnings as plain lines too, and forget what was shown before;
    this is for commands.
    """
    global _depth
    with _lock:
        if every:
            _shown.clear()
        if _depth == 0:
            _install(every)
        _depth += 1
        for name in LOGGERS:
            # Also in an inner block: the library may have been imported since the outer one began.
            _listen(name)
    try:
        yield
    finally:
        with _lock:
            _depth -= 1
            if _depth == 0:
                _undo.close()


def _first(text: str) -> bool:
    """Return whether ``text`` was not shown before, and remember it."""
    with _lock:
        new = text not in _shown
        _shown.add(text)
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
        # Deduplicated here and not by a filter, because Python formats only what it prints: code
        # that records warnings still gets all of them.
        once = issubclass(category, DEPRECATIONS)
        if once and not _first(str(message)):
            return ""
        if every or (once and before is _STOCK):
            return f"warning: {message}\n"
        return before(message, category, filename, lineno, line)

    warnings.formatwarning = line
    _undo.callback(setattr, warnings, "formatwarning", before)
    if not sys.warnoptions:
        for category in (DeprecationWarning, PendingDeprecationWarning):
            _let_through(category)


def _let_through(category: type[Warning]) -> None:
    """Insert a filter for libraries just before Python's default one that ignores ``category``.

    Filters that somebody set come earlier and keep priority.
    """
    filters: Any = warnings.filters
    ignored = ("ignore", None, category, None, 0)
    ours = ("default", None, category, _MODULES, 0)
    if ignored not in filters:
        return
    index = filters.index(ignored)
    # What precedes it in Python's defaults. Anything else there means that somebody set the filter.
    defaults = {("default", DeprecationWarning), ("ignore", DeprecationWarning)}
    if index == 0 or (filters[index - 1][0], filters[index - 1][2]) not in defaults:
        return
    filters.insert(index, ours)
    _undo.callback(_remove, filters, ours)


def _remove(filters: Any, entry: Any) -> None:
    with suppress(ValueError):
        filters.remove(entry)


def _listen(name: str) -> None:
    """Replace the log handler that a library installed with ours.

    If the user installed a handler of their own, nothing changes.
    """
    if name not in sys.modules:
        return
    logger = logging.getLogger(name)
    default = getattr(sys.modules.get(f"{name}.utils.logging"), "_default_handler", None)
    stock = [
        handler
        for handler in logger.handlers
        if handler is default
        or (
            type(handler) is logging.StreamHandler
            and handler.stream in (sys.stderr, sys.__stderr__)
        )
    ]
    handled_by_user = logger.hasHandlers() and not stock
    if _handler in logger.handlers or handled_by_user:
        return
    for handler in stock:
        logger.removeHandler(handler)
        _undo.callback(logger.addHandler, handler)
    logger.addHandler(_handler)
    _undo.callback(logger.removeHandler, _handler)

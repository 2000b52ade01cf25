"""Every error this project raises on purpose.

Each says what failed, the value received, what is allowed, and what to do next. All inherit :class:`ModulateError`, so that the
command line can print them without a traceback, and a builtin, so that library users may catch what they expect.
"""

import difflib
from collections.abc import Iterable


class ModulateError(Exception):
    """Base of all errors raised on purpose."""


class PluginError(ModulateError, LookupError):
    """A plugin is unknown, broken, clashes with another, or misuses its interface."""


class ComponentError(PluginError):
    """A component of a plugin raised what it did not mean to: a defect there. The original error is the cause."""


class RecipeError(ModulateError, ValueError):
    """A recipe cannot be read, names an unknown key, or asks for something impossible."""


class SignalError(ModulateError, ValueError):
    """A side signal is malformed: empty file, NaN, negative duration, pixel units …"""


class VideoError(ModulateError, ValueError):
    """A video cannot be decoded, or a time lies outside it."""


class DataError(ModulateError, ValueError):
    """A data set's files contradict themselves or what a recipe asks of them."""


class MissingFileError(ModulateError, FileNotFoundError):
    """A file that something names does not exist."""


class HostError(ModulateError, TypeError):
    """A host is not understood, or is called in a way that cannot be served."""


class ConditioningError(ModulateError, RuntimeError):
    """A conditioning does not match the inputs of a forward, or is used out of turn."""


class CheckpointError(ModulateError, ValueError):
    """Saved weights do not fit the configuration beside them."""


def near_matches(name: str, known: Iterable[str]) -> str:
    """Return a sentence that helps with a misspelt ``name``: near matches if any, then everything known."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=3)
    hint = f"Did you mean {' or '.join(repr(c) for c in close)}? " if close else ""
    return f"{hint}Known: {', '.join(known) or 'none'}."

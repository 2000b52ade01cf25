"""Every error that modulate raises on purpose.

Each message says what failed, the value received, what is allowed, and what to do next. Every class
inherits :class:`ModulateError`, so that the command line can print it without a traceback, and a
builtin, so that callers can catch the type they expect.
"""

import difflib
from collections.abc import Iterable


class ModulateError(Exception):
    """Base of all errors raised on purpose."""


class UnverifiedWarning(UserWarning):
    """Hosts were never verified with the installed releases of transformers, torch and PEFT."""


class AttachmentWarning(UserWarning):
    """A modulation is attached where it hardly belongs, or beside another version of itself."""


class SignalWarning(UserWarning):
    """A side signal has events, but none during its clip: it is probably on another clock."""


class PluginError(ModulateError, LookupError):
    """A plugin is unknown, broken, clashes with another, or misuses its interface."""


class ComponentError(PluginError):
    """A component failed with an exception that modulate did not expect: a defect of its plugin.

    The original exception is the ``__cause__``.
    """


class RecipeError(ModulateError, ValueError):
    """A recipe cannot be read, has an unknown key, or asks for something impossible."""


class SignalError(ModulateError, ValueError):
    """A side signal is malformed: empty file, NaN, negative duration, pixel units …"""


class VideoError(ModulateError, ValueError):
    """A video cannot be decoded, or a time lies outside it."""


class DataError(ModulateError, ValueError):
    """The files of a dataset contradict each other or the recipe."""


class MissingFileError(ModulateError, FileNotFoundError):
    """A file that a recipe, an option or another file names does not exist."""


class HostError(ModulateError, TypeError):
    """A host is not supported, or is called in an unsupported way."""


class ConditioningError(ModulateError, RuntimeError):
    """A conditioning does not match the inputs of a forward, or is used at the wrong time."""


class CheckpointError(ModulateError, ValueError):
    """Saved weights do not fit the configuration beside them."""


def shown(value: object, most: int = 80) -> str:
    """Return ``repr(value)``, cut to ``most`` characters to keep messages short."""
    text = repr(value)
    return text if len(text) <= most else f"{text[:most]}…"


class StorageError(ModulateError, OSError):
    """A file cannot be written: the disk is full, read-only or failing.

    The previous content of the file is still there.
    """


class LockedError(ModulateError, RuntimeError):
    """Another process is working in the folder of a run."""


class RankError(ModulateError, RuntimeError):
    """Another process of a distributed run failed, hangs or is gone, so this one ends too."""


class DivergedError(ModulateError, ArithmeticError):
    """Training stopped because losses or gradients are no longer finite."""


class Interrupted(ModulateError, RuntimeError):  # noqa: N818  (not a failure: the state is saved)
    """A run was stopped by a signal after saving its state; the same command continues it.

    ``code``: exit code of the command, 128 plus the signal's number, as in shells.
    """

    def __init__(self, text: str, number: int) -> None:
        super().__init__(text)
        self.code = 128 + number


def near_matches(name: str, known: Iterable[str]) -> str:
    """Return a hint for a misspelled ``name``: similar names if any, then all known ones."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=3)
    hint = f"Did you mean {' or '.join(repr(match) for match in close)}? " if close else ""
    return f"{hint}Known: {', '.join(known) or 'none'}."

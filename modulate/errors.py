"""Every error this project raises on purpose.

Each says what failed, the value received, what is allowed, and what to do next. All inherit
:class:`ModulateError`, so that the command line can print them without a traceback, and a builtin,
so that library users may catch what they expect.
"""

import difflib
from collections.abc import Iterable


class ModulateError(Exception):
    """Base of all errors raised on purpose."""


class UnverifiedWarning(UserWarning):
    """Nobody has verified hosts with the releases of transformers, torch and PEFT that are
    installed.
    """


class PluginError(ModulateError, LookupError):
    """A plugin is unknown, broken, clashes with another, or misuses its interface."""


class ComponentError(PluginError):
    """A component of a plugin raised what it did not mean to: a defect there.

    The original error is the cause.
    """


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


def shown(value: object, most: int = 80) -> str:
    """Return ``repr(value)``, cut to ``most`` characters: files of others may hold values of any
    length, messages must not.
    """
    text = repr(value)
    return text if len(text) <= most else f"{text[:most]}…"


class StorageError(ModulateError, OSError):
    """A file cannot be written: the disk is full, read-only or failing.

    What was there before is still there.
    """


class LockedError(ModulateError, RuntimeError):
    """Another process works in a run's folder."""


class RankError(ModulateError, RuntimeError):
    """Another process of a run over several failed, hangs or is gone, and this one ends with it."""


class DivergedError(ModulateError, ArithmeticError):
    """Training stopped because losses or gradients are not finite any more."""


class Interrupted(ModulateError, RuntimeError):  # noqa: N818  (not a failure: the run was asked to stop and has saved itself)
    """A run was asked to stop by a signal, finished what it was at, and saved; the same command
    continues it.

    ``code``: with which a command ends that was: 128 and the signal's number, as shells have it.
    """

    def __init__(self, text: str, number: int) -> None:
        super().__init__(text)
        self.code = 128 + number


def near_matches(name: str, known: Iterable[str]) -> str:
    """Return a sentence that helps with a misspelt ``name``: near matches if any, then everything
    known.
    """
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=3)
    hint = f"Did you mean {' or '.join(repr(c) for c in close)}? " if close else ""
    return f"{hint}Known: {', '.join(known) or 'none'}."

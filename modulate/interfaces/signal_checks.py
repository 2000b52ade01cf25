"""Calls of a signal's methods and controls that name its plugin where they break the interface.

Imports no torch, so that reading a recipe takes no time.
"""

import functools
from typing import Any

from modulate import plugins
from modulate.interfaces.signal import Control, ControlContext, Mark, Signal
from modulate.plugins import InterfaceError


def check_signal(result: Any, kind: type[Signal], method: str) -> Signal:
    """Return what ``method`` of a kind of signal returned, if it is a signal of that kind.

    Raises :class:`InterfaceError`.
    """
    if not isinstance(result, kind):
        raise InterfaceError(
            f"returned {_typed(result)} from {method}; it must return a {kind.__name__}."
        )
    return result


def check_blank(result: Signal) -> Signal:
    """Return a blank signal, if it is empty. Raises :class:`InterfaceError`."""
    if len(result):
        raise InterfaceError(
            f"has {len(result)} events in its blank signal; `blank` must return one whose length"
            " is 0."
        )
    return result


def call(signal: Signal, method: str, *arguments: Any) -> Signal:
    """Return the signal that ``signal.method(*arguments)`` returns.

    Raises :class:`ComponentError` that names the kind and its plugin if the method fails, or
    returns anything else.
    """
    with plugins.registry().blame("signal", signal.kind, method):
        result = check_signal(getattr(signal, method)(*arguments), _class_of(signal), method)
        return check_blank(result) if method == "blank" else result


def marks(signal: Signal, start: float, end: float) -> tuple[Mark, ...]:
    """Return ``signal.marks(start, end)``. Raises :class:`ComponentError` as :func:`call` does."""
    with plugins.registry().blame("signal", signal.kind, "marks"):
        found: Any = signal.marks(start, end)
        if not isinstance(found, tuple) or not all(isinstance(mark, Mark) for mark in found):
            raise InterfaceError(
                f"returned {_typed(found)} from marks; it must return a tuple of Mark."
            )
        return found


def checked(control: Control, name: str, kind: str, cls: type[Signal]) -> Control:
    """Return ``control`` as a function that raises :class:`ComponentError` as :func:`call` does.

    Args:
        control: a control of the kind.
        name: its name.
        kind: the registered name of the kind.
        cls: its class.
    """

    @functools.wraps(control)
    def control_and_check(signal: Any, context: ControlContext) -> Signal:
        called = f"the control {name!r}"
        with plugins.registry().blame("signal", kind, called):
            result = check_signal(control(signal, context), cls, called)
            return check_blank(result) if name == "blank" else result

    return control_and_check


def _class_of(signal: Signal) -> type[Signal]:
    """Return the class that defines the kind of ``signal``, which may be an instance of another."""
    bases = (base for base in type(signal).__mro__ if "kind" in vars(base))
    return next(bases, type(signal))


def _typed(value: Any) -> str:
    return "None" if value is None else f"a value of type {type(value).__name__}"

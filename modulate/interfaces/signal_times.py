"""Signals whose events all lie outside of what they belong to, usually because of another clock."""

import warnings
from collections.abc import Mapping

from modulate.errors import SignalWarning
from modulate.interfaces.multi_signal import MultiSignal
from modulate.interfaces.signal import Signal
from modulate.interfaces.signal_checks import call


def outside_of(signal: Signal, start: float, end: float) -> str | None:
    """Return what is wrong with a signal that has events, but none during [start, end] seconds.

    None where some event lies there, and for an empty signal: nothing may have been measured. Of
    several signals, each is looked at alone.
    """
    parts: Mapping[str, Signal] = {signal.kind: signal}
    if isinstance(signal, MultiSignal):
        parts = signal.parts
    for kind, part in parts.items():
        if len(part) and not len(call(part, "within", start, end)):
            span = part.span()
            at = f", at {span[0]:.2f} to {span[1]:.2f} s," if span else ""
            return (
                f"none of the {len(part)} events of the {kind} signal{at} lies within"
                f" {start:.2f} to {end:.2f} s"
            )
    return None


def warn_if_outside(
    signal: Signal | None, window: tuple[float, float], what: str, stacklevel: int = 1
) -> bool:
    """Warn (:class:`SignalWarning`) of a signal that has events, but none within ``window``.

    Return whether it is one. ``what``: the clip, for the message. ``stacklevel``: as in
    :func:`warnings.warn`; 1 is the caller.
    """
    found = None if signal is None else outside_of(signal, *window)
    if found is not None:
        warnings.warn(
            f"{what}: {found}, so the signal does nothing here. Is it on another clock? Times must"
            " be seconds from the video's first frame.",
            SignalWarning,
            stacklevel=stacklevel + 1,
        )
    return found is not None

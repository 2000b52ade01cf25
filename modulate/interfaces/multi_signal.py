"""Several kinds of signal of one clip as one signal: ``gaze+hand`` in a recipe."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Self

from modulate import plugins
from modulate.errors import SignalError
from modulate.interfaces.signal import (
    COMMON_CONTROLS,
    Control,
    ControlContext,
    Mark,
    Signal,
)
from modulate.interfaces.signal_checks import call, checked, marks

KIND_SEPARATOR = "+"


@dataclass(frozen=True)
class MultiSignal(Signal):
    """Signals of one clip, by kind. Every operation applies to each part."""

    kind: ClassVar[str] = "bundle"
    controls: ClassVar[Mapping[str, Control]] = {}

    parts: Mapping[str, Signal]

    @classmethod
    def read(cls, path: Path) -> Self:
        """Raise :class:`SignalError`, since every part has a file of its own."""
        raise SignalError(
            f"{path}: several kinds of signal cannot be read from one file; read each from its own."
        )

    def within(self, start: float, end: float) -> Self:
        """Return each part's events that overlap [start, end] seconds."""
        return replace(
            self,
            parts={kind: call(part, "within", start, end) for kind, part in self.parts.items()},
        )

    def moved(self, seconds: float) -> Self:
        """Return all parts shifted by ``seconds``."""
        parts = {kind: call(part, "moved", seconds) for kind, part in self.parts.items()}
        return replace(self, parts=parts)

    def blank(self) -> Self:
        """Return all parts empty."""
        return replace(self, parts={kind: call(part, "blank") for kind, part in self.parts.items()})

    def augmented(self, rng: Any) -> Self:
        """Return each part randomly perturbed, as its kind defines."""
        parts = {kind: call(part, "augmented", rng) for kind, part in self.parts.items()}
        return replace(self, parts=parts)

    def span(self) -> tuple[float, float] | None:
        """Return the time from the first part's start to the last part's end."""
        spans = [found for part in self.parts.values() if (found := part.span()) is not None]
        if not spans:
            return None
        return min(start for start, _ in spans), max(end for _, end in spans)

    def marks(self, start: float, end: float) -> tuple[Mark, ...]:
        """Return each part's marks, with the part's kind in front of the text."""
        return tuple(
            replace(mark, text=f"{kind}: {mark.text}")
            for kind, part in self.parts.items()
            for mark in marks(part, start, end)
        )

    def __len__(self) -> int:
        return sum(map(len, self.parts.values()))


def kinds_of(name: str) -> dict[str, type[Signal]]:
    """Return the class of each kind in a recipe's ``signal``, which joins kinds by ``+``.

    Raises :class:`PluginError` for an unknown kind, :class:`SignalError` for a repeated one.
    """
    names = name.split(KIND_SEPARATOR)
    if len(set(names)) < len(names):
        raise SignalError(f"The signal {name!r} names a kind twice.")
    return {kind: plugins.get("signal", kind) for kind in names}


def controls_of(name: str) -> dict[str, Control]:
    """Return the controls of a recipe's ``signal``, by name.

    Every kind has :data:`COMMON_CONTROLS` and those that it declares. Several kinds have the
    controls that all of them have, applied to each part, and ``without_<kind>``, which blanks one
    part and keeps the others.
    """
    kinds = kinds_of(name)
    by_kind = {kind: _controls_of_kind(kind, cls) for kind, cls in kinds.items()}
    if len(kinds) == 1:
        return by_kind[name]
    common = set.intersection(*(set(of_kind) for of_kind in by_kind.values()))
    controls: dict[str, Control] = {}
    for name in sorted(common):
        controls[name] = _on_each_part({kind: found[name] for kind, found in by_kind.items()})
    for kind in kinds:
        controls[f"without_{kind}"] = _without(kind)
    return controls


def _controls_of_kind(kind: str, cls: type[Signal]) -> dict[str, Control]:
    controls = {**COMMON_CONTROLS, **cls.controls}
    return {name: checked(control, name, kind, cls) for name, control in controls.items()}


def _on_each_part(controls: Mapping[str, Control]) -> Control:
    """Return a control that applies ``controls`` to the parts of a signal, by kind."""

    def control(signal: Any, context: ControlContext) -> MultiSignal:
        parts = {}
        for kind, part in signal.parts.items():
            part_context = ControlContext(context.window, partial(_draw_part, context, kind))
            parts[kind] = controls[kind](part, part_context)
        return MultiSignal(parts)

    return control


def _draw_part(context: ControlContext, kind: str) -> tuple[Signal, tuple[float, float]]:
    drawn: Any
    drawn, window = context.draw()
    return drawn.parts[kind], window


def _without(blanked: str) -> Control:
    """Return the control that blanks the part of kind ``blanked``."""

    def control(signal: Any, context: ControlContext) -> MultiSignal:
        parts = {
            kind: call(part, "blank") if kind == blanked else part
            for kind, part in signal.parts.items()
        }
        return MultiSignal(parts)

    return control

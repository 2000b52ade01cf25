"""Several kinds of signal of one clip, read and controlled together: ``gaze+hand`` in a recipe."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Self

from modulate import plugins
from modulate.errors import SignalError
from modulate.interfaces.signal import Control, ControlContext, Mark, Signal

JOINED = "+"


@dataclass(frozen=True)
class MultiSignal(Signal):
    """Signals of one clip by kind. Every operation is done to each of them."""

    kind: ClassVar[str] = "bundle"
    controls: ClassVar[Mapping[str, Control]] = {}

    parts: Mapping[str, Signal]

    @classmethod
    def read(cls, path: Path) -> Self:
        """Refuse: each part has a file of its own."""
        raise SignalError(
            f"{path}: a bundle of signals is read part by part, each from a file of its own."
        )

    def within(self, start: float, end: float) -> Self:
        """Keep of each part what overlaps [start, end] seconds."""
        return replace(
            self, parts={kind: part.within(start, end) for kind, part in self.parts.items()}
        )

    def moved(self, seconds: float) -> Self:
        """Shift all parts by ``seconds``."""
        return replace(self, parts={kind: part.moved(seconds) for kind, part in self.parts.items()})

    def blank(self) -> Self:
        """Return the bundle of empty signals."""
        return replace(self, parts={kind: part.blank() for kind, part in self.parts.items()})

    def augmented(self, rng: Any) -> Self:
        """Perturb each part as its kind does."""
        return replace(self, parts={kind: part.augmented(rng) for kind, part in self.parts.items()})

    def marks(self, start: float, end: float) -> tuple[Mark, ...]:
        """Return each part's marks, with the part's kind in front of their text."""
        found = (
            (kind, mark) for kind, part in self.parts.items() for mark in part.marks(start, end)
        )
        return tuple(replace(mark, text=f"{kind}: {mark.text}") for kind, mark in found)

    def __len__(self) -> int:
        return sum(map(len, self.parts.values()))


def kinds_of(name: str) -> dict[str, type[Signal]]:
    """Return the kinds that a recipe's ``signal`` names, joined by ``+``.

    Raises PluginError for unknown ones, :class:`SignalError` for repeated ones.
    """
    names = name.split(JOINED)
    if len(set(names)) < len(names):
        raise SignalError(f"The signal {name!r} names a kind twice.")
    return {kind: plugins.get("signal", kind) for kind in names}


def controls_of(name: str) -> dict[str, Control]:
    """Return the controls of a recipe's ``signal``.

    For several kinds those that all of them have, done to each; and ``without_<kind>``, which
    blanks one and keeps the others.
    """
    kinds = kinds_of(name)
    if len(kinds) == 1:
        return dict(kinds[name].controls)
    common = set.intersection(*(set(kind.controls) for kind in kinds.values()))
    found: dict[str, Control] = {
        control: _each({kind: cls.controls[control] for kind, cls in kinds.items()})
        for control in sorted(common)
    }
    return found | {f"without_{kind}": _without(kind) for kind in kinds}


def _each(controls: Mapping[str, Control]) -> Control:
    def control(signal: Any, context: ControlContext) -> MultiSignal:
        return MultiSignal(
            {
                kind: controls[kind](
                    part, ControlContext(context.window, partial(_part, context, kind))
                )
                for kind, part in signal.parts.items()
            }
        )

    return control


def _part(context: ControlContext, kind: str) -> tuple[Signal, tuple[float, float]]:
    other: Any
    other, window = context.draw()
    return other.parts[kind], window


def _without(left_out: str) -> Control:
    def control(signal: Any, context: ControlContext) -> MultiSignal:
        return MultiSignal(
            {
                kind: part.blank() if kind == left_out else part
                for kind, part in signal.parts.items()
            }
        )

    return control

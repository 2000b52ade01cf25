"""What a side signal is: time-stamped information about one clip, read from a file, with the
controls that its kind declares.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

MAX_SECONDS = 1e7
"""Times from here on, 115 days, are no seconds of a video but what a clock showed, or another unit,
or damage.
"""


ANY = "any"
"""The kind of a stand-in whose values are never looked at; it goes with every encoder."""


@dataclass(frozen=True)
class ControlContext:
    """What a control may use: the clip's window in seconds, and ``draw()``, the signal and window
    of a sample of another video (for shuffling).
    """

    window: tuple[float, float]
    draw: Callable[[], tuple["Signal", tuple[float, float]]]


Control = Callable[[Any, ControlContext], "Signal"]


@dataclass(frozen=True)
class Mark:
    """Where on a frame a signal is, for pictures. ``x``, ``y``: fractions of the frame, origin
    top-left; ``text``: what it is, for those who cannot see it.
    """

    x: float
    y: float
    text: str


class Signal(ABC):
    """Time-stamped side information, in seconds of the video's own clock. Immutable: every method
    returns a new signal.

    Its numbers are finite: what was not measured is left out.

    ``kind`` is the registered name. ``controls`` maps a control's name to a function (signal,
    context) → signal; ``blank`` and ``shuffled`` exist for every kind, others (``centre``,
    ``shifted`` …) are what the kind makes of them.
    """

    kind: ClassVar[str]
    controls: ClassVar[Mapping[str, Control]]

    @classmethod
    @abstractmethod
    def read(cls, path: Path) -> Self:
        """Read a file in the kind's usual format.

        Raises :class:`~modulate.errors.SignalError`, naming file and line.
        """

    @abstractmethod
    def within(self, start: float, end: float) -> Self:
        """Keep what overlaps [start, end] seconds; times stay as they are."""

    @abstractmethod
    def moved(self, seconds: float) -> Self:
        """Shift all times by ``seconds``."""

    @abstractmethod
    def blank(self) -> Self:
        """Return the empty signal of this kind."""

    @abstractmethod
    def __len__(self) -> int:
        """Number of events (fixations, samples …); 0 means there is nothing to inject."""

    def augmented(self, rng: Any) -> Self:
        """Return a randomly perturbed copy for training (``rng``: :class:`random.Random`); by
        default the signal itself.
        """
        return self

    def marks(self, start: float, end: float) -> tuple[Mark, ...]:
        """Return where on the frame the signal is during [start, end] seconds, in order, for
        pictures; by default a kind has no place to show.
        """
        return ()


def blank(signal: Signal, context: ControlContext) -> Signal:
    """Control: the same clip with an empty signal."""
    return signal.blank()


def shuffled(signal: Signal, context: ControlContext) -> Signal:
    """Control: another sample's signal, moved in time so that the ends of both windows coincide."""
    other, window = context.draw()
    return other.moved(context.window[1] - window[1]).within(*context.window)


COMMON_CONTROLS: dict[str, Control] = {"blank": blank, "shuffled": shuffled}

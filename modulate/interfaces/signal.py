"""Side signals: time-stamped information about a clip, and the controls that a kind declares."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from modulate.errors import SignalError

if TYPE_CHECKING:  # reading a recipe imports this module, and must not wait for numpy
    from numpy.typing import ArrayLike

MAX_SECONDS = 1e7
"""Limit (s) of an event's time, 115 days: a larger number is a clock time, another unit, or damage.
"""

ANY = "any"
"""The kind of a placeholder signal whose values are never read; every encoder accepts it."""


@dataclass(frozen=True)
class ControlContext:
    """What a control may use besides the signal.

    Attributes:
        window: (start, end) of the clip in seconds.
        draw: returns the signal and the window of a sample of another video, for shuffling.
    """

    window: tuple[float, float]
    draw: Callable[[], tuple["Signal", tuple[float, float]]]


Control = Callable[[Any, ControlContext], "Signal"]


@dataclass(frozen=True)
class Mark:
    """A point of a signal on a frame, for pictures.

    Attributes:
        x, y: position as a fraction of the frame's width and height, origin top-left.
        text: description, for readers who cannot see the picture.
    """

    x: float
    y: float
    text: str


@dataclass(frozen=True, eq=False)
class RawSamples:
    """Samples of a recorder at a constant rate, before a kind makes a signal of them.

    Attributes:
        values: (sample, channel) numbers; for gaze x and y in fractions of the frame, origin
            top-left. A row with NaN was not measured.
        rate: samples per second.
        start: time of the first sample in seconds of the video.
    """

    values: "ArrayLike"
    rate: float
    start: float = 0.0


class Signal(ABC):
    """Time-stamped side information, in seconds of the video's own clock.

    Immutable: every method returns a new signal. All numbers are finite: missing measurements are
    left out.

    Attributes:
        kind: the registered name.
        controls: functions (signal, context) → signal, by name: those that the kind adds to
            ``blank`` and ``shuffled`` (:data:`COMMON_CONTROLS`), which every kind has, such as
            ``shifted``. Reports explain a control by the first paragraph of its docstring, which
            reads ``Control: <what the signal is>.``
    """

    kind: ClassVar[str]
    controls: ClassVar[Mapping[str, Control]] = {}

    @classmethod
    @abstractmethod
    def read(cls, path: Path) -> Self:
        """Read a file in the kind's usual format.

        Raises :class:`~modulate.errors.SignalError`, naming file and line.
        """

    @classmethod
    def from_samples(cls, samples: RawSamples) -> Self:
        """Return the signal in a recorder's samples.

        By default raises :class:`~modulate.errors.SignalError`: not every kind is sampled.
        """
        raise SignalError(
            f"A {cls.__name__} cannot be made of raw samples. Build the signal itself, or read its"
            " file."
        )

    @abstractmethod
    def within(self, start: float, end: float) -> Self:
        """Return the events that overlap [start, end] seconds, with their times unchanged."""

    @abstractmethod
    def moved(self, seconds: float) -> Self:
        """Return the signal with all times shifted by ``seconds``."""

    @abstractmethod
    def blank(self) -> Self:
        """Return the empty signal of this kind."""

    @abstractmethod
    def __len__(self) -> int:
        """Number of events (fixations, samples …); 0 for an empty signal."""

    def span(self) -> tuple[float, float] | None:
        """Return the (start, end) of the events in seconds; None if there are none.

        By default None: a kind need not know.
        """
        return None

    def augmented(self, rng: Any) -> Self:
        """Return a randomly perturbed copy for training; by default the signal itself.

        ``rng``: a :class:`random.Random`.
        """
        return self

    def marks(self, start: float, end: float) -> tuple[Mark, ...]:
        """Return points on the frame during [start, end] seconds, in order, for pictures.

        By default none: not every kind has a position.
        """
        return ()


def blank(signal: Signal, context: ControlContext) -> Signal:
    """Control: the same clip with an empty signal."""
    return signal.blank()


def shuffled(signal: Signal, context: ControlContext) -> Signal:
    """Control: the signal of another video, shifted in time so that both windows end together."""
    other, other_window = context.draw()
    return other.moved(context.window[1] - other_window[1]).within(*context.window)


COMMON_CONTROLS: dict[str, Control] = {"blank": blank, "shuffled": shuffled}

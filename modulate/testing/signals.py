"""The contract of a kind of signal."""

import inspect
import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar

from modulate import plugins
from modulate.errors import ComponentError, SignalError
from modulate.interfaces.multi_signal import controls_of
from modulate.interfaces.signal import ControlContext, Mark, Signal
from modulate.interfaces.signal_checks import check_signal
from modulate.testing.contract import require, same, state

SHIFT = 64.0
"""Seconds by which rows move signals; a power of two, so that times lose little to rounding."""

ROUNDING = 1e-6
"""Seconds that times may differ by after they were moved."""

EVER = (-1e6, 1e6)
"""A window, in seconds, that holds every event."""

GARBAGE = b"\x00\xff\xfe;not a signal\r\n\x80" * 3


class SignalContract:
    r"""Rows that every kind of signal must pass.

    Derive a class whose name begins with ``Test``, and run pytest::

        class TestPupil(modulate.SignalContract):
            kind = "pupil"
            example = "seconds,diameter\n0.5,3.1\n1.5,3.4\n2.5,3.3\n"

    Attributes:
        kind: the registered name.
        example: content of a file with three or more events between 0 and 4 s, as text or bytes.
        suffix: of that file's name.
    """

    kind: ClassVar[str]
    example: ClassVar[str | bytes]
    suffix: ClassVar[str] = ".csv"

    @property
    def cls(self) -> type[Signal]:
        """The registered class."""
        found: type[Signal] = plugins.get("signal", self.kind)
        return found

    def signal(self) -> Signal:
        """Return the signal in the example."""
        return read_text(self.cls, self.example, self.suffix)

    def checked(self, method: str, call: Callable[[], Any]) -> Any:
        """Return the signal that ``call`` returns; fail if it is of another kind."""
        try:
            with plugins.registry().blame("signal", self.kind, method):
                return check_signal(call(), self.cls, method)
        except ComponentError as error:
            raise AssertionError(str(error)) from error

    # --- rows

    def test_it_is_registered_under_its_kind(self) -> None:
        """The class that is registered as a kind says so in ``kind``."""
        require(issubclass(self.cls, Signal), f"{self.cls.__name__} does not derive from Signal")
        kind = getattr(self.cls, "kind", None)
        require(
            kind == self.kind,
            f"{self.cls.__name__} is registered as {self.kind!r}, but its `kind` is {kind!r}",
        )

    def test_it_is_read_from_a_file(self) -> None:
        """``read`` returns the events of a file, the same ones every time."""
        signal = self.checked("read", self.signal)
        require(len(signal) >= 3, f"the example has {len(signal)} events; rows need three or more")
        require(same(signal, self.signal()), "reading one file twice gives different signals")

    def test_a_file_of_something_else_is_a_signal_error(self) -> None:
        """``read`` raises SignalError, naming the file, for what is no signal."""
        with TemporaryDirectory() as folder:
            path = Path(folder) / f"odd-file{self.suffix}"
            path.write_bytes(GARBAGE)
            try:
                found = self.cls.read(path)
            except SignalError as error:
                require(path.name in str(error), f"the SignalError does not name the file: {error}")
                return
            except Exception as error:
                raise AssertionError(
                    f"read raised {type(error).__name__} for a file that is no signal; raise"
                    f" modulate.SignalError, which names file and line ({error})."
                ) from error
        raise AssertionError(f"read made {found!r} of a file that is no signal; raise SignalError.")

    def test_within_returns_the_events_that_overlap(self) -> None:
        """``within`` leaves events out, and changes none of those that it returns."""
        signal = self.signal()
        everything = self.checked("within", lambda: signal.within(*EVER))
        require(
            same(everything, signal),
            f"within{EVER} leaves events out, or changes them: no event lies outside",
        )
        require(len(signal.within(1e5, 2e5)) == 0, "within(1e5, 2e5) returns events of 0 to 4 s")
        inner = signal.within(0.0, 4.0).within(1.0, 2.0)
        require(
            same(inner, signal.within(1.0, 2.0)),
            "within(0, 4).within(1, 2) differs from within(1, 2): `within` must not cut events or"
            " change their times",
        )
        require(
            same(inner.within(1.0, 2.0), inner), "within(1, 2) of its own result leaves events out"
        )
        parts = [len(signal.within(start, start + 1.0)) for start in (0.0, 1.0, 2.0, 3.0)]
        require(
            sum(parts) >= len(signal.within(0.0, 4.0)),
            f"within(0, 4) has {len(signal.within(0.0, 4.0))} events, its four seconds {parts}",
        )

    def test_moved_shifts_all_times(self) -> None:
        """``moved`` keeps every event, and shifts it by the seconds given."""
        signal = self.signal()
        moved = self.checked("moved", lambda: signal.moved(SHIFT))
        require(len(moved) == len(signal), f"moved gives {len(moved)} events of {len(signal)}")
        require(not same(moved, signal), f"moved({SHIFT:g}) changes nothing")
        require(same(signal.moved(0.0), signal, ROUNDING), "moved(0) is another signal")
        require(same(moved.moved(-SHIFT), signal, ROUNDING), "moved there and back is another one")
        there = moved.within(SHIFT + 1.05, SHIFT + 1.95)
        require(
            same(there.moved(-SHIFT), signal.within(1.05, 1.95), ROUNDING),
            f"moved({SHIFT:g}) has other events at {SHIFT:g} + t s than the signal has at t",
        )

    def test_blank_is_empty(self) -> None:
        """``blank`` has no events, and takes part in everything."""
        signal = self.signal()
        blank = self.checked("blank", signal.blank)
        require(len(blank) == 0, f"`blank` has {len(blank)} events; return a signal without any")
        for method, call in {
            "within": lambda: blank.within(0.0, 4.0),
            "moved": lambda: blank.moved(SHIFT),
            "augmented": lambda: blank.augmented(random.Random(0)),
            "blank": blank.blank,
        }.items():
            result = self.checked(method, call)
            require(len(result) == 0, f"{method} of a blank signal has {len(result)} events")
        require(blank.marks(0.0, 4.0) == (), "a blank signal has marks")

    def test_it_never_changes(self) -> None:
        """Every method returns a new signal."""
        signal = self.signal()
        before = state(signal)
        other = signal.moved(SHIFT).within(SHIFT, SHIFT + 2.0).augmented(random.Random(0))
        other.blank()
        signal.augmented(random.Random(0))
        signal.marks(0.0, 4.0)
        require(same(signal, before), "a method changed the signal itself; return a new one")
        require(same(state(signal), before), "a deep copy differs from the signal")

    def test_augmented_is_one_of_its_kind(self) -> None:
        """``augmented`` depends on nothing but the signal and ``rng``."""
        signal = self.signal()
        random.seed(0)
        expected_draw = random.random()
        random.seed(0)
        first = self.checked("augmented", lambda: signal.augmented(random.Random(1)))
        require(
            random.random() == expected_draw,
            "augmented draws from the `random` module; use `rng`, or runs cannot be repeated",
        )
        require(same(first, signal.augmented(random.Random(1))), "one rng gives different signals")
        require(len(first) > 0, "augmented leaves no event, as `blank` does")

    def test_controls_return_signals_of_the_kind(self) -> None:
        """Every control works on a signal and on an empty one, and says what it is."""
        window = (0.0, 4.0)
        signal = self.signal().within(*window)
        drawn = signal.moved(SHIFT)
        context = ControlContext(window, lambda: (drawn, (SHIFT, SHIFT + 4.0)))
        controls = controls_of(self.kind)
        for name, control in controls.items():
            for given in (signal, signal.blank()):
                self.checked(f"the control {name!r}", partial(control, given, context))
            first = (inspect.getdoc(control) or "").partition("\n\n")[0]
            require(
                first.startswith("Control: "),
                f"the docstring of the control {name!r} does not begin with 'Control: <what the"
                " signal is>.', which reports show",
            )
        require(
            same(controls["shuffled"](signal.blank(), context), signal, ROUNDING),
            "`shuffled` is not the other video's signal, moved into the clip's window",
        )

    def test_marks_lie_on_the_frame(self) -> None:
        """``marks`` are points as fractions of the frame, for pictures."""
        marks = self.signal().marks(0.0, 4.0)
        require(
            isinstance(marks, tuple) and all(isinstance(mark, Mark) for mark in marks),
            f"marks returned {marks!r}; it must return a tuple of Mark",
        )
        for mark in marks:
            require(
                -1.0 <= mark.x <= 2.0 and -1.0 <= mark.y <= 2.0,
                f"{mark} lies far outside the frame; x and y are fractions of width and height",
            )

    def test_span_is_that_of_the_events(self) -> None:
        """``span`` is None, or holds all events."""
        signal = self.signal()
        span = signal.span()
        if span is None:
            return
        require(span[0] <= span[1], f"the span {span} ends before it starts")
        require(same(signal.within(*span), signal), f"events lie outside the span {span}")
        moved = signal.moved(SHIFT).span()
        shifted = (span[0] + SHIFT, span[1] + SHIFT)
        require(
            same(moved, shifted, ROUNDING), f"moved({SHIFT:g}) has the span {moved}, not {shifted}"
        )
        require(signal.blank().span() is None, "a blank signal has a span; return None")


def read_text(cls: type[Signal], text: str | bytes, suffix: str) -> Signal:
    """Return the signal of class ``cls`` in a file with the content ``text``."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / f"example{suffix}"
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return cls.read(path)

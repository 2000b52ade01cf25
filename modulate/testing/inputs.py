"""The contract of an input transform."""

from typing import ClassVar

import numpy as np

from modulate import plugins
from modulate.interfaces.components import HostInput, InputTransform
from modulate.interfaces.frames import Frames
from modulate.interfaces.result_checks import check_host_input
from modulate.interfaces.signal import Signal
from modulate.testing.contract import ComponentContract, require, same, state
from modulate.testing.signals import read_text

WINDOW = (0.0, 4.0)


class InputContract(ComponentContract):
    r"""Rows that every input transform must pass.

    Derive a class whose name begins with ``Test``, and run pytest::

        class TestPupilTold(modulate.InputContract):
            name = "pupil_told"
            example = "seconds,diameter\n0.5,3.1\n1.5,3.4\n2.5,3.3\n"

    Attributes:
        name, params: see :class:`ComponentContract`.
        example: content of a file of the transform's kind of signal, with events between 0 and 4 s.
        suffix: of that file's name.
    """

    component_kind = "input"
    example: ClassVar[str | bytes]
    suffix: ClassVar[str] = ".csv"

    def signal(self) -> Signal:
        """Return a signal with events between 0 and 4 s."""
        kind = plugins.get("signal", self.build().signal_kind)
        return read_text(kind, self.example, self.suffix)

    def given(self, size: tuple[int, int] = (48, 64)) -> HostInput:
        """Return a user's turn of eight random frames."""
        images = np.random.default_rng(0).integers(0, 256, (8, *size, 3), np.uint8)
        times = tuple(0.5 * index for index in range(8))
        return HostInput(Frames(images, times), "Question: What is it?")

    def call(self, transform: InputTransform, given: HostInput, signal: Signal) -> HostInput:
        """Return the changed turn; fail if it breaks the interface."""
        with self.blame("call"):
            return check_host_input(transform(given, signal, WINDOW))

    # --- rows

    def test_it_shows_the_signal(self) -> None:
        """A turn with a signal differs from the turn without, on frames of any size."""
        transform = self.build()
        for size in ((48, 64), (64, 48), (32, 96)):
            given = self.given(size)
            changed = self.call(transform, given, self.signal())
            require(not same(changed, given), "the turn is the same as without the signal")

    def test_another_signal_gives_another_turn(self) -> None:
        """What the host sees depends on the signal."""
        transform = self.build()
        own = self.call(transform, self.given(), self.signal())
        blank = self.call(transform, self.given(), self.signal().blank())
        require(not same(own, blank), "a blank signal gives the same turn as the example")

    def test_it_changes_nothing_that_it_is_given(self) -> None:
        """The turn and the signal are as before, to the pixel: other conditions use them too."""
        given, signal = self.given(), self.signal()
        before = state((given, signal))
        self.call(self.build(), given, signal)
        require(
            same((given, signal), before),
            "the call changed its arguments; copy the frames before drawing on them",
        )

    def test_it_keeps_the_question(self) -> None:
        """The text still holds the question, and there is a time for every frame."""
        given = self.given()
        changed = self.call(self.build(), given, self.signal())
        require(given.text in changed.text, f"the question is lost: {changed.text!r}")

    def test_it_keeps_nothing_between_calls(self) -> None:
        """The turn depends on the arguments alone."""
        transform = self.build()
        first = self.call(transform, self.given(), self.signal())
        self.call(transform, self.given((64, 48)), self.signal().moved(1.0))
        again = self.call(transform, self.given(), self.signal())
        require(same(first, again), "the same turn and signal give different results")

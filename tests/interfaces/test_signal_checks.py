"""Methods and controls of a kind that break its interface are named with their plugin."""

from dataclasses import dataclass

import pytest

from modulate import Signal, plugins
from modulate.errors import ComponentError, DataError
from modulate.interfaces.multi_signal import MultiSignal, controls_of
from modulate.interfaces.signal import COMMON_CONTROLS, ControlContext, Mark
from modulate.interfaces.signal_checks import call, marks
from modulate_gaze.scanpath import Scanpath
from tests.test_plugins import plugin

GUILTY = "signal 'odd' of plugin 'odd_plugin'"
CONTEXT = ControlContext((0.0, 4.0), lambda: (Scanpath(), (0.0, 4.0)))


@dataclass(frozen=True)
class Odd(Signal):
    """A kind whose methods return what they are told to."""

    returned: object = None

    kind = "odd"

    @classmethod
    def read(cls, path):
        return cls()

    def within(self, start, end):
        return self.returned

    def moved(self, seconds):
        raise ZeroDivisionError("in moved")

    def blank(self):
        return self

    def augmented(self, rng):
        raise DataError("meant")

    def marks(self, start, end):
        return self.returned

    def __len__(self):
        return 3


@pytest.fixture
def registered(monkeypatch):
    plugins.registry().add("odd_plugin", plugin("register_signals", "odd", Odd))
    yield
    plugins.registry().remove("odd_plugin")


@pytest.mark.parametrize(
    ("method", "arguments", "text"),
    [
        ("within", (0.0, 1.0), "returned None from within; it must return a Odd"),
        ("moved", (1.0,), "failed in moved: ZeroDivisionError: in moved"),
        (
            "blank",
            (),
            "has 3 events in its blank signal; `blank` must return one whose length is 0",
        ),
    ],
)
def test_a_method_is_named_with_kind_and_plugin(method, arguments, text, registered):
    with pytest.raises(ComponentError, match=f"{GUILTY} {text}"):
        call(Odd(), method, *arguments)
    with pytest.raises(ComponentError, match=f"{GUILTY} {text}"):
        getattr(MultiSignal({"odd": Odd(), "gaze": Scanpath()}), method)(*arguments)


def test_errors_that_are_meant_pass_through(registered):
    with pytest.raises(DataError, match=r"^meant$"):
        call(Odd(), "augmented", None)


def test_marks_are_checked(registered):
    assert marks(Odd((Mark(0, 0, "x"),)), 0.0, 1.0) == (Mark(0, 0, "x"),)
    for wrong in (None, [Mark(0, 0, "x")], ((0, 0, "x"),)):
        with pytest.raises(ComponentError, match=f"{GUILTY} returned .* from marks"):
            marks(Odd(wrong), 0.0, 1.0)


def test_a_result_of_a_base_class_of_the_instance_is_fine():
    class Mine(Scanpath):
        def within(self, start, end):
            return Scanpath(self.fixations)

    assert isinstance(call(Mine(), "within", 0.0, 1.0), Scanpath)


def test_a_kind_without_controls_has_the_common_ones_and_they_are_checked(registered):
    assert controls_of("odd").keys() == COMMON_CONTROLS.keys() == {"blank", "shuffled"}
    with pytest.raises(ComponentError, match=f"{GUILTY} has 3 events in its blank signal"):
        controls_of("odd")["blank"](Odd(), CONTEXT)
    with pytest.raises(
        ComponentError,
        match=f"{GUILTY} returned a value of type Scanpath from the control 'shuffled'",
    ):
        controls_of("odd")["shuffled"](Odd(), CONTEXT)


def test_of_several_kinds_the_guilty_one_is_named(registered):
    both = MultiSignal({"odd": Odd(), "gaze": Scanpath()})
    with pytest.raises(ComponentError, match=f"{GUILTY} has 3 events in its blank signal"):
        controls_of("gaze+odd")["blank"](both, CONTEXT)
    assert controls_of("gaze+odd").keys() == {"blank", "shuffled", "without_gaze", "without_odd"}

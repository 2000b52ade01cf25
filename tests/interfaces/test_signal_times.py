"""Signals whose events all lie outside of their clip are named with both times."""

import warnings

import numpy as np
import pytest

from modulate.errors import SignalWarning
from modulate.interfaces.multi_signal import MultiSignal
from modulate.interfaces.signal_times import outside_of, warn_if_outside
from modulate_gaze.scanpath import Scanpath

LATE = Scanpath(np.array([[0.5, 0.5, 1000.5, 1.0], [0.5, 0.5, 1009.5, 1.0]]))
EARLY = Scanpath(np.array([[0.5, 0.5, 0.5, 1.0]]))


class Unmeasured(Scanpath):
    """A kind that does not know when its events are."""

    def span(self):
        return None


def test_a_signal_with_events_at_other_times_is_named_with_both_times():
    assert outside_of(LATE, 0.0, 4.0) == (
        "none of the 2 events of the gaze signal, at 1000.00 to 1010.00 s, lies within 0.00 to"
        " 4.00 s"
    )
    assert outside_of(LATE, 1010.5, 1011.0) is not None
    unmeasured = Unmeasured(LATE.fixations)
    assert outside_of(unmeasured, 0.0, 4.0) == (
        "none of the 2 events of the gaze signal lies within 0.00 to 4.00 s"
    )


def test_one_event_is_enough_and_an_empty_signal_is_none_of_it():
    assert outside_of(EARLY, 0.0, 4.0) is None
    assert outside_of(LATE, 0.0, 1000.0) is None
    assert outside_of(LATE.blank(), 0.0, 4.0) is None


def test_of_several_signals_each_is_looked_at_alone():
    assert outside_of(MultiSignal({"gaze": EARLY, "hand": EARLY}), 0.0, 4.0) is None
    found = outside_of(MultiSignal({"gaze": EARLY, "hand": LATE}), 0.0, 4.0)
    assert found.startswith("none of the 2 events of the hand signal")
    assert outside_of(MultiSignal({"gaze": EARLY, "hand": LATE.blank()}), 0.0, 4.0) is None


def test_the_warning_names_the_clip_and_its_caller():
    with pytest.warns(SignalWarning, match=r"^Clip 3: none of the 2 .* on another clock") as caught:
        assert warn_if_outside(LATE, (0.0, 4.0), "Clip 3")
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not warn_if_outside(EARLY, (0.0, 4.0), "Clip 3")
        assert not warn_if_outside(None, (0.0, 4.0), "Clip 3")

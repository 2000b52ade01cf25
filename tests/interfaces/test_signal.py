"""The controls common to all kinds of signal, and the defaults of a kind."""

import random

import numpy as np

from modulate.interfaces.signal import COMMON_CONTROLS, ControlContext, Signal
from modulate_gaze.scanpath import Scanpath

OWN = Scanpath(np.array([[0.2, 0.7, 11.0, 1.0]]))
OTHER = Scanpath(np.array([[0.1, 0.1, 1.0, 0.5], [0.2, 0.2, 4.0, 0.5], [0.3, 0.3, 9.0, 0.5]]))
CONTEXT = ControlContext((10.0, 14.0), lambda: (OTHER, (0.0, 5.0)))


def test_blank_has_no_events():
    assert len(COMMON_CONTROLS["blank"](OWN, CONTEXT)) == 0


def test_shuffled_is_the_other_sample_s_signal_with_both_windows_ending_together():
    shuffled = COMMON_CONTROLS["shuffled"](OWN, CONTEXT)
    # The event at 9 s would lie after the end, and is left out.
    assert shuffled.fixations.tolist() == [[0.1, 0.1, 10.0, 0.5], [0.2, 0.2, 13.0, 0.5]]


def test_a_kind_that_defines_no_marks_and_no_augmentation_has_none():
    assert Signal.marks(OWN, 0.0, 20.0) == () and Signal.augmented(OWN, random.Random(0)) is OWN

"""The scanpath: its content, refused input, controls, augmentation."""

import copy
import random
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modulate.errors import SignalError
from modulate.interfaces.signal import ControlContext
from modulate_gaze.scanpath import Augmentation, Scanpath

ROWS = [(0.1, 0.2, 1.0, 2.0), (0.3, 0.4, 5.0, 1.0), (0.5, 0.6, 9.0, 1.0)]


def context(window=(0.0, 10.0), other=None, other_window=(0.0, 10.0)):
    return ControlContext(window, lambda: (other or Scanpath(), other_window))


def looking_at(scanpath, time):
    """Return the gaze at a time, by a loop over all fixations."""
    return [(x, y) for x, y, t, d in scanpath.fixations.tolist() if t - d / 2 < time < t + d / 2]


def test_a_scanpath_cannot_be_changed():
    scanpath = Scanpath(ROWS)
    with pytest.raises(ValueError, match="read-only"):
        scanpath.fixations[0, 0] = 0.9
    with pytest.raises(AttributeError):
        scanpath.fixations = np.zeros((0, 4))


def test_the_array_it_was_made_from_stays_the_callers_own():
    rows = np.array(ROWS)
    scanpath = Scanpath(rows)
    rows[0, 0] = 0.9
    assert scanpath.fixations[0, 0] == 0.1


def test_it_survives_deep_copies_and_so_the_way_to_worker_processes():
    scanpath = Scanpath(ROWS[::-1])
    twin = copy.deepcopy(scanpath)
    assert twin == scanpath and twin.n_resorted == 2


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            [(0.1, 0.2, 1.0)],
            (
                "A scanpath has four values for each fixation (x, y, midpoint s, duration s); got"
                " an array of shape (1, 3)."
            ),
        ),
        (
            [0.1, 0.2, 1.0, 1.0],
            (
                "A scanpath has four values for each fixation (x, y, midpoint s, duration s); got"
                " an array of shape (4,)."
            ),
        ),
        (
            [ROWS[0], (0.1, 0.2, float("nan"), 1.0)],
            "Fixation 1: midpoint nan is not finite. Leave such fixations out.",
        ),
        (
            [(0.1, 0.2, 1.0, -0.5)],
            "Fixation 0: duration -0.5 is negative. Durations are seconds ≥ 0.",
        ),
        (
            [(640.0, 0.2, 1.0, 0.5)],
            (
                "Fixation 0: x 640.0 looks like pixels; divide by the frame's width so that"
                " positions lie in [0, 1], origin top-left."
            ),
        ),
    ],
)
def test_impossible_fixations_are_refused(rows, message):
    with pytest.raises(SignalError, match=re.escape(message)):
        Scanpath(rows)


def test_within_keeps_whole_what_overlaps_the_stretch():
    assert Scanpath(ROWS).within(1.5, 4.6).fixations.tolist() == [list(ROWS[0]), list(ROWS[1])]
    assert len(Scanpath(ROWS).within(2.1, 4.4)) == 0


def test_moved_shifts_times_only():
    assert Scanpath(ROWS).moved(-3.0).fixations[:, 2].tolist() == [-2.0, 2.0, 6.0]
    assert (
        Scanpath(ROWS).moved(-3.0).fixations[:, [0, 1, 3]] == np.array(ROWS)[:, [0, 1, 3]]
    ).all()


def test_copies_remember_how_many_fixations_were_out_of_order():
    scanpath = Scanpath([ROWS[1], ROWS[0], ROWS[2]])
    assert [
        s.n_resorted
        for s in (
            scanpath,
            scanpath.moved(1),
            scanpath.within(0, 2),
            scanpath.blank(),
            scanpath.augmented(random.Random(0)),
        )
    ] == [1] * 5


def test_every_control_of_the_design_is_there():
    assert sorted(Scanpath.controls) == ["blank", "centre", "shifted", "shuffled"]


def test_blank_has_no_fixations():
    assert len(Scanpath.controls["blank"](Scanpath(ROWS), context())) == 0


def test_shuffled_is_the_other_samples_scanpath_ending_with_this_window():
    other = Scanpath([(0.9, 0.9, 95.0, 4.0), (0.8, 0.8, 80.0, 1.0)])
    assert Scanpath.controls["shuffled"](
        Scanpath(ROWS), context((0, 10), other, (40, 100))
    ).fixations.tolist() == [[0.9, 0.9, 5.0, 4.0]]


def test_centre_keeps_times_and_puts_every_fixation_in_the_middle():
    control = Scanpath.controls["centre"](Scanpath(ROWS), context()).fixations
    assert (control[:, :2] == 0.5).all() and (control[:, 2:] == np.array(ROWS)[:, 2:]).all()


def test_shifted_moves_by_half_the_window_and_splits_what_crosses_its_edge():
    control = Scanpath.controls["shifted"](Scanpath(ROWS), context()).fixations
    expected = [
        (0.3, 0.4, 0.25, 0.5),
        (0.5, 0.6, 4.0, 1.0),
        (0.1, 0.2, 6.0, 2.0),
        (0.3, 0.4, 9.75, 0.5),
    ]
    assert np.allclose(control, expected)


def test_shifted_leaves_a_window_without_length_alone():
    assert Scanpath.controls["shifted"](Scanpath(ROWS), context((3.0, 3.0))) == Scanpath(ROWS)


def test_shifted_does_not_bring_in_what_only_touches_the_window():
    touching = Scanpath([(0.1, 0.1, -1.0, 2.0), (0.2, 0.2, 11.0, 2.0)])
    assert len(Scanpath.controls["shifted"](touching, context())) == 0


fixations = st.lists(
    st.tuples(st.floats(0, 1), st.floats(0, 1), st.floats(-5, 25), st.floats(0, 12)), max_size=6
)


@settings(deadline=None, max_examples=100)
@given(fixations, st.floats(-3, 8), st.floats(0.5, 15))
def test_shifted_shows_at_every_moment_what_was_looked_at_half_a_window_away(rows, begin, length):
    scanpath = Scanpath(rows)
    window = (begin, begin + length)
    control = Scanpath.controls["shifted"](scanpath, context(window))
    edges = [b for s in (scanpath, control) for b in (*s.starts, *s.ends)] + [
        *window,
        begin + length / 2,
    ]
    for index in range(64):
        time = begin + (index + 0.417) / 64 * length
        source = begin + (time - begin + length / 2) % length
        if min(abs(edge - t) for edge in edges for t in (time, source)) > 1e-6:
            assert sorted(looking_at(control, time)) == sorted(looking_at(scanpath, source))


def test_augmentation_is_repeatable_and_perturbs_positions_only():
    a, b = (Scanpath(ROWS).augmented(random.Random(3), Augmentation(drop=0.0)) for _ in range(2))
    assert a == b and a != Scanpath(ROWS)
    assert (a.fixations[:, 2:] == np.array(ROWS)[:, 2:]).all()


def test_augmentation_noise_has_the_stated_strength_and_drop_rate():
    scanpath = Scanpath([(0.5, 0.5, float(index), 1.0) for index in range(4000)])
    changed = scanpath.augmented(random.Random(0)).fixations
    assert abs(len(changed) / 4000 - 0.9) < 0.02
    assert abs(changed[:, :2].std() - 0.02) < 0.001 and abs(changed[:, :2].mean() - 0.5) < 0.001


def test_augmentation_keeps_at_least_one_fixation_and_none_of_none():
    assert len(Scanpath(ROWS).augmented(random.Random(0), Augmentation(drop=1.0))) == 1
    assert len(Scanpath().augmented(random.Random(0))) == 0


def test_augmentation_keeps_gaze_in_the_frame_there_and_pulls_none_in_from_outside():
    scanpath = Scanpath(
        [(0.0, 1.0, float(index), 1.0) for index in range(50)]
        + [(-0.4, 1.5, float(index), 1.0) for index in range(50)]
    )
    changed = scanpath.augmented(random.Random(0), Augmentation(sigma=0.05, drop=0.0)).fixations
    assert (changed[::2, 0] >= 0).all() and (changed[::2, 1] <= 1).all()
    assert (changed[1::2, 0] < 0).all() and (changed[1::2, 1] > 1).all()

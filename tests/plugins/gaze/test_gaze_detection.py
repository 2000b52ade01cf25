"""Fixations in samples of a recorder, against scanpaths whose truth is known."""

import numpy as np
import pytest

from modulate.errors import SignalError
from modulate.interfaces.signal import RawSamples
from modulate_gaze.detection import detect_fixations
from modulate_gaze.scanpath import Scanpath
from modulate_hand.path import HandPath

PLACES = [(0.2, 0.3), (0.7, 0.6), (0.4, 0.9)]
SECONDS = [0.3, 0.5, 0.2]


def recorded(rate, noise=0.0, seed=0):
    """Return samples of three fixations, one after the other, with saccades of one sample."""
    rng = np.random.default_rng(seed)
    rows = []
    for index, (place, seconds) in enumerate(zip(PLACES, SECONDS, strict=True)):
        if index:
            rows.append((np.array(PLACES[index - 1]) + place) / 2)
        rows += [np.array(place)] * round(seconds * rate)
    return np.array(rows) + rng.normal(0.0, noise, (len(rows), 2))


@pytest.mark.parametrize("rate", [30.0, 60.0, 200.0])
def test_fixations_are_found_at_their_places_and_times(rate):
    found = detect_fixations(RawSamples(recorded(rate, noise=0.002), rate, start=2.0))
    assert found.shape == (3, 4)
    assert np.abs(found[:, :2] - PLACES).max() < 0.005
    # A saccade's sample may be within reach of neither of its neighbors.
    starts = 2.0 + np.cumsum([0.0, *SECONDS[:-1]]) + np.arange(3) / rate
    assert np.abs(found[:, 2] - found[:, 3] / 2 - starts).max() < 1.5 / rate
    assert np.abs(found[:, 3] - SECONDS).max() < 1.5 / rate


def test_a_lost_sample_is_bridged_and_a_long_gap_ends_the_fixation():
    values = recorded(60.0)[:18].copy()
    values[9] = np.nan
    assert len(detect_fixations(RawSamples(values, 60.0))) == 1
    long = np.tile(PLACES[0], (60, 1))
    long[25:35] = np.nan
    first, second = detect_fixations(RawSamples(long, 60.0))
    assert first[2] + first[3] / 2 == pytest.approx(25 / 60)
    assert second[2] - second[3] / 2 == pytest.approx(35 / 60)


def test_runs_that_are_too_short_and_samples_never_measured_give_none():
    assert len(detect_fixations(RawSamples(recorded(60.0)[:5], 60.0))) == 0
    assert len(detect_fixations(RawSamples(np.full((60, 2), np.nan), 60.0))) == 0
    assert len(detect_fixations(RawSamples(np.zeros((0, 2)), 60.0))) == 0


@pytest.mark.parametrize(
    ("samples", "text"),
    [
        (RawSamples(np.zeros((4, 3)), 60.0), r"\(sample, 2\)"),
        (RawSamples(np.zeros((4, 2)), 0.0), "rate is samples per second"),
        (RawSamples(np.zeros((4, 2)), 60.0, start=1.7e9), "lie on no video"),
        (RawSamples(np.full((30, 2), 640.0), 60.0), "looks like pixels"),
    ],
)
def test_what_cannot_be_gaze_is_refused(samples, text):
    with pytest.raises(SignalError, match=text):
        Scanpath.from_samples(samples)


def test_kinds_know_their_span_and_hands_keep_every_sample():
    path = Scanpath.from_samples(RawSamples(recorded(60.0), 60.0, start=1.0))
    start, end = path.span()
    assert start == pytest.approx(1.0)
    assert end == pytest.approx(2.0 + 2 / 60, abs=0.02)
    assert path.blank().span() is None
    hand = HandPath.from_samples(RawSamples([(0.1, 0.2), (np.nan, 0.0), (0.3, 0.4)], 10.0))
    assert hand.fixations.tolist() == [[0.1, 0.2, 0.05, 0.1], [0.3, 0.4, 0.25, 0.1]]

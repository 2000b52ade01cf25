"""Inputs that show gaze to the bare host: overlay, text, saliency map; no input is modified."""

import math

import numpy as np
import pytest
from pydantic import ValidationError

from modulate.errors import ConditioningError
from modulate.interfaces.components import HostInput
from modulate.interfaces.frames import Frames
from modulate_gaze.inputs import (
    GazeOverlay,
    GazeOverlayParams,
    GazeSaliency,
    GazeSaliencyParams,
    GazeText,
    GazeTextParams,
    shown_at,
)
from modulate_gaze.scanpath import Scanpath

WINDOW = (2.0, 6.0)
GAZE = Scanpath(
    [[0.25, 0.5, 2.25, 1.5], [0.75, 0.5, 4.5, 1.0]]
)  # 1.5 to 3.0 s, which begins before the clip; 4.0 to 5.0 s
GREEN = (0, 255, 0)
RED = (255, 0, 0)


def turn_of(width=80, height=40, times=(2.0, 3.5, 4.5, 6.0)):
    images = np.random.default_rng(0).integers(
        0, 200, (len(times), height, width, 3), dtype=np.uint8
    )
    images.setflags(write=False)  # whoever draws on what was given fails here
    return HostInput(Frames(images, times), "Question: What is it?")


def overlay(turn, gaze=GAZE, **params):
    return GazeOverlay(GazeOverlayParams(**params))(turn, gaze, WINDOW).frames.images


def painted(image, color):
    return {(x, y) for y, x in np.argwhere((image == color).all(-1)).tolist()}


def test_the_dot_is_a_disc_at_the_fixation_on_frames_during_which_it_lasts():
    turn = turn_of()
    images = overlay(turn, shape="dot", dot_radius=3.0)
    assert np.array_equal(images[1], turn.frames.images[1]) and np.array_equal(
        images[3], turn.frames.images[3]
    )
    for frame, x in ((0, 20), (2, 60)):
        disc = {
            (index, j)
            for index in range(80)
            for j in range(40)
            if math.dist((index + 0.5, j + 0.5), (x, 20)) <= 3.0
        }
        assert painted(images[frame], GREEN) == disc and len(disc) > 20
        changed = (images[frame] != turn.frames.images[frame]).any(-1)
        assert {(i, j) for j, i in np.argwhere(changed).tolist()} == disc


def test_the_circle_has_the_radius_asked_for_in_pixels_or_in_widths():
    turn = turn_of(times=(4.5,))
    by_width, by_pixels = (
        overlay(turn, shape="circle", line=2.0, **r)[0]
        for r in ({"circle_radius": 0.125}, {"circle_radius": 10.0, "circle_unit": "px"})
    )
    assert np.array_equal(by_width, by_pixels)
    distances = [math.dist((i + 0.5, j + 0.5), (60, 20)) for i, j in painted(by_width, RED)]
    assert (
        9.0 <= min(distances) < 9.5
        and 10.5 < max(distances) <= 11.0
        and not painted(by_width, GREEN)
    )


def test_the_benchmarks_mark_is_the_default():
    image = overlay(turn_of(width=200, height=160, times=(4.5,)))[0]
    red = [math.dist((i + 0.5, j + 0.5), (150, 80)) for i, j in painted(image, RED)]
    green = [math.dist((i + 0.5, j + 0.5), (150, 80)) for i, j in painted(image, GREEN)]
    assert np.mean(red) == pytest.approx(0.156 * 200, abs=0.3) and 7.5 < max(green) <= 8.0


def test_of_gaze_past_the_edge_only_what_reaches_in_is_drawn():
    turn = turn_of(times=(4.5,))
    outside = Scanpath([[1.1, 0.5, 4.5, 1.0]])
    assert not painted(overlay(turn, outside, shape="dot", dot_radius=3.0)[0], GREEN)
    reached = painted(overlay(turn, outside, shape="dot", dot_radius=10.0)[0], GREEN)
    assert reached and min(x for x, _ in reached) == 78


def test_a_frame_between_fixations_shows_the_nearest_within_reach_or_none():
    assert shown_at(GAZE, 3.5, 0.0) == [] and shown_at(GAZE, 3.5, 0.4) == []
    assert shown_at(GAZE, 3.5, 0.5) == [(0.25, 0.5)]  # both are half a second away: the earlier
    assert shown_at(GAZE, 3.6, 0.5) == [(0.75, 0.5)] and shown_at(GAZE, 9.0, 10.0) == [(0.75, 0.5)]
    assert (
        shown_at(GAZE, 4.0, 0.0) == shown_at(GAZE, 5.0, 0.0) == [(0.75, 0.5)]
    )  # the very ends belong to it
    assert shown_at(Scanpath(), 3.5, 10.0) == []


def test_fixations_that_last_at_once_are_all_drawn():
    both = Scanpath([[0.25, 0.5, 4.5, 1.0], [0.75, 0.5, 4.5, 0.5]])
    assert shown_at(both, 4.5, 0.0) == [(0.25, 0.5), (0.75, 0.5)] and shown_at(both, 4.1, 5.0) == [
        (0.25, 0.5)
    ]


def test_without_fixations_the_frames_are_as_they_were():
    turn = turn_of()
    assert np.array_equal(overlay(turn, Scanpath(), reach=100.0), turn.frames.images)


def test_the_text_has_a_line_for_each_fixation_before_or_after_the_question():
    turn = turn_of()
    text = GazeText(
        GazeTextParams(
            heading="Gaze:",
            line="{start:.1f}-{end:.1f} {duration:.2f} {x:.2f} {y:.1f} {px:.0f} {py:.0f}",
        )
    )(turn, GAZE, WINDOW).text
    assert (
        text
        == "Gaze:\n0.0-1.0 1.00 0.25 0.5 20 20\n2.0-3.0 1.00 0.75 0.5 60 20\nQuestion: What is it?"
    )
    late = GazeText(
        GazeTextParams(heading="Gaze:", line="{start}", clock="video", most=1, place="after")
    )(turn, GAZE, WINDOW)
    assert (
        late.text == "Question: What is it?\nGaze:\n4.0"
        and late.frames is turn.frames
        and late.images == ()
    )
    assert (
        GazeText(GazeTextParams(empty="None."))(turn, Scanpath(), WINDOW).text
        == "None.\nQuestion: What is it?"
    )


def test_the_default_text_says_what_its_numbers_mean():
    text = GazeText(GazeTextParams())(turn_of(), GAZE, WINDOW).text
    assert (
        "x from left, y from top, as fractions of the frame; time in seconds of the clip" in text
        and "\n2.0 to 3.0: x 0.75, y 0.50\n" in text
    )


@pytest.mark.parametrize(
    "line", ["{z}", "{x.__class__}", "{x!r}", "{x:999999999}", "{0}", "{}", "{x:{y}}"]
)
def test_a_text_asks_for_what_a_fixation_has_and_nothing_else(line):
    with pytest.raises(
        ValidationError,
        match=r"is none of \{x\}, \{y\}, \{px\}, \{py\}, \{start\}, \{end\}, \{duration\}",
    ):
        GazeTextParams(line=line)


@pytest.mark.parametrize("line", ["{x:d}", "{x"])
def test_a_text_that_cannot_be_written_is_refused_when_the_recipe_is_read(line):
    with pytest.raises(ValidationError, match=r"Unknown format code 'd'|expected '}'"):
        GazeTextParams(line=line)


def test_the_map_is_the_sum_of_gaussians_weighted_by_the_seconds_within_the_clip():
    turn = turn_of(width=80, height=40)
    shown = GazeSaliency(GazeSaliencyParams(sigma=0.05))(turn, GAZE, WINDOW)
    (image,) = shown.images
    assert (
        image.shape == (40, 80, 3)
        and image.dtype == np.uint8
        and shown.text == turn.text
        and shown.frames is turn.frames
    )
    heat = np.zeros((40, 80))
    for y in range(40):
        for x in range(80):
            for centre, seconds in (
                (20, 1.0),
                (60, 1.0),
            ):  # 2.0 to 3.0 s of the first: the rest is before the clip
                heat[y, x] += seconds * math.exp(
                    -((x + 0.5 - centre) ** 2 + (y + 0.5 - 20) ** 2) / (2 * 4.0**2)
                )
    assert np.array_equal(image, np.repeat(np.rint(255 * heat / heat.max())[..., None], 3, axis=2))
    longer = Scanpath([[0.25, 0.5, 3.0, 2.0], [0.75, 0.5, 4.5, 0.5]])
    weighted = GazeSaliency(GazeSaliencyParams())(turn, longer, WINDOW).images[0]
    assert weighted[20, 20, 0] == 255 and weighted[20, 60, 0] == pytest.approx(255 / 4, abs=1)


def test_the_map_comes_after_images_that_are_there_and_is_black_without_fixations():
    first = np.zeros((4, 4, 3), dtype=np.uint8)
    turn = HostInput(turn_of().frames, "?", (first,))
    images = GazeSaliency(GazeSaliencyParams())(turn, Scanpath(), WINDOW).images
    assert images[0] is first and len(images) == 2 and not images[1].any()


def test_a_fixation_without_duration_is_still_seen():
    instant = Scanpath([[0.5, 0.5, 4.5, 0.0]])
    assert GazeSaliency(GazeSaliencyParams())(turn_of(), instant, WINDOW).images[0].max() == 255
    assert painted(overlay(turn_of(times=(4.5,)), instant, shape="dot")[0], GREEN)


@pytest.mark.parametrize(
    "transform",
    [
        GazeOverlay(GazeOverlayParams()),
        GazeText(GazeTextParams()),
        GazeSaliency(GazeSaliencyParams()),
    ],
)
def test_another_kind_of_signal_is_refused(transform):
    with pytest.raises(ConditioningError, match=r"Inputs of gaze need a scanpath, got str\."):
        transform(turn_of(), "left", WINDOW)


def test_a_color_has_bytes():
    with pytest.raises(ValidationError, match="a color has three parts from 0 to 255"):
        GazeOverlayParams(dot_color=(0, 256, 0))

"""modulate.inference.media: what users have, as parts of a conversation."""

import numpy as np
import pytest

from modulate import Frames
from modulate.config.sections import Sampling
from modulate.errors import RecipeError, SignalError, SignalWarning, VideoError
from modulate.inference.media import load_visual, paired, read_signal
from modulate.interfaces.messages import Picture, VideoClip
from modulate.interfaces.multi_signal import MultiSignal
from modulate_gaze.scanpath import Scanpath
from modulate_hand.path import HandPath
from tests.video_files import write_video

SAMPLING = Sampling(fps=2.0, max_frames=4)
GAZE = Scanpath([(0.2, 0.3, 1.0, 0.8), (0.8, 0.6, 2.5, 1.0)])
PIXELS = np.zeros((6, 8, 3), np.uint8)


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    return write_video(tmp_path_factory.mktemp("media") / "v.mp4", seconds=4.0)


@pytest.mark.parametrize(
    ("place", "window"),
    [
        ({}, (1.9, 3.9)),  # the last frame is shown at 3.9 s
        ({"at": 3.0}, (1.0, 3.0)),
        ({"at": 0.7}, (0.0, 0.7)),
        ({"window": (0.5, 3.5)}, (0.5, 3.5)),
    ],
)
def test_a_clip_is_as_long_as_the_sampling_covers_and_has_its_part_of_the_signal(
    video, place, window
):
    visual = load_visual(video, {"gaze": GAZE}, "gaze", SAMPLING, **place)
    assert isinstance(visual.content, VideoClip)
    assert visual.content.window == pytest.approx(window)
    assert visual.frames.times[-1] == pytest.approx(window[1], abs=0.051)
    assert len(visual.frames.times) <= SAMPLING.max_frames
    assert visual.signal == GAZE.within(*window)
    assert visual.key is not None


@pytest.mark.parametrize(
    ("media", "place", "window"),
    [
        ("video", {"at": 3.0}, "1.00 to 3.00"),
        (PIXELS, {"window": (0.0, 2.0)}, "0.00 to 2.00"),
        (Frames(PIXELS[None], (1.5,)), {}, "1.50 to 1.50"),
    ],
)
def test_a_signal_on_another_clock_is_warned_of_with_both_times(video, media, place, window):
    media = video if isinstance(media, str) else media
    late = {"gaze": GAZE.moved(1000.0)}
    message = f"2 events of the gaze signal, at 1000.60 to 1003.00 s, lies within {window} s"
    with pytest.warns(SignalWarning, match=message):
        assert len(load_visual(media, late, "gaze", SAMPLING, **place).signal) == 0
    # Nothing was measured: no clock, and no warning.
    for silent in ({"gaze": GAZE.blank()}, {"gaze": None}):
        load_visual(media, silent, "gaze", SAMPLING, **place)


def test_a_picture_was_looked_at_as_long_as_its_signal_lasts():
    visual = load_visual(PIXELS, {"gaze": GAZE}, "gaze", SAMPLING)
    assert isinstance(visual.content, Picture)
    assert visual.content.window == pytest.approx((0.6, 3.0))
    assert visual.signal == GAZE
    assert visual.frames.times == pytest.approx((3.0,))
    part = load_visual(PIXELS, {"gaze": GAZE}, "gaze", SAMPLING, window=(0.0, 1.0))
    assert part.signal == GAZE.within(0.0, 1.0) != GAZE
    assert load_visual(PIXELS, {"gaze": None}, "gaze", SAMPLING).signal is None
    with pytest.raises(VideoError, match="a picture has none"):
        load_visual(PIXELS, {"gaze": GAZE}, "gaze", SAMPLING, at=1.0)


@pytest.mark.parametrize(
    ("frames", "text"),
    [
        (Frames(PIXELS, (0.0,)), r"\(frame, height, width, 3\)"),
        (Frames(PIXELS[None].astype(float), (0.0,)), "float64"),
        (Frames(PIXELS[None], (0.0, 1.0)), "1 frames have 2 times"),
    ],
)
def test_frames_are_checked(frames, text):
    with pytest.raises(VideoError, match=text):
        load_visual(frames, {"gaze": None}, "gaze", SAMPLING)


def test_several_kinds_are_read_together_or_not_at_all():
    hand = HandPath([(0.5, 0.5, 1.0, 0.5)])
    both = read_signal({"gaze": GAZE, "hand": hand}, "gaze+hand")
    assert isinstance(both, MultiSignal)
    assert both.parts == {"gaze": GAZE, "hand": hand}
    assert read_signal({"gaze": None, "hand": None}, "gaze+hand") is None
    with pytest.raises(SignalError, match=r"hand is None and gaze is not\. .*pass an empty one"):
        read_signal({"gaze": GAZE, "hand": None}, "gaze+hand")
    with pytest.raises(RecipeError, match="reads the signal 'hand': pass hand="):
        read_signal({"gaze": GAZE}, "gaze+hand")


def test_several_media_have_a_list_of_signals():
    assert paired(["a.mp4", "b.png"], {"gaze": [GAZE, None]}) == [
        ("a.mp4", {"gaze": GAZE}),
        ("b.png", {"gaze": None}),
    ]
    assert paired(["a.mp4", "b.png"], {"gaze": None})[1] == ("b.png", {"gaze": None})
    assert paired("a.mp4", {"gaze": GAZE}) == [("a.mp4", {"gaze": GAZE})]
    for wrong in (GAZE, [GAZE]):
        with pytest.raises(SignalError, match="2 clips or pictures need gaze= a list"):
            paired(["a.mp4", "b.png"], {"gaze": wrong})

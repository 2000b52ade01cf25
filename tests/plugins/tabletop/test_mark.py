"""The oracle that draws the mark of the host's training where the viewer looks."""

import numpy as np
import pytest

from modulate.errors import ConditioningError
from modulate.interfaces.components import HostInput
from modulate.interfaces.frames import Frames
from modulate.interfaces.multi_signal import MultiSignal
from modulate.plugins import get
from modulate_gaze.scanpath import Scanpath

MARK = get("input", "tabletop_mark")
SIZE = 112


def marked(signal, times=(0.5, 2.5)):
    frames = Frames(np.full((len(times), SIZE, SIZE, 3), 127, np.uint8), times)
    return frames, MARK(MARK.Params())(HostInput(frames, "Which?"), signal, (0.0, 3.0))


def test_the_mark_lies_at_the_upper_left_of_the_gaze_of_its_frame():
    gaze = Scanpath([[0.5, 0.5, 0.5, 1.0], [0.25, 0.75, 2.5, 1.0]])
    frames, turn = marked(gaze)
    for image, (x, y) in zip(turn.frames.images, ((56, 56), (28, 84))):
        rows, cols = np.nonzero((image != 127).any(-1))
        assert (rows.min(), cols.min()) == (y - 13, x - 13) and (rows.max(), cols.max()) == (
            y - 7,
            x - 7,
        )
    assert turn.text == "Which?" and (frames.images == 127).all()


def test_a_frame_between_fixations_shows_the_nearer_and_none_shows_nothing():
    between = marked(Scanpath([[0.5, 0.5, 0.5, 0.2], [0.25, 0.75, 2.5, 0.2]]), times=(1.0,))[
        1
    ].frames.images[0]
    assert (between[56 - 13, 56 - 13] != 127).all() and (between[84 - 13, 28 - 13] == 127).all()
    assert (marked(Scanpath())[1].frames.images == 127).all()


def test_other_signals_are_refused():
    with pytest.raises(ConditioningError, match="need a scanpath, got MultiSignal"):
        marked(MultiSignal({"gaze": Scanpath()}))

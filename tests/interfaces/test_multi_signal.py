"""Several kinds of signal of one clip: every operation applies to each part."""

import random

import numpy as np
import pytest

from modulate.errors import PluginError, SignalError
from modulate.interfaces.multi_signal import MultiSignal, controls_of, kinds_of
from modulate.interfaces.signal import ControlContext
from modulate_gaze.scanpath import Scanpath
from modulate_hand.path import HandPath

GAZE = Scanpath(np.array([[0.2, 0.7, 0.5, 1.0], [0.8, 0.7, 2.5, 1.0]]))
HAND = HandPath.parse(b"time_seconds,x,y\n0.0,0.1,0.1\n0.2,0.2,0.2\n3.0,0.3,0.3\n", "h.csv")
BOTH = MultiSignal({"gaze": GAZE, "hand": HAND})


def same(signal, **parts):
    return list(signal.parts) == list(parts) and all(
        np.array_equal(signal.parts[kind].fixations, part.fixations) for kind, part in parts.items()
    )


def test_each_operation_applies_to_each_part():
    assert len(BOTH) == len(GAZE) + len(HAND) > len(GAZE)
    assert same(BOTH.within(0.0, 1.5), gaze=GAZE.within(0.0, 1.5), hand=HAND.within(0.0, 1.5))
    assert same(BOTH.moved(2.0), gaze=GAZE.moved(2.0), hand=HAND.moved(2.0))
    assert same(BOTH.blank(), gaze=GAZE.blank(), hand=HAND.blank()) and len(BOTH.blank()) == 0
    rng = random.Random(3)
    again = random.Random(3)
    assert same(BOTH.augmented(rng), gaze=GAZE.augmented(again), hand=HAND.augmented(again))


def test_marks_have_the_kind_in_front_of_their_text_and_keep_their_positions():
    plain = [*GAZE.marks(0.0, 4.0), *HAND.marks(0.0, 4.0)]
    marks = BOTH.marks(0.0, 4.0)
    kinds = ["gaze"] * len(GAZE.marks(0.0, 4.0)) + ["hand"] * len(HAND.marks(0.0, 4.0))
    assert [(mark.x, mark.y, mark.text) for mark in marks] == [
        (m.x, m.y, f"{kind}: {m.text}") for kind, m in zip(kinds, plain, strict=True)
    ]
    assert len(BOTH.marks(0.0, 1.0)) < len(marks)


def test_kinds_are_joined_by_plus_and_named_once_each(tmp_path):
    assert kinds_of("gaze") == {"gaze": Scanpath} and kinds_of("gaze+hand") == {
        "gaze": Scanpath,
        "hand": HandPath,
    }
    with pytest.raises(SignalError, match=r"The signal 'gaze\+hand\+gaze' names a kind twice"):
        kinds_of("gaze+hand+gaze")
    with pytest.raises(PluginError, match="nose"):
        kinds_of("gaze+nose")
    with pytest.raises(SignalError, match="cannot be read from one file"):
        MultiSignal.read(tmp_path / "both.csv")


def test_one_kind_has_its_own_controls_and_several_have_the_common_ones_and_one_without_each():
    own = {name: control.__wrapped__ for name, control in controls_of("gaze").items()}
    assert own == dict(Scanpath.controls)
    common = set(Scanpath.controls) & set(HandPath.controls)
    assert {"blank", "shuffled"} <= common
    assert controls_of("gaze+hand").keys() == common | {"without_gaze", "without_hand"}


def test_controls_apply_to_each_part_with_that_part_of_the_other_sample():
    other = MultiSignal({"gaze": GAZE.moved(1.0), "hand": HAND.moved(2.0)})
    context = ControlContext((0.0, 4.0), lambda: (other, (1.0, 6.0)))
    controls = controls_of("gaze+hand")
    moved = {kind: part.moved(4.0 - 6.0).within(0.0, 4.0) for kind, part in other.parts.items()}
    assert same(controls["shuffled"](BOTH, context), **moved)
    assert same(controls["without_gaze"](BOTH, context), gaze=GAZE.blank(), hand=HAND)
    assert same(controls["without_hand"](BOTH, context), gaze=GAZE, hand=HAND.blank())

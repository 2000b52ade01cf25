"""Hand positions: strict reading, alone and together with gaze."""

import numpy as np
import pytest
import torch

from modulate import plugins
from modulate.errors import ConditioningError, MissingFileError, PluginError, SignalError
from modulate.interfaces.multi_signal import MultiSignal, controls_of
from modulate.interfaces.signal import ControlContext
from modulate_hand.path import GAP, HandPath
from tests.tiny import GRID, scanpath

HEADER = "time_seconds,x,y\n"


def hand(tmp_path, text):
    path = tmp_path / "v_hand.csv"
    path.write_text(text)
    return HandPath.read(path)


def test_a_sample_lasts_until_the_next_but_not_across_a_gap(tmp_path):
    path = hand(tmp_path, HEADER + "0.0,0.2,0.9\n0.25,0.3,0.8\n2.25,0.4,0.7\n")
    np.testing.assert_allclose(path.starts, [0.0, 0.25, 2.25])
    np.testing.assert_allclose(path.ends, [0.25, 0.25 + GAP, 2.25 + GAP])
    np.testing.assert_allclose(path.fixations[:, :2], [[0.2, 0.9], [0.3, 0.8], [0.4, 0.7]])


def test_a_header_alone_is_a_hand_that_was_never_seen(tmp_path):
    assert len(hand(tmp_path, HEADER)) == 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("t,x,y\n", "line 1: the header lacks time_seconds"),
        (HEADER + "0,0.1,abc\n", "line 2: y 'abc' is no number"),
        (HEADER + "0,nan,0.1\n", "line 2: x 'nan' is not finite"),
        (HEADER + "0,640,0.1\n", "line 2: x 640.0 looks like pixels"),
        (HEADER + "1,0.1,0.1\n1,0.1,0.1\n", "line 3: time_seconds 1.0 does not come after 1.0"),
        (HEADER + "1,0.1\n", "line 2: 2 values where the header names 3 columns"),
        (HEADER + "1,0.1,0.1,0.7\n", "line 2: 4 values where the header names 3 columns"),
        ("time_seconds,x,y,x\n", "line 1: column 'x' appears 2 times"),
        (HEADER + "1.7e9,0.1,0.1\n", "line 2: time_seconds 1700000000.0 is no second of a video"),
    ],
)
def test_what_is_wrong_is_named_with_its_line(tmp_path, text, message):
    with pytest.raises(SignalError, match=message):
        hand(tmp_path, text)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(MissingFileError, match=r"nowhere_hand\.csv does not exist"):
        HandPath.read(tmp_path / "nowhere_hand.csv")


def bundle():
    return MultiSignal({"gaze": scanpath(), "hand": HandPath(scanpath(0.9, 0.9).fixations)})


def test_a_bundle_has_the_common_controls_and_one_without_each_part():
    controls = controls_of("gaze+hand")
    assert set(controls) == {
        "blank",
        "shuffled",
        "centre",
        "shifted",
        "without_gaze",
        "without_hand",
    }
    own = bundle()
    other = MultiSignal(
        {"gaze": scanpath(0.4, 0.4), "hand": HandPath(scanpath(0.5, 0.5).fixations)}
    )
    context = ControlContext((0.0, 3.0), lambda: (other, (0.0, 3.0)))
    shuffled = controls["shuffled"](own, context)
    assert (
        shuffled.parts["gaze"] == other.parts["gaze"]
        and shuffled.parts["hand"] == other.parts["hand"]
    )
    without = controls["without_hand"](own, context)
    assert without.parts["gaze"] == own.parts["gaze"] and len(without.parts["hand"]) == 0
    assert len(controls["blank"](own, context)) == 0 and len(own) == 4
    assert len(own.within(0.0, 0.9)) == 2 and own.moved(1.0).parts["hand"] == own.parts[
        "hand"
    ].moved(1.0)


def test_unknown_and_repeated_kinds_are_refused():
    with pytest.raises(PluginError, match="hnad"):
        controls_of("gaze+hnad")
    with pytest.raises(SignalError, match="names a kind twice"):
        controls_of("gaze+gaze")


def together():
    encoder = plugins.get("signal_encoder", "together")
    part = {"name": "heatmap_dur", "params": {"dim": 4}}
    torch.manual_seed(0)
    return encoder(encoder.Params.model_validate({"encoders": {"gaze": part, "hand": part}}))


def test_together_puts_each_parts_features_side_by_side():
    encoder = together()
    signal = bundle()
    features = encoder([signal], [GRID])
    assert (
        features.values.shape == (GRID.steps, GRID.tokens_per_step, encoder.d_signal)
        and encoder.d_signal == 8
    )
    for part, values in zip(("gaze", "hand"), features.values.split(4, -1), strict=True):
        torch.testing.assert_close(values, encoder.parts[part]([signal.parts[part]], [GRID]).values)
    blank = encoder([controls_of("gaze+hand")["without_gaze"](signal, None)], [GRID])
    assert not blank.values[..., :4].any() and blank.values[..., 4:].any() and blank.active.any()


def test_together_refuses_clips_with_other_parts():
    with pytest.raises(
        ConditioningError, match="reads gaze and hand together; a clip came with gaze"
    ):
        together()([scanpath()], [GRID])

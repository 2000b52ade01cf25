"""modulate.inference.conversation: grids, clocks and features of what is shown."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from modulate.data.alignment import align
from modulate.hosts.host import understand
from modulate.inference.conversation import ConversationEncoder, Turn
from modulate.inference.media import load_visual
from modulate_gaze.scanpath import Scanpath

GAZE = Scanpath([(0.2, 0.3, 1.0, 0.8), (0.8, 0.6, 2.5, 1.0)])
PIXELS = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)


def encoder(assistant, **changes):
    sampling = assistant.usage.sampling.model_copy(update=changes)
    return ConversationEncoder(
        understand(assistant.host), assistant.processor, assistant.backbone, sampling
    )


def visual(assistant, media, gaze=GAZE, **more):
    return load_visual(media, {"gaze": gaze}, "gaze", assistant.usage.sampling, **more)


def test_each_clip_and_picture_has_its_grid_signal_and_features(assistant, four_seconds):
    shown = [visual(assistant, four_seconds, at=3.0), visual(assistant, PIXELS)]
    turns = [Turn("system", ("Be brief.",)), Turn("user", (shown[0], "and", shown[1], "?"))]
    encoded = encoder(assistant).encode(turns)
    clip, picture = encoded.clips
    assert (clip.grid.steps, picture.grid.steps) == (2, 1)
    assert clip.grid.times == (0.5, 2.5)
    frames = shown[0].frames
    raw = assistant.backbone(torch.from_numpy(frames.images), frames.times)
    assert torch.equal(clip.features, align(raw, clip.grid))
    assert encoded.has_signal
    assert all(len(blank.signal) == 0 for blank in encoded.blank())


def test_the_processor_may_be_told_another_rate_but_signals_keep_the_true_times(
    assistant, four_seconds
):
    turn = Turn("user", (visual(assistant, four_seconds, at=3.0), "?"))
    true = encoder(assistant).encode([turn])
    nominal = encoder(assistant, processor_fps=24.0).encode([turn])
    assert nominal.clips[0].grid == true.clips[0].grid
    assert not torch.equal(nominal.inputs["second_per_grid_ts"], true.inputs["second_per_grid_ts"])


def test_the_clock_may_be_the_requested_one(assistant, four_seconds):
    # Seven frames at 1 fps would begin at -3 s; the window ends that.
    turn = Turn("user", (visual(assistant, four_seconds, at=3.0), "?"))
    grid = encoder(assistant, clock="requested").encode([turn]).clips[0].grid
    assert grid.times == (0.0, 2.0)


def test_features_of_the_same_frames_are_computed_once(assistant, four_seconds, monkeypatch):
    calls = []
    forward = type(assistant.backbone).forward
    monkeypatch.setattr(
        type(assistant.backbone),
        "forward",
        lambda self, frames, times: calls.append(times) or forward(self, frames, times),
    )
    own = encoder(assistant)
    turn = Turn("user", (visual(assistant, four_seconds, at=3.0), "?"))
    again = Turn("user", (visual(assistant, four_seconds, at=3.0), "Which?"))
    first = own.encode([turn]).clips[0]
    assert torch.equal(own.encode([again]).clips[0].features, first.features)
    own.encode([Turn("user", (visual(assistant, four_seconds, at=2.0), "?"))])
    assert len(calls) == 2


def test_without_a_signal_no_features_are_computed(assistant, four_seconds, monkeypatch):
    def forward(self, frames, times):
        raise AssertionError("nobody reads these features")

    monkeypatch.setattr(type(assistant.backbone), "forward", forward)
    shown = replace(visual(assistant, four_seconds, at=3.0), signal=None)
    encoded = encoder(assistant).encode([Turn("user", (shown, "?"))])
    assert not encoded.has_signal
    assert encoded.clips[0].features is None


@pytest.mark.parametrize("role", ["system", "user", "assistant"])
def test_a_turn_knows_what_it_shows(assistant, role):
    shown = visual(assistant, PIXELS, gaze=None)
    assert Turn(role, ("a", shown, "b")).visuals == [shown]

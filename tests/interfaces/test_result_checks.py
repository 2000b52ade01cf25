"""Checks of results: sound ones pass unchanged, and cheaply; odd ones are told apart.

tests/test_plugin_mistakes.py has the mistakes, through the whole pipeline.
"""

import numpy as np
import pytest
import torch
from torch import nn

from modulate import Frames, HostInput, visual_grid
from modulate.interfaces import result_checks as checks
from modulate.interfaces.components import FrameFeatures, SignalFeatures
from modulate.interfaces.writer import Mixture
from modulate.plugins import InterfaceError

GRID = visual_grid([0.0, 1.0, 2.0, 3.0], 2, 2, 3)


class Part(nn.Module):
    """As much of a component as the checks read."""

    d_signal = 4
    d_latent = 5
    d_features = 3

    def __init__(self, weight=1.0):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(weight))


def features(value=1.0, active=(True, False)):
    is_active = torch.tensor(active)
    return SignalFeatures(torch.full((2, 6, 4), value) * is_active[:, None, None], is_active)


def test_sound_results_pass_unchanged():
    signal = features()
    assert checks.check_signal_features(signal, Part(), [GRID]) is signal
    dense = torch.ones(2, 6, 5)
    mixture = Mixture(torch.ones(2, 6, 7), torch.ones(2, 7, 5))
    found = checks.check_latents((dense, mixture), Part(), 2, signal)
    assert found[0] is dense and found[1] is mixture
    encoded = FrameFeatures(torch.ones(2, 1, 1, 3), (0.5, 2.5))
    assert checks.check_frame_features(encoded, Part(), (0.0, 1.0, 2.0, 3.0)) is encoded
    assert checks.check_fingerprint("x") == "x"


def test_results_on_meta_tensors_are_checked_by_shape_alone():
    signal = SignalFeatures(
        torch.empty(2, 6, 4, device="meta"), torch.empty(2, dtype=torch.bool, device="meta")
    )
    checks.check_signal_features(signal, Part(), [GRID])
    checks.check_latents([torch.empty(2, 6, 5, device="meta")], Part(), 1, signal)
    with pytest.raises(InterfaceError, match="the shape must be"):
        checks.check_latents([torch.empty(2, 6, 4, device="meta")], Part(), 1, signal)


@pytest.mark.parametrize("weight", [float("nan"), float("inf"), 1e30])
def test_numbers_of_weights_that_diverge_are_left_to_the_training(weight):
    part = Part(weight)
    checks.check_signal_features(features(float("nan"), (True, True)), part, [GRID])
    checks.check_latents([torch.full((2, 6, 5), float("inf"))], part, 1, features())


def test_numbers_of_sound_weights_are_the_components_own_fault():
    with pytest.raises(InterfaceError, match="values that are not finite from forward, first at"):
        checks.check_signal_features(features(float("nan"), (True, True)), Part(), [GRID])
    with pytest.raises(InterfaceError, match="latents that are not finite"):
        checks.check_latents([torch.full((2, 6, 5), float("inf"))], Part(), 1, features())
    with pytest.raises(InterfaceError, match="latents that are not finite"):
        broken = Mixture(torch.full((2, 6, 1), float("nan")), torch.ones(2, 1, 5))
        checks.check_latents([broken], Part(), 1, features())


def test_integers_are_no_features():
    whole = FrameFeatures(torch.ones(1, 1, 1, 3, dtype=torch.int64), (0.0,))
    with pytest.raises(InterfaceError, match=r"values of torch\.int64 from forward"):
        checks.check_frame_features(whole, Part(), (0.0,))
    with pytest.raises(InterfaceError, match=r"int64 .* the dtype must be a floating-point one"):
        checks.check_latents([torch.ones(2, 6, 5, dtype=torch.int64)], Part(), 1, features())


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"text": None}, "returned None as text; it must be a str"),
        ({"frames": 3}, "returned an int as frames; they must be a Frames"),
        ({"images": (np.zeros((2, 2, 4), np.uint8),)}, r"returned an image as uint8 of shape"),
    ],
)
def test_a_turn_of_other_things_is_refused(change, text):
    given = HostInput(Frames(np.zeros((1, 2, 2, 3), np.uint8), (0.0,)), "?")
    assert checks.check_host_input(given) is given
    changed = object.__new__(HostInput)
    for name, value in {**vars(given), **change}.items():
        object.__setattr__(changed, name, value)
    with pytest.raises(InterfaceError, match=text):
        checks.check_host_input(changed)

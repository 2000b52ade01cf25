"""Shapes in signatures are checked while testing: this proves that the checking is on."""

import pytest
import torch
from jaxtyping import TypeCheckError

from modulate.interfaces.components import SignalFeatures
from modulate_gaze.coordinates import sinusoid


def test_a_wrong_number_of_axes_is_caught():
    assert sinusoid(torch.zeros(2, 3), torch.ones(4)).shape == (2, 3, 8)
    with pytest.raises(TypeCheckError, match="frequencies"):
        sinusoid(torch.zeros(2, 3), torch.ones(4, 1))


def test_axes_of_one_name_must_agree():
    with pytest.raises(TypeCheckError, match="active"):
        SignalFeatures(torch.zeros(2, 3, 4), torch.zeros(5, dtype=torch.bool))

"""Every shipped modulator passes the contract."""

from modulate import ModulatorContract
from tests.testing.shipped import names_of, tried_in


class TestResampler(ModulatorContract):
    name = "gaze_resampler"
    params = {"width": 8, "latents": 3, "blocks": 2}


class TestSharedResampler(ModulatorContract):
    name = "gaze_resampler"
    params = {"width": 8, "latents": 3, "blocks": 1, "sharing": "shared"}


class TestFiLM(ModulatorContract):
    name = "film"
    params = {"width": 8}


class TestGatedCrossAttention(ModulatorContract):
    name = "gated_cross_attention"
    params = {"width": 8, "heads": 2}


class TestSteering(ModulatorContract):
    name = "steering"


class TestConstantSteering(ModulatorContract):
    name = "steering"
    params = {"by": "constant"}


def test_every_shipped_modulator_joins_the_contract():
    assert tried_in(globals()) == names_of("modulator")

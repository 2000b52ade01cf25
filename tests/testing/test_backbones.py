"""Every shipped backbone passes the contract."""

from modulate import BackboneContract
from tests.testing.shipped import names_of, tried_in

DIMS = {"dim": 48, "depth": 2, "heads": 3}


class TestVJepa(BackboneContract):
    name = "vjepa2_1"
    params = {"weights": "random", "dims": DIMS, "image_size": 64}
    other_params = {**params, "image_size": 32}


class TestDinoV2(BackboneContract):
    name = "dinov2"
    params = {"weights": "random", "dims": DIMS, "image_size": 56}
    other_params = {**params, "image_size": 42}


def test_every_shipped_backbone_joins_the_contract():
    assert tried_in(globals()) == names_of("backbone")

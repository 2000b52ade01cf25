"""Every shipped input transform passes the contract."""

from modulate import InputContract
from tests.testing.shipped import FIXATIONS, names_of, tried_in


class TestOverlay(InputContract):
    name = "gaze_overlay"
    example = FIXATIONS


class TestText(InputContract):
    name = "gaze_text"
    example = FIXATIONS


class TestSaliency(InputContract):
    name = "gaze_saliency"
    example = FIXATIONS


class TestTabletopMark(InputContract):
    name = "tabletop_mark"
    example = FIXATIONS


def test_every_shipped_input_joins_the_contract():
    assert tried_in(globals()) == names_of("input")

"""Every shipped kind of signal passes the contract."""

from modulate import SignalContract
from tests.testing.shipped import FIXATIONS, HANDS, names_of, tried_in


class TestGaze(SignalContract):
    kind = "gaze"
    example = FIXATIONS


class TestHand(SignalContract):
    kind = "hand"
    example = HANDS


def test_every_shipped_kind_joins_the_contract():
    assert tried_in(globals(), "kind") == names_of("signal")

"""Every shipped signal encoder passes the contract."""

import pytest

from modulate import EncoderContract
from modulate.interfaces.multi_signal import MultiSignal
from modulate_gaze.scanpath import Scanpath
from modulate_hand.path import HandPath
from tests.testing.shipped import FIXATIONS, HANDS, names_of, tried_in


class TestCoordPE(EncoderContract):
    name = "coord_pe"
    params = {"dim": 8}
    example = FIXATIONS


class TestReleasedCoordPE(TestCoordPE):
    params = {"dim": 8, "active": "released"}


class TestCoordRel(EncoderContract):
    name = "coord_rel"
    params = {"dim": 8}
    example = FIXATIONS


class TestHeatmapTau(EncoderContract):
    name = "heatmap_tau"
    params = {"dim": 8}
    example = FIXATIONS


class TestHeatmapDur(EncoderContract):
    name = "heatmap_dur"
    params = {"dim": 8}
    example = FIXATIONS


class TestNormalizedByPeak(TestHeatmapDur):
    params = {"dim": 8, "normalization": "peak", "active": "midpoint"}


class TestTogether(EncoderContract):
    name = "together"
    params = {
        "encoders": {
            "gaze": {"name": "heatmap_dur", "params": {"dim": 8}},
            "hand": {"name": "coord_rel", "params": {"dim": 8, "to_features": False}},
        }
    }

    @pytest.fixture(autouse=True)
    def folder(self, tmp_path):
        (tmp_path / "gaze.csv").write_text(FIXATIONS)
        (tmp_path / "hand.csv").write_text(HANDS)
        self.files = tmp_path

    def signal(self):
        gaze = Scanpath.read(self.files / "gaze.csv")
        return MultiSignal({"gaze": gaze, "hand": HandPath.read(self.files / "hand.csv")})


def test_every_shipped_encoder_joins_the_contract():
    assert tried_in(globals()) == names_of("signal_encoder")

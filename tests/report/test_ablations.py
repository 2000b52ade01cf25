"""Ablations are grouped by the axis in which their recipes differ from the base."""

import pytest

from modulate.errors import RecipeError
from modulate.report.page import build_report
from tests.report.helpers import BLANK, EASY, HARD, SIGNAL, write_run

ENCODER = "encoder={name: coord_pe, params: {dim: 64}}"
SHARING = "modulator.params.sharing=shared"
STAGES_WITHOUT_LORA = (
    "training.stages=[{name: modulator, train: [modulator], epochs: 5, lr: 1.0e-3}, {name:"
    " joint, train: [modulator], epochs: 0.5, lr: 3.0e-4}]"
)


@pytest.fixture
def variants(tmp_path):
    wrong = {"signal": {EASY: "0" * 16, HARD: "1" * 12}}
    return [
        write_run(tmp_path, "shared", wrong, SHARING),
        write_run(tmp_path, "base", SIGNAL),
        write_run(tmp_path, "encoder", wrong, ENCODER),
        write_run(tmp_path, "bare", wrong, "lora=null", STAGES_WITHOUT_LORA),
        write_run(tmp_path, "both", wrong, ENCODER, SHARING),
        write_run(tmp_path, "free", BLANK, "training.condition=blank"),
    ]


def test_ablations_are_grouped_by_the_axis_in_which_recipes_differ(variants):
    table = build_report(variants).ablations
    assert [row for row in table.rows if isinstance(row, str)] == [
        "Base: base",
        "Modulator: sharing (per_layer in the base)",
        "Encoder (heatmap_dur in the base)",
        "Lora (rank 4, alpha 8.0, targets q_proj, v_proj in the base)",
        "Several axes at once",
    ]
    rows = {row[1]: row for row in table.rows if not isinstance(row, str)}
    assert list(rows) == ["base", "shared", "encoder", "bare", "both"]
    assert (rows["shared"][0], rows["bare"][0]) == ("shared", "none")
    assert rows["both"][0] == "encoder = coord_pe; modulator: sharing = shared"
    assert (rows["shared"][3], rows["shared"][5]) == ("50.0", "−46.9")
    assert rows["shared"][8] == "−93.8 (OI-E)"


def test_the_base_can_be_named(variants):
    assert build_report(variants, base="both").ablations.rows[0] == "Base: both"
    message = (
        r"The base of the ablations, 'bose', is not the name of a given run that was trained with"
        r" its signal\. Did you mean 'base'"
    )
    with pytest.raises(RecipeError, match=message):
        build_report(variants, base="bose")


def test_one_signal_run_has_no_ablations(three_runs):
    assert build_report(three_runs).ablations is None

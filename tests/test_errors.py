"""Base classes of errors, and helpers for their messages."""

import pytest

from modulate import errors
from modulate.errors import Interrupted, ModulateError, near_matches, shown

CAUGHT_AS = {
    "PluginError": LookupError,
    "ComponentError": errors.PluginError,
    "RecipeError": ValueError,
    "SignalError": ValueError,
    "VideoError": ValueError,
    "DataError": ValueError,
    "MissingFileError": FileNotFoundError,
    "HostError": TypeError,
    "ConditioningError": RuntimeError,
    "CheckpointError": ValueError,
    "StorageError": OSError,
    "LockedError": RuntimeError,
    "RankError": RuntimeError,
    "DivergedError": ArithmeticError,
    "Interrupted": RuntimeError,
}


def test_each_error_is_a_modulate_error_and_a_builtin():
    found = {
        name: kind
        for name, kind in vars(errors).items()
        if isinstance(kind, type) and issubclass(kind, ModulateError) and kind is not ModulateError
    }
    assert found.keys() == CAUGHT_AS.keys()
    assert all(issubclass(kind, CAUGHT_AS[name]) for name, kind in found.items())


@pytest.mark.parametrize(
    ("value", "most", "text"),
    [
        ("a" * 78, 80, "'" + "a" * 78 + "'"),
        ("a" * 79, 80, "'" + "a" * 79 + "…"),
        ([1, 2], 80, "[1, 2]"),
        ("abc", 3, "'ab…"),
    ],
)
def test_a_long_value_is_cut_in_messages(value, most, text):
    assert shown(value, most) == text and shown("b" * 200) == "'" + "b" * 79 + "…"


def test_an_interruption_has_the_exit_code_of_its_signal():
    assert Interrupted("stopped", 15).code == 143 and str(Interrupted("stopped", 2)) == "stopped"


def test_similar_names_come_before_all_known_ones():
    known = ["heatmap_tau", "heatmap_dur", "coord_pe"]
    assert (
        near_matches("heatmap_du", known)
        == "Did you mean 'heatmap_dur' or 'heatmap_tau'? Known: coord_pe, heatmap_dur, heatmap_tau."
    )
    assert near_matches("nose", known) == "Known: coord_pe, heatmap_dur, heatmap_tau."
    assert near_matches("nose", []) == "Known: none."
    close = [f"name{index}" for index in range(5)]
    assert near_matches("name", close).count(" or ") == 2

"""A recipe whose parts cannot use its signal is refused when it is read."""

from dataclasses import dataclass
from typing import ClassVar

import pytest

from modulate import plugins
from modulate.config.recipe import load_recipe
from modulate.config.signal_use import can_read
from modulate.errors import PluginError, RecipeError
from modulate_gaze.scanpath import Scanpath
from tests.paths import SMALL
from tests.test_plugins import plugin

TOGETHER = (
    "encoder={name: together, params: {encoders: {gaze: {name: coord_rel}, hand: {name:"
    " heatmap_dur}}}}"
)


@pytest.mark.parametrize(
    ("overrides", "text"),
    [
        (
            ["signal=gaze+hand"],
            (
                "small.yaml: the encoder 'coord_rel' reads 'gaze', not the recipe's signal"
                " 'gaze+hand'. Write `signal: gaze`, or name an encoder that reads it."
            ),
        ),
        (
            [TOGETHER],
            "the encoder 'together' reads 'gaze+hand', not the recipe's signal 'gaze'. Write",
        ),
    ],
)
def test_a_signal_that_the_encoder_does_not_read_is_refused(overrides, text):
    with pytest.raises(RecipeError) as caught:
        load_recipe(SMALL, overrides)
    assert text in str(caught.value)


@pytest.mark.parametrize("signal", ["gaze+hand", "hand+gaze"])
def test_kinds_that_are_read_together_may_come_in_any_order(signal):
    assert load_recipe(SMALL, [f"signal={signal}", TOGETHER]).signal == signal


def test_a_derived_kind_is_read_by_the_encoders_of_its_base():
    assert load_recipe(SMALL, ["signal=hand"]).signal == "hand"
    assert can_read("gaze", "hand") and not can_read("hand", "gaze")


def test_an_encoder_may_read_any_several_kinds():
    assert can_read("bundle", "gaze+hand") and not can_read("bundle", "gaze")


def test_a_kind_that_nobody_registers_is_not_read():
    assert not can_read("pupil", "gaze")
    with pytest.raises(PluginError, match="Unknown signal 'pupil'"):
        load_recipe(SMALL, ["signal=pupil"])


def test_an_input_that_reads_another_kind_is_refused(monkeypatch):
    overlay = "evaluation={inputs: {drawn: {name: gaze_overlay}}}"
    assert load_recipe(SMALL, [overlay, "signal=hand"])
    assert load_recipe(SMALL, [overlay, "signal=gaze+hand", TOGETHER])
    monkeypatch.setattr("modulate_gaze.inputs.GazeOverlay.signal_kind", "hand")
    with pytest.raises(
        RecipeError,
        match=r"evaluation\.inputs\.drawn: 'gaze_overlay' reads 'hand', not the recipe's signal",
    ):
        load_recipe(SMALL, [overlay])


@dataclass(frozen=True)
class Bare(Scanpath):
    """A kind without controls of its own."""

    kind = "bare"
    controls: ClassVar[dict] = {}


def test_the_default_conditions_are_those_that_the_signal_has():
    plugins.registry().add("bare_plugin", plugin("register_signals", "bare", Bare))
    try:
        recipe = load_recipe(SMALL, ["signal=bare"])
        assert recipe.evaluation.conditions == ("none", "blank", "shuffled", "host")
        with pytest.raises(RecipeError, match="'shifted' is not a condition"):
            load_recipe(SMALL, ["signal=bare", "evaluation.conditions=[blank, shifted]"])
    finally:
        plugins.registry().remove("bare_plugin")
    usual = ("none", "blank", "shuffled", "centre", "shifted", "host")
    assert load_recipe(SMALL).evaluation.conditions == usual

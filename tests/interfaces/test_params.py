"""Component specs, and the parameters that recipes and saved modulations share."""

import math

import pytest
from pydantic import ValidationError

from modulate.config.injection import Injection, LoraParams, Tokens
from modulate.errors import ComponentError, PluginError
from modulate.interfaces.params import ComponentSpec
from modulate_gaze.heatmaps import HeatmapDur


def test_a_spec_is_resolved_to_its_class_and_validated_parameters():
    component, params = ComponentSpec(name="heatmap_dur", params={"dim": 16}).resolved(
        "signal_encoder"
    )
    assert component is HeatmapDur and params == HeatmapDur.Params(dim=16)
    assert ComponentSpec(name="heatmap_dur").params == {}


def test_a_spec_builds_its_component_with_the_caller_s_arguments():
    built = ComponentSpec(name="gaze_resampler", params={"width": 16, "latents": 4}).build(
        "modulator", d_features=12, d_signal=8, n_layers=3
    )
    assert built.d_latent == 16


def test_wrong_names_and_parameters_are_the_user_s_errors_and_a_constructor_s_own_is_the_plugin_s():
    with pytest.raises(PluginError, match="nose") as unknown:
        ComponentSpec(name="nose").resolved("signal_encoder")
    assert not isinstance(unknown.value, ComponentError)
    with pytest.raises(ValidationError, match="extra_forbidden"):
        ComponentSpec(name="heatmap_dur", params={"nose": 1}).resolved("signal_encoder")
    with pytest.raises(ComponentError, match=r"(?s)gaze_resampler.*constructor"):
        ComponentSpec(name="gaze_resampler", params={"width": 16}).build("modulator", nose=1)


def test_keys_left_out_have_the_documented_values():
    injection = Injection(layers=(3,))
    assert (injection.alpha, injection.tokens, injection.empty) == (
        1.0,
        Tokens(kind="visual", steps=None),
        "residual",
    )
    assert LoraParams() == LoraParams(rank=8, alpha=16.0, targets=("q_proj", "v_proj"))


@pytest.mark.parametrize(
    ("section", "key", "allowed", "refused"),
    [
        (LoraParams, "rank", 1, 0),
        (LoraParams, "rank", 2**16, 2**16 + 1),
        (LoraParams, "alpha", 1e-9, 0),
        (LoraParams, "alpha", 1e6, 1e6 + 1),
        (LoraParams, "targets", ("q_proj",), ()),
        (Injection, "layers", (0,), ()),
        (Injection, "alpha", 1e6, 1e6 + 1),
        (Injection, "alpha", -1e6, -1e6 - 1),
        (Injection, "alpha", 0.0, math.nan),
        (Tokens, "steps", (0,), ()),
        (Tokens, "kind", "mask", "nose"),
        (ComponentSpec, "name", "x", 1),
    ],
)
def test_a_value_at_its_limit_is_accepted_and_one_beyond_is_refused(section, key, allowed, refused):
    needed = {Injection: {"layers": (1,)}, ComponentSpec: {"name": "x"}}.get(section, {})
    section(**needed | {key: allowed})
    with pytest.raises(ValidationError):
        section(**needed | {key: refused})


def test_parameters_are_immutable():
    with pytest.raises(ValidationError, match="frozen"):
        LoraParams().rank = 4
    with pytest.raises(ValidationError, match="extra_forbidden"):
        LoraParams(nose=1)

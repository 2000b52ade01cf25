"""The saved configuration of a modulation: checked when it is made, and when it is read."""

import json

import pytest
from pydantic import ValidationError

from modulate import ComponentSpec, Injection, LoraParams, ModulationConfig
from modulate.errors import CheckpointError, PluginError
from modulate.modulation.config import HostSpec, parse_config, portable
from modulate.modulation.lora import LoraSpec
from tests.tiny import D_FEATURES, selecting


def config(**changes):
    values = {
        "host": HostSpec(model_type="qwen2_5_vl", d_model=32, n_layers=4),
        "encoder": ComponentSpec(name="heatmap_dur", params={"dim": 16}),
        "modulator": ComponentSpec(name="gaze_resampler", params={"width": 16}),
        "injection": Injection(layers=(1, 2)),
        "d_features": D_FEATURES,
    }
    return ModulationConfig(**values | changes)


def lora_of(*layers):
    return LoraSpec(
        params=LoraParams(), shapes={"q": (4, 4)}, layers={"q": layers}, layers_path="layers"
    )


@pytest.mark.parametrize("layer", [-1, 4])
def test_injected_and_adapted_layers_must_exist_in_the_host(layer):
    message = f"layer {layer} does not exist: the host has layers 0 to 3"
    with pytest.raises(ValidationError, match=message):
        config(injection=Injection(layers=(0, layer)))
    with pytest.raises(ValidationError, match=message):
        config(lora=lora_of(0, layer))
    assert config(injection=Injection(layers=(0, 3)), lora=lora_of(0, 3))


def test_a_written_configuration_is_read_as_it_was():
    saved = config(training={"seed": 3}, lora=lora_of(0))
    assert parse_config(saved.model_dump_json().encode(), "config.json") == saved


def test_parameters_of_components_are_checked_on_reading():
    wrong = config(modulator=ComponentSpec(name="gaze_resampler", params={"width": "wide"}))
    with pytest.raises(
        CheckpointError, match=r"config\.json does not fit this version of modulate: [^\n]*\nwidth"
    ):
        parse_config(wrong.model_dump_json().encode(), "config.json")
    unknown = config(encoder=ComponentSpec(name="nobody_wrote_it"))
    with pytest.raises(PluginError, match="nobody_wrote_it"):
        parse_config(unknown.model_dump_json().encode(), "config.json")


def test_keys_of_another_version_are_refused():
    values = json.loads(config().model_dump_json())
    for changes in ({"schema_version": 2}, {"alpha": 1.0}):
        with pytest.raises(CheckpointError, match=next(iter(changes))):
            parse_config(json.dumps(values | changes).encode(), "config.json")


def test_a_modulator_without_files_is_saved_under_the_parameters_that_it_was_given(host):
    modulation = selecting(host, "visual")
    saved = portable(modulation.config, modulation.modulator)
    assert saved.model_copy(update={"plugins": ()}) == modulation.config

"""Dead layers are found by gradient, on the host itself or on a narrow twin."""

from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

import modulate_tabletop
from modulate.checks.dead_layers import reach, twin_reach
from modulate.config.recipe import load_recipe
from tests.paths import SMALL
from tests.tiny import CLIP, fresh, inputs, qwen

TABLETOP = Path(modulate_tabletop.__file__).parent


@pytest.mark.parametrize("layers", [1, 2, 5])
def test_only_the_last_layer_of_a_decoder_of_any_depth_is_dead(layers):
    host = qwen(layers=layers)
    modulation = fresh(host, layers=tuple(range(layers)))
    norms = reach(host, modulation, inputs(texts=((7, 8, 9),)), [CLIP.grid])
    assert list(norms) == list(range(layers))
    assert [layer for layer, gradient in norms.items() if gradient == 0.0] == [layers - 1]


def test_a_layer_followed_by_deaf_attention_is_dead_too():
    host = qwen(layers=4)
    with torch.no_grad():
        for layer in host.model.language_model.layers[2:]:
            # from here on, positions no longer talk to each other
            layer.self_attn.o_proj.weight.zero_()
    norms = reach(host, fresh(host, layers=(0, 1, 2, 3)), inputs(texts=((7, 8, 9),)), [CLIP.grid])
    assert norms[0] > 0 and norms[1] == norms[2] == norms[3] == 0.0


def test_reach_leaves_host_and_modulation_as_they_were(host):
    modulation = fresh(host)
    before = {name: tensor.clone() for name, tensor in modulation.state_dict().items()}
    reach(host, modulation, inputs(texts=((7, 8, 9),)), [CLIP.grid])
    assert all(
        torch.equal(tensor, before[name]) for name, tensor in modulation.state_dict().items()
    )
    assert not {"residual", "latents"} & modulation.__dict__.keys()
    assert all(p.grad is None for p in [*host.parameters(), *modulation.parameters()])


def config_of(layers, **text):
    """Return the configuration of the tabletop host with other decoder layers."""
    config = AutoConfig.from_pretrained(TABLETOP / "host")
    config.text_config.num_hidden_layers = layers
    config.text_config.layer_types = ["full_attention"] * layers
    for name, value in text.items():
        setattr(config.text_config, name, value)
    return config


@pytest.mark.parametrize("layers", [5, 40])
def test_without_weights_dead_layers_are_found_on_a_narrow_twin_of_any_depth(layers):
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config_of(layers))
    at = [layers // 2, layers - 2, layers - 1]
    norms = twin_reach(
        load_recipe(SMALL, [f"injection.layers={at}"]),
        model,
        AutoProcessor.from_pretrained(TABLETOP / "host"),
        48,
    )
    assert list(norms) == at
    assert [layer for layer, gradient in norms.items() if gradient == 0.0] == [layers - 1]
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}


def test_the_twin_finds_dead_layers_by_gradient_and_not_from_a_list():
    """Sliding windows of one token keep the last position from looking back, so that earlier layers
    are dead as well.
    """
    kinds = ["full_attention", "full_attention", "sliding_attention", "sliding_attention"]
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(
            config_of(4, layer_types=kinds, use_sliding_window=True, sliding_window=1)
        )
    norms = twin_reach(
        load_recipe(SMALL, ["injection.layers=[0, 1, 2, 3]"]),
        model,
        AutoProcessor.from_pretrained(TABLETOP / "host"),
        48,
    )
    assert norms[0] > 0 and norms[1] == norms[2] == norms[3] == 0.0

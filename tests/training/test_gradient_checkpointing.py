"""Gradient checkpointing: layers run twice, gradients are equal, and the host is left as it was."""

import pytest
import torch

from modulate.config.recipe import load_recipe
from modulate.errors import HostError, RecipeError
from modulate.hosts.host import understand
from modulate.modulation.attachment import ModulatedHost
from modulate.training.gradient_checkpointing import checkpointed_layers
from tests.tiny import CLIP, fresh, inputs, qwen


def learn(model, wanted, lora=None):
    """Gradients, and how often each layer's attention was computed."""
    modulation = fresh(model, lora=lora)
    torch.manual_seed(1)
    for projection in modulation.out:
        torch.nn.init.normal_(projection.weight, std=0.5)
    calls = [0] * len(model.model.language_model.layers)

    def count(i):
        return lambda module, args, output: calls.__setitem__(i, calls[i] + 1)

    handles = [
        layer.self_attn.register_forward_hook(count(i))
        for i, layer in enumerate(model.model.language_model.layers)
    ]
    host = ModulatedHost(modulation, model)
    try:
        with checkpointed_layers(host.attachment.host, wanted):
            assert not any(
                m.training
                for layer in host.attachment.host.layers
                for m in layer.modules()
                if m is not layer
            )
            host([[CLIP], [CLIP]], **inputs(), use_cache=False).logits[
                :, -1
            ].square().sum().backward()
    finally:
        host.attachment.detach()
        for handle in handles:
            handle.remove()
    return {name: p.grad for name, p in modulation.named_parameters()}, calls


@pytest.mark.parametrize("lora", [None, True], ids=["modulator", "lora"])
def test_layers_are_computed_twice_and_gradients_are_the_same(host, lora):
    expected, once = learn(host, False, lora)
    found, twice = learn(host, True, lora)
    assert once == [1, 1, 1, 1]
    # Residuals are added behind layers 1 and 2: nothing is learned before. Up to transformers 5.22
    # what is behind a layer is recomputed with it.
    assert twice in ([[2, 2, 2, 2]] if lora else [[1, 1, 2, 2], [1, 2, 2, 2]])
    assert max(float(g.abs().max()) for g in expected.values() if g is not None) > 1e-3
    assert {
        name
        for name, g in expected.items()
        if (g is None) != (found[name] is None)
        or (g is not None and not torch.equal(g, found[name]))
    } == set()


def test_the_host_is_left_as_it_was(host):
    state = lambda: [
        (
            m.training,
            vars(m).get("gradient_checkpointing"),
            "_gradient_checkpointing_func" in vars(m),
        )
        for m in host.modules()
    ]
    before = state()
    with pytest.raises(KeyError), checkpointed_layers(understand(host), True):
        assert state() != before
        raise KeyError
    assert state() == before


def test_a_host_that_cannot_is_refused_with_its_reason():
    model = qwen(layers=2)
    model.supports_gradient_checkpointing = False
    with (
        pytest.raises(
            HostError,
            match=(
                r"training\.gradient_checkpointing: Qwen2_5_VLForConditionalGeneration does not"
                r" support gradient checkpointing, says transformers"
            ),
        ),
        checkpointed_layers(understand(model), True),
    ):
        pass
    host = understand(qwen(layers=2))
    host.layers[1] = torch.nn.Identity()
    with (
        pytest.raises(
            HostError,
            match=(
                r"decoder layers of Qwen2_5_VLForConditionalGeneration are no"
                r" GradientCheckpointingLayer of transformers; leave it out"
            ),
        ),
        checkpointed_layers(host, True),
    ):
        pass


def test_one_pass_over_a_clip_needs_the_cache_that_recomputed_layers_do_not_fill():
    with pytest.raises(
        RecipeError,
        match=(
            "keeps the layers' outputs for the clip in a key-value cache, which recomputed layers"
            " cannot fill: drop one of the two"
        ),
    ):
        load_recipe(
            "gazeqwen_tiny", ["training.gradient_checkpointing=true", "training.batch_by=clip"]
        )

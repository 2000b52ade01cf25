"""The LoRA tensors of a modulation: which layers have them, and their names in PEFT's file."""

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from modulate.config.injection import LoraParams
from modulate.errors import CheckpointError, HostError
from modulate.hosts.host import understand
from modulate.modulation.lora import (
    LoraHook,
    LoraHooks,
    LoraSpec,
    LoraTensors,
    check_numbers,
    describe,
)
from modulate.modulation.recompute import ForwardPass
from tests.tiny import qwen


@pytest.fixture
def uneven():
    """A host of four layers, of which the second and fourth have one more linear map."""
    model = qwen(layers=4)
    for index in (1, 3):
        model.model.language_model.layers[index].self_attn.extra = nn.Linear(32, 24)
    return understand(model)


def spec(host, *targets, rank=2):
    return describe(host, LoraParams(rank=rank, alpha=4.0, targets=targets))


def test_a_target_that_some_layers_lack_is_adapted_where_it_exists(uneven):
    lora_spec = spec(uneven, "q_proj", "extra")
    assert lora_spec.shapes == {"self_attn.q_proj": (32, 32), "self_attn.extra": (32, 24)}
    assert lora_spec.layers == {"self_attn.extra": (1, 3)}
    tensors = LoraTensors(lora_spec, 4)
    _, named = tensors.to_peft()
    layers_of = {
        name: sorted(int(key.split(".layers.")[1][0]) for key in named if f".{name}.lora_A." in key)
        for name in ("q_proj", "extra")
    }
    assert layers_of == {"q_proj": [0, 1, 2, 3], "extra": [1, 3]}
    assert len(named) == 12
    loaded = LoraTensors(lora_spec, 4)
    loaded.load_peft(named)
    assert all(torch.equal(loaded[slot], value) for slot, value in tensors.items())


def test_a_target_that_all_layers_have_lists_no_layers(uneven):
    assert spec(uneven, "q_proj", "v_proj").layers == {}


def test_targets_of_some_layers_are_hooked_there_and_leave_the_host_as_it_was(uneven):
    hooks = LoraHooks(
        LoraTensors(spec(uneven, "extra"), 4), uneven, lambda: ForwardPass(None, lora=True)
    )
    with_hooks = {name for name, module in uneven.model.named_modules() if module._forward_hooks}
    assert {name.partition("layers.")[2] for name in with_hooks} == {
        "1.self_attn.extra",
        "3.self_attn.extra",
    }
    assert hooks.layers == {1, 3}
    hooks.remove()
    assert not any(module._forward_hooks for module in uneven.model.modules())


def test_a_target_of_two_shapes_is_refused_with_both_layers(uneven):
    uneven.layers[3].self_attn.extra = nn.Linear(32, 25)
    with pytest.raises(
        HostError,
        match=(
            r"'self_attn\.extra' is \(32, 24\) in layer 1 and \(32, 25\) in layer 3; one shape is"
            r" needed"
        ),
    ):
        spec(uneven, "extra")


def test_a_target_that_no_layer_has_is_refused_with_those_that_exist(uneven):
    with pytest.raises(
        HostError, match=r"\['nose'\] match no linear layer.*there are down_proj, extra, gate_proj"
    ):
        spec(uneven, "q_proj", "nose")


def test_fresh_tensors_change_nothing_and_have_the_rank_asked_for(uneven):
    lora_spec = spec(uneven, "extra", rank=3)
    tensors = LoraTensors(lora_spec, 4)
    config, named = tensors.to_peft()
    shapes = {key.split(".lora_")[1]: tuple(value.shape) for key, value in named.items()}
    assert shapes == {"A.weight": (3, 32), "B.weight": (24, 3)} and (
        config["r"],
        config["lora_alpha"],
    ) == (3, 4.0)
    assert set(config["target_modules"]) == {
        f"{lora_spec.layers_path}.{layer}.self_attn.extra" for layer in (1, 3)
    }
    assert all((value == 0).all() == (".lora_B." in key) for key, value in named.items())


def test_an_adapter_file_is_read_whole_or_not_at_all(uneven):
    tensors = LoraTensors(spec(uneven, "extra"), 4)
    _, named = tensors.to_peft()
    key = next(iter(named))
    with pytest.raises(CheckpointError, match="lacks 1 tensors, the first is"):
        tensors.load_peft({name: value for name, value in named.items() if name != key})
    with pytest.raises(CheckpointError, match="which the configuration does not expect"):
        tensors.load_peft({**named, key.replace(".layers.1.", ".layers.2."): named[key]})
    with pytest.raises(
        CheckpointError, match=r"has shape \(2, 31\), the configuration says \(2, 32\)"
    ):
        tensors.load_peft({**named, key: named[key][:, 1:]})


@pytest.mark.parametrize(
    ("tensor", "text"),
    [
        (torch.tensor([1]), "is torch.int64; floating-point"),
        (torch.tensor([1.0, torch.nan]), "not finite"),
    ],
)
def test_tensors_of_integers_or_nan_are_refused_with_the_file_s_name(tensor, text):
    check_numbers({"w": torch.ones(2)}, "adapter.safetensors")
    with pytest.raises(CheckpointError, match=f"adapter.safetensors: tensor 'w' .*{text}"):
        check_numbers({"w": tensor}, "adapter.safetensors")


@pytest.mark.parametrize(
    ("width", "allowed"), [(0, False), (1, True), (2**20, True), (2**20 + 1, False)]
)
def test_widths_of_a_saved_adaptation_are_bounded(width, allowed):
    make = lambda: LoraSpec(
        params=LoraParams(), shapes={"q_proj": (4, width)}, layers_path="layers"
    )
    if allowed:
        assert make().shapes == {"q_proj": (4, width)}
    else:
        with pytest.raises(ValidationError, match="q_proj"):
            make()


@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize("autocast", [False, True])
def test_what_lora_adds_is_computed_in_fp32_also_under_autocast(named, autocast):
    torch.manual_seed(0)
    matrix_a = torch.randn(2, 64)
    matrix_b = torch.randn(8, 2)
    states = torch.randn(3, 64)
    before = torch.randn(3, 8)
    passed = ForwardPass(None, lora=True)
    hook = LoraHook(matrix_a, matrix_b, 0.5, 7, lambda: passed)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        args = () if named else (states,)
        kwargs = {"input": states} if named else {}
        adapted = hook(nn.Identity(), args, kwargs, before)
    expected = before + 0.5 * states @ matrix_a.T @ matrix_b.T
    torch.testing.assert_close(adapted, expected, atol=1e-5, rtol=1e-5)
    assert passed.fired == {7}
    passed.lora = False
    assert hook(nn.Identity(), (states,), {}, before) is None

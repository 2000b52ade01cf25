"""A modulation: made for a host, saved, and loaded."""

import json
import resource

import pytest
import torch
from safetensors.torch import load_file, save_file

from modulate import Injection, Modulation, Tokens
from modulate.errors import CheckpointError, MissingFileError
from tests.tiny import CLIP, fresh, inputs, qwen, selecting


def trained(host, **options):
    modulation = fresh(host, **options)
    torch.manual_seed(4)
    for parameter in modulation.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return modulation.eval()


@pytest.mark.parametrize("sharing", ["per_layer", "shared"])
def test_a_saved_modulation_gives_the_same_logits(host, tmp_path, sharing):
    modulation = trained(host, lora=True, sharing=sharing)
    modulation.save_pretrained(tmp_path)
    logits = []
    for each in (modulation, Modulation.from_pretrained(tmp_path)):
        with each.attached(host) as attachment, attachment.condition([[CLIP]] * 2):
            logits.append(host(**inputs()).logits)
    assert torch.equal(*logits)
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
        "config.json",
        "model.safetensors",
    ]


def test_a_loaded_modulation_is_frozen_unless_it_is_to_be_trained(host, tmp_path):
    trained(host, lora=True).save_pretrained(tmp_path)
    loaded = Modulation.from_pretrained(tmp_path)
    learning = Modulation.from_pretrained(tmp_path, is_trainable=True)
    assert (loaded.training, learning.training) == (False, True)
    for each in (loaded, learning):
        with each.attached(host) as attachment:
            with attachment.bare():  # switches the LoRA off, and on again
                host(**inputs())
            with attachment.condition([[CLIP]] * 2):
                logits = host(**inputs()).logits
        assert logits.requires_grad == (each is learning)
        assert {parameter.requires_grad for parameter in each.parameters()} == {each is learning}
    logits.square().sum().backward()
    assert all(
        parameter.grad is not None and parameter.grad.any()
        for name, parameter in learning.named_parameters()
        if name.startswith("out.")
    )
    assert not any(parameter.requires_grad for parameter in host.parameters())


@pytest.mark.parametrize(
    "wrong",
    [
        ".layers.00.self_attn.",
        ".layers.٠.self_attn.",
        ".layers.+0.self_attn.",
        ".layers.9999.self_attn.",
        ".layers.0.self_attn/",
    ],
)
def test_an_adapter_s_tensors_are_named_as_peft_names_them(wrong):
    lora = trained(qwen(), lora=True).lora
    tensors = lora.to_peft()[1]
    key = next(key for key in tensors if ".layers.0.self_attn." in key)
    tensors[key.replace(".layers.0.self_attn.", wrong)] = tensors.pop(key)
    with pytest.raises(
        CheckpointError, match=r"The adapter file holds .* which the configuration does not expect"
    ):
        lora.load_peft(tensors)


def test_the_adapter_folder_is_peft_s_own_format(tmp_path):
    from peft import PeftModel

    host = qwen()
    modulation = trained(host, lora=True)
    for projection in modulation.out:
        torch.nn.init.zeros_(projection.weight)
    modulation.save_pretrained(tmp_path)
    with modulation.attached(host):
        ours = host(**inputs()).logits
    theirs = PeftModel.from_pretrained(host, tmp_path / "adapter").eval()(**inputs()).logits
    torch.testing.assert_close(ours, theirs)


def test_errors_name_the_file_or_tensor_that_does_not_fit(host, tmp_path):
    modulation = trained(host, lora=True)
    modulation.save_pretrained(tmp_path)
    with pytest.raises(MissingFileError, match="is not a saved modulation"):
        Modulation.from_pretrained(tmp_path / "adapter")
    tensors = load_file(tmp_path / "model.safetensors")
    save_file(tensors | {"stray": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="1 tensors differ, the first is 'stray'"):
        Modulation.from_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"torn")
    with pytest.raises(CheckpointError, match="cannot be read"):
        Modulation.from_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text()) | {"schema_version": 99}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="schema_version"):
        Modulation.from_pretrained(tmp_path)


def test_modulation_stays_fp32_on_a_half_precision_host(tmp_path):
    host = qwen(dtype=torch.bfloat16)
    modulation = trained(host, lora=True)
    with modulation.attached(host) as attachment, attachment.condition([[CLIP]] * 2):
        assert host(**inputs(dtype=torch.bfloat16)).logits.dtype == torch.bfloat16
    assert {parameter.dtype for parameter in modulation.parameters()} == {torch.float32}


def changed_config(folder, **changes):
    path = folder / "config.json"
    config = json.loads(path.read_text())
    for key, value in changes.items():
        *parts, last = key.split("__")
        node = config
        for part in parts:
            node = node[part]
        node[last] = value
    path.write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"host__d_model": 2**20, "modulator__params": {"width": 2**16, "latents": 2**16}},
            r"it describes \d{12,} numbers, they hold \d+\.",
        ),
        ({"host__n_layers": 1024}, r"it describes \d+ numbers, they hold"),
        ({"host__d_model": 10**30}, "d_model"),
        ({"host__d_model": -1}, "d_model"),
        ({"injection__layers": [0, 99]}, "layer 99 does not exist: the host has layers 0 to"),
        ({"lora__shapes": {"a|b": [4, 4]}}, "shapes"),
        ({"lora__params__rank": 10**9}, "rank"),
        ({"modulator__params": {"width": "wide"}}, "width"),
        ({"modulator__params": {"blocks": 10**9}}, "blocks"),
        ({"injection__alpha": 1e308}, "alpha"),
        ({"lora__params__alpha": 1e308}, "alpha"),
    ],
)
def test_a_configuration_that_asks_for_too_much_or_nonsense_is_refused_before_memory_is_taken(
    changes, message, host, tmp_path
):
    trained(host, lora=True).save_pretrained(tmp_path)
    changed_config(tmp_path, **changes)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(CheckpointError, match=message):
        Modulation.from_pretrained(tmp_path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 << 10  # KiB


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\xff", "is not valid JSON"),
        (b"{" * 3000, "is not valid JSON|nested deeper"),
        (b'{"host": 1, "host": 2}', "appears twice"),
        (b" " * (2 << 20), "larger than 1048576 bytes"),
    ],
)
def test_a_configuration_that_is_not_json_is_refused(data, message, host, tmp_path):
    trained(host).save_pretrained(tmp_path)
    (tmp_path / "config.json").write_bytes(data)
    with pytest.raises(CheckpointError, match=message):
        Modulation.from_pretrained(tmp_path)


def test_tensors_that_are_not_finite_or_not_floats_are_refused(host, tmp_path):
    trained(host, lora=True).save_pretrained(tmp_path)
    for file in (
        tmp_path / "model.safetensors",
        tmp_path / "adapter" / "adapter_model.safetensors",
    ):
        tensors = load_file(file)
        name = sorted(tensors)[0]
        for wrong, message in (
            (torch.full_like(tensors[name], torch.nan), "not finite"),
            (torch.zeros(tensors[name].shape, dtype=torch.int64), "torch.int64"),
        ):
            save_file(tensors | {name: wrong}, file)
            with pytest.raises(CheckpointError, match=message):
                Modulation.from_pretrained(tmp_path)
        save_file(tensors, file)
    assert Modulation.from_pretrained(tmp_path)


def test_a_fresh_modulation_has_its_injection_in_the_configuration(host):
    injection = selecting(host, "text").config.injection
    assert injection == Injection(layers=(1, 2), tokens=Tokens(kind="text"))


def test_a_modulation_is_saved_over_an_earlier_one(host, tmp_path):
    for _ in range(2):
        modulation = trained(host, lora=True)
        torch.nn.init.normal_(modulation.amplitude)
        modulation.save_pretrained(tmp_path / "new" / "deep")
        loaded = Modulation.from_pretrained(tmp_path / "new" / "deep")
        assert torch.equal(loaded.amplitude, modulation.amplitude)
        assert all(torch.equal(value, modulation.lora[name]) for name, value in loaded.lora.items())

"""Saving and loading."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import CLIP, fresh, inputs, qwen

from modulate import Modulation
from modulate.errors import CheckpointError, MissingFileError


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
    for m in (modulation, Modulation.from_pretrained(tmp_path)):
        with m.attached(host) as attachment, attachment.condition([[CLIP]] * 2):
            logits.append(host(**inputs()).logits)
    assert torch.equal(*logits)
    assert sorted(p.name for p in tmp_path.rglob("*") if p.is_file()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
        "config.json",
        "model.safetensors",
    ]


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


def test_what_does_not_fit_is_named(host, tmp_path):
    modulation = trained(host, lora=True)
    modulation.save_pretrained(tmp_path)
    with pytest.raises(MissingFileError, match="is no saved modulation"):
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
    assert {p.dtype for p in modulation.parameters()} == {torch.float32}

"""modulate.hosts.loading: hosts from folders, and with random weights."""

import pytest
import torch

from modulate.errors import HostError
from modulate.hosts.host import Host
from modulate.hosts.loading import HostParams, load
from modulate.utils.paths import resolve
from tests.contract.processors import PROCESSORS

FOLDER = "package:modulate_tabletop/host"


def test_a_folder_is_loaded_frozen_and_in_eval_mode():
    model, processor = load(Host, HostParams(path=FOLDER, device="cpu", dtype="bfloat16"))
    assert not model.training and not any(
        parameter.requires_grad for parameter in model.parameters()
    )
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert processor.tokenizer.eos_token is not None


def test_random_weights_depend_on_the_seed_alone():
    params = HostParams(path=FOLDER, weights="random", device="cpu")
    before = torch.get_rng_state()
    first, _ = load(Host, params)
    again, _ = load(Host, params)
    other, _ = load(Host, params.model_copy(update={"seed": 1}))
    assert torch.equal(before, torch.get_rng_state())
    weights = [next(iter(model.parameters())) for model in (first, again, other)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


def test_a_folder_without_a_processor_needs_a_family_with_a_stand_in(tmp_path):
    config = (resolve(FOLDER) / "config.json").read_bytes()
    (tmp_path / "config.json").write_bytes(config)
    params = HostParams(path=str(tmp_path), weights="random", device="cpu")
    with pytest.raises(HostError, match=r"Host cannot build a processor; the folder .* must hold"):
        load(Host, params)
    PROCESSORS["qwen2_5_vl"]().save_pretrained(tmp_path)
    assert type(load(Host, params)[1]).__name__ == "Qwen2_5_VLProcessor"


def test_a_folder_without_a_configuration_is_refused_in_transformers_words(tmp_path):
    for weights, doing in (("pretrained", "loaded"), ("random", "built with random weights")):
        with pytest.raises(HostError, match=f"The host '{tmp_path}' cannot be {doing}: "):
            load(Host, HostParams(path=str(tmp_path), weights=weights, device="cpu"))

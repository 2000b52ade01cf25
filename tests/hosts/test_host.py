"""The generic host: what it finds in a model, what it refuses, and how it joins prompts."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from modulate.errors import HostError
from modulate.hosts.host import Host, base_model, understand
from modulate.hosts.loading import HostParams
from modulate.interfaces.visual_grid import VisualGrid
from modulate_hosts.qwen2_5_vl import Qwen25VL
from modulate_hosts.qwen3_vl import Qwen3VL
from tests.contract.processors import PROCESSORS
from tests.tiny import fresh, qwen


def grid(tokens):
    return VisualGrid(1, tokens, (0.0,), ((0.0, 1.0),))


def test_a_host_knows_its_parts(host):
    found = understand(host)
    assert found.entry is host.model
    assert found.language is host.model.language_model
    assert found.layers is host.model.language_model.layers
    assert found.d_model == host.config.get_text_config().hidden_size
    assert found.visual_ids == {
        "image": host.config.image_token_id,
        "video": host.config.video_token_id,
    }


def test_the_error_for_an_unknown_model_says_what_was_looked_for():
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=8,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
    )
    with pytest.raises(
        HostError,
        match=(
            r"looked for `language_model`, `model\.language_model`, `text_model`,"
            r" `model\.text_model`, found only model, lm_head\. Its configuration has no"
            r" vision_config"
        ),
    ):
        understand(LlamaForCausalLM(config))
    with pytest.raises(HostError, match=r"Linear has no `config\.model_type`"):
        understand(nn.Linear(2, 2))


def test_the_base_model_is_inside_the_wrappers_of_compilation_and_peft(host):
    from peft import LoraConfig, get_peft_model

    assert base_model(host) is host
    assert base_model(torch.compile(host, backend="eager")) is host
    adapted = get_peft_model(qwen(), LoraConfig(r=2, target_modules=["q_proj"]))
    assert base_model(adapted) is adapted.get_base_model()


def test_placeholder_ids_are_read_under_either_name():
    config = SimpleNamespace(image_token_index=7, video_token_id=8)
    assert Host.find_visual_ids(config) == {"image": 7, "video": 8}
    with pytest.raises(HostError, match="SimpleNamespace names no visual placeholder"):
        Host.find_visual_ids(SimpleNamespace(image_token_id=None))


def test_a_language_model_without_layers_is_refused():
    with pytest.raises(HostError, match="Linear is not understood as a language model"):
        Host.find_layers(nn.Linear(2, 2))
    with pytest.raises(HostError, match="not understood as a language model"):
        Host.find_layers(SimpleNamespace(layers=nn.ModuleList()))


def test_a_layer_that_does_not_exist_is_refused(host):
    with pytest.raises(HostError, match=r"decoder layer 4, -1, but \w+ has layers 0 to 3"):
        understand(host).check_layers([1, 4, -1])
    with pytest.raises(HostError, match="decoder layer 9"):
        fresh(host, layers=(1, 9))


def test_by_default_placeholders_are_the_tokens_of_the_grid(host):
    assert list(Host.placeholders(understand(host), grid(3))) == [0, 1, 2]


def test_a_batch_is_padded_on_the_left_and_its_vision_inputs_are_concatenated(host):
    rows = [
        {
            "input_ids": torch.tensor([tokens]),
            "attention_mask": torch.ones(1, len(tokens), dtype=torch.long),
            "pixel_values_videos": torch.full((2, 3), float(len(tokens))),
        }
        for tokens in ([5, 6, 7], [8])
    ]
    batch = understand(host).collate(rows, pad_id=9)
    assert batch["input_ids"].tolist() == [[5, 6, 7], [9, 9, 8]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [0, 0, 1]]
    assert batch["pixel_values_videos"][:, 0].tolist() == [3.0, 3.0, 1.0, 1.0]


def saved(host, folder):
    """Save a tiny host with a processor, and return the parameters with which a recipe loads it."""
    host.save_pretrained(folder)
    PROCESSORS["qwen2_5_vl"]().save_pretrained(folder)
    return HostParams(path=str(folder), device="cpu")


def test_the_class_that_a_recipe_names_serves_the_model_that_it_loads(host, tmp_path):
    class Own(Host):
        """Lists no types, so that only a name leads to it."""

    params = saved(host, tmp_path)
    for family in (Own, Host, Qwen25VL):
        model, _ = family.open(params)
        assert type(understand(model)) is family
        assert type(understand(torch.compile(model))) is family
    # A model that was loaded otherwise is served by the class that lists its type.
    assert type(understand(host)) is Qwen25VL


def test_a_class_that_does_not_serve_a_model_s_type_is_refused_before_weights_are_read(
    host, tmp_path
):
    class Broad(Qwen3VL):
        @classmethod
        def accepts(cls, model_type):
            return model_type.startswith("qwen")

    params = saved(host, tmp_path)
    (tmp_path / "model.safetensors").unlink()
    random = params.model_copy(update={"weights": "random"})
    for settings in (params, random):
        with pytest.raises(
            HostError,
            match=(
                r"The host class Qwen3VL, which the recipe names, serves models of type qwen3_vl,"
                r" qwen3_vl_moe, and this one is of type qwen2_5_vl; set host\.name to qwen2_5_vl"
            ),
        ):
            Qwen3VL.open(settings)
    assert type(understand(Broad.open(random)[0])) is Broad


def test_the_error_for_a_type_that_no_class_lists_names_the_generic_host():
    with pytest.raises(HostError, match=r"set host\.name to generic"):
        Qwen3VL.check_type(SimpleNamespace(model_type="gemma3"))


def test_the_generic_host_ships_no_configuration_and_no_processor():
    with pytest.raises(HostError, match="No configuration of 'some/model' ships with Host"):
        Host.load(HostParams(path="some/model", weights="random", device="cpu"))
    with pytest.raises(HostError, match="Host cannot build a processor; the folder 'here'"):
        Host.stand_in_processor("here", None)
    with pytest.raises(HostError, match="Host does not say how its configuration is narrowed"):
        Host.narrow(None)

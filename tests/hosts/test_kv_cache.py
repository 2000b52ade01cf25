"""The cache of a forward is known by what it is."""

from types import SimpleNamespace

import pytest
import torch
from transformers import Cache, DynamicCache

from modulate.errors import HostError
from modulate.hosts.kv_cache import find_cache, keys_at, output_cache
from tests.tiny import CLIP, cached, inputs


def test_a_cache_is_found_under_any_name():
    cache = DynamicCache()
    for name in ("past_key_values", "cache", "cache_params", "a_name_of_next_year"):
        assert find_cache({"input_ids": torch.ones(1, 2), name: cache, "other": None}) is cache
    assert (
        find_cache({"cache": None, "use_cache": True, "attention_mask": torch.ones(1, 2)}) is None
    )


def test_one_cache_under_two_names_is_one():
    cache = DynamicCache()
    assert find_cache({"cache": cache, "past_key_values": cache}) is cache
    with pytest.raises(HostError, match=r"got 2 caches \(cache, other\)"):
        find_cache({"cache": cache, "other": DynamicCache()})


def test_a_cache_in_a_form_that_is_not_understood_is_refused():
    pair = (torch.zeros(1, 2, 3, 4), torch.zeros(1, 2, 3, 4))
    with pytest.raises(
        HostError, match=r"'old' .* holds keys and values of 2 layers inside a tuple"
    ):
        find_cache({"old": (pair, pair)})
    with pytest.raises(HostError, match=r"'states' .* holds a DynamicCache inside a dict"):
        find_cache({"states": {"decoder": DynamicCache()}})


def test_what_a_forward_gives_out_is_named_as_it_is_taken_back(host):
    output = host(**inputs(), use_cache=True)
    assert output_cache(output) == cached(output)
    assert len(output_cache(output)) == 1
    (held,) = output_cache(output.to_tuple()).values()
    assert isinstance(held, Cache)
    assert output_cache(host(**inputs(), use_cache=False)) == {}


def test_a_past_that_no_argument_explains_is_refused(host, modulation):
    class Opaque:
        """A cache of another library: nothing tells that it is one."""

    batch = inputs(texts=((7,),))
    mask = torch.ones(1, 40, dtype=torch.long)
    with (
        modulation.attached(host) as attachment,
        pytest.raises(HostError, match=r"spans 40 positions, but it got 1 tokens .*memory"),
        attachment.condition([[CLIP]]),
    ):
        host(**batch)
        host.model(input_ids=torch.tensor([[9]]), attention_mask=mask, memory=Opaque())


def two_layers(length):
    """A cache of two layers, whose keys are their positions, in the second from 100 on: (1, 2
    heads, length, 3).
    """
    cache = DynamicCache()
    for layer in range(2):
        keys = torch.arange(length).view(1, 1, length, 1).expand(1, 2, length, 3) + 100 * layer
        cache.update(keys, keys, layer)
    return cache


def test_keys_are_those_of_the_deepest_layer_that_keeps_every_position():
    cache = two_layers(5)
    assert keys_at(cache, 3).tolist() == [[[103] * 3] * 2]
    cache.layers[1].keys = cache.layers[1].keys[:, :, :3]
    assert keys_at(cache, 2).tolist() == [[[2] * 3] * 2]
    assert keys_at(cache, 5) is None
    cache.layers[0].is_sliding = True
    assert keys_at(cache, 2) is None


def test_an_output_that_is_no_mapping_names_its_caches_by_its_attributes():
    cache = DynamicCache()
    assert output_cache(SimpleNamespace(logits=torch.ones(1), memory=cache)) == {"memory": cache}

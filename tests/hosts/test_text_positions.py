"""Positions of text that continues a cache, against those of the uncut prompt."""

import pytest
import torch

from modulate.answers.likelihood import cut, visual_end
from modulate.hosts.kv_cache import output_cache
from modulate.hosts.text_positions import align_text_positions
from modulate.interfaces.messages import user_turn
from tests.answers.prompts import Asked

LONG = tuple(float(10 * i) for i in range(8))


def states(asked, prompt):
    """What enters the first decoder layer, and the positions that it gets."""
    seen = []
    hook = asked.served.layers[0].register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["position_embeddings"][0]),
        with_kwargs=True,
    )
    try:
        prompt()
    finally:
        hook.remove()
    return seen[-1]


@pytest.mark.parametrize("name", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "glm4v"])
@torch.no_grad()
def test_text_behind_a_cut_has_the_positions_of_the_uncut_prompt(name):
    asked = Asked(name, times=LONG, texts=("Where", "Where is it"))
    ends = [visual_end(p, list(asked.served.visual_ids.values())) for p in asked.prompts]
    prefix = ends[0]
    for prompt in asked.prompts:
        whole = states(asked, lambda prompt=prompt: asked.host(**prompt))
        cache = output_cache(asked.host(**cut(prompt, prefix), use_cache=True))
        align_text_positions(asked.served, cut(prompt, prefix + 1), prefix)
        rest = prompt["input_ids"][:, prefix:]
        after = states(asked, lambda rest=rest, cache=cache: asked.host(input_ids=rest, **cache))
        torch.testing.assert_close(after, whole[..., prefix:, :])


@torch.no_grad()
def test_the_host_s_own_offset_would_be_that_of_the_clip_s_last_time():
    """Else the alignment would not be needed, and the test above could not fail."""
    asked = Asked("qwen2_5_vl", times=LONG, texts=("Where",))
    (prompt,) = asked.prompts
    prefix = visual_end(prompt, list(asked.served.visual_ids.values()))
    asked.host(**cut(prompt, prefix), use_cache=True)
    own = asked.served.entry.rope_deltas.clone()
    align_text_positions(asked.served, cut(prompt, prefix + 1), prefix)
    assert asked.served.entry.rope_deltas.shape == own.shape
    assert int(asked.served.entry.rope_deltas) < int(own)


@torch.no_grad()
def test_hosts_without_such_positions_are_left_alone():
    asked = Asked("internvl", texts=("Where",))
    prefix = visual_end(asked.prompts[0], list(asked.served.visual_ids.values()))
    before = dict(vars(asked.served.entry))
    align_text_positions(asked.served, cut(asked.prompts[0], prefix + 1), prefix)
    assert dict(vars(asked.served.entry)) == before


@torch.no_grad()
def test_text_without_a_clip_does_not_inherit_the_offset_of_an_earlier_clip():
    asked = Asked("qwen2_5_vl", times=LONG, texts=("Where",))
    asked.host(**asked.prompts[0])
    text = asked.served.encode(asked.processor, user_turn("What is the thing")).inputs
    whole = states(asked, lambda: asked.host(**text))
    cache = output_cache(asked.host(**cut(text, 2), use_cache=True))
    align_text_positions(asked.served, cut(text, 3), 2)
    rest = text["input_ids"][:, 2:]
    after = states(asked, lambda: asked.host(input_ids=rest, **cache))
    torch.testing.assert_close(after, whole[..., 2:, :])

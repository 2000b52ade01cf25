"""Greedy generation of batches, against the loop of forwards that it stands for."""

import pytest
import torch

from modulate.answers.generation import generate_greedily
from modulate_hosts.contract.suite import strong
from tests.answers.prompts import Asked


def slowly(asked, attachment, i, count):
    """The most probable tokens, one conditioned forward of the whole text for each."""
    ids = torch.zeros(0, dtype=torch.int64)
    for _ in range(count):
        ids = torch.cat([ids, asked.slow_logits(attachment, i, ids)[-1:].argmax(-1)])
    return ids


@torch.no_grad()
def test_padded_prompts_generate_what_is_most_probable_step_by_step():
    asked = Asked("qwen2_5_vl")
    joined = asked.served.collate(asked.prompts, 0)
    with strong(asked.host, lora=True).attached(asked.host) as attachment:
        with attachment.condition(asked.clips):
            found = generate_greedily(asked.host, joined, 3, [999], 0)
        for i, row in enumerate(found):
            assert row.tolist() == slowly(asked, attachment, i, 3).tolist()


@pytest.mark.parametrize("name", ["qwen3_vl", "llava_onevision", "lfm2_vl"])
@torch.no_grad()
def test_a_batch_generates_what_its_prompts_do_one_by_one(name):
    asked = Asked(name)
    with strong(asked.host).attached(asked.host) as attachment:
        with attachment.condition(asked.clips):
            together = generate_greedily(
                asked.host, asked.served.collate(asked.prompts, 0), 5, [999], 0
            )
        for prompt, clips, row in zip(asked.prompts, asked.clips, together, strict=True):
            with attachment.condition([clips]):
                (alone,) = generate_greedily(asked.host, prompt, 5, [999], 0)
            assert row.tolist() == alone.tolist() and len(row) == 5


@torch.no_grad()
def test_an_answer_ends_before_the_end_of_its_turn_whatever_the_host_s_own_settings():
    asked = Asked("qwen2_5_vl")
    joined = asked.served.collate(asked.prompts, 0)
    free = generate_greedily(asked.host, joined, 5, [999], 0)
    end = int(free[0][2])
    asked.host.generation_config.update(
        do_sample=True, temperature=5.0, repetition_penalty=9.0, eos_token_id=[]
    )
    found = generate_greedily(asked.host, joined, 5, [end], 0)
    for row, whole in zip(found, free, strict=True):
        expected = whole.tolist()
        assert row.tolist() == expected[: expected.index(end) if end in expected else None]
    assert len(found[0]) <= 2

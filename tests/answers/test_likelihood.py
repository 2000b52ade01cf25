"""Likelihoods of answers, against one plain forward for each answer, on every family of hosts."""

import pytest
import torch

from modulate.answers.likelihood import (
    TokenScores,
    continued_scores,
    cut,
    extend,
    plain_scores,
    require_causal,
    visual_end,
)
from modulate.errors import HostError
from modulate.hosts.host import understand
from modulate_hosts.contract.suite import strong
from tests.answers.prompts import Asked, drawn
from tests.contract.encodings import built
from tests.contract.processors import PROCESSORS

# Llama 4 fails by itself in transformers 5.24; PaliGemma attends to later text, and is refused.
CAUSAL = [name for name in PROCESSORS if name not in ("llama4", "paligemma")]

ANSWERS = [drawn(1, 3, 2), drawn(2, seed=1), drawn(4, 1, seed=2)]


def compare(scores, expected):
    """Assert that scores are the expected ones, and that the rest is masked."""
    for i, own in enumerate(expected):
        for j, tokens in enumerate(own):
            torch.testing.assert_close(
                scores.log_probs[i, j, : len(tokens)], tokens, atol=1e-5, rtol=1e-4
            )
            assert scores.mask[i, j].sum() == len(tokens)
        assert not scores.mask[i, len(own) :].any()
    assert not scores.log_probs[~scores.mask].any()


@pytest.mark.parametrize("name", CAUSAL)
@torch.no_grad()
def test_answers_score_as_in_a_forward_of_their_own(name):
    asked = Asked(name)
    ids = list(asked.served.visual_ids.values())
    (prefix,) = {visual_end(prompt, ids) for prompt in asked.prompts}
    with strong(asked.host, lora=True).attached(asked.host) as attachment:
        expected = [
            [asked.slow_scores(attachment, i, answer) for answer in own]
            for i, own in enumerate(ANSWERS)
        ]
        with attachment.condition(asked.clips):
            found = continued_scores(asked.host, asked.served, asked.prompts, ANSWERS, prefix, 0)
        compare(found, expected)
        firsts = [own[0] for own in ANSWERS]
        with attachment.condition(asked.clips):
            found = plain_scores(asked.host, asked.served, asked.prompts, firsts, 0)
        compare(found, [own[:1] for own in expected])


@pytest.mark.parametrize("name", ["qwen2_5_vl", "qwen3_5", "internvl"])
@torch.no_grad()
def test_questions_on_one_clip_share_the_pass_over_it(name):
    asked = Asked(name, same_clip=True)
    prefix = visual_end(asked.prompts[0], list(asked.served.visual_ids.values()))
    clips = asked.clips[0]
    with strong(asked.host, lora=True).attached(asked.host) as attachment:
        expected = [
            [asked.slow_scores(attachment, i, answer, clips) for answer in own]
            for i, own in enumerate(ANSWERS)
        ]
        with attachment.condition([clips]):
            found = continued_scores(
                asked.host, asked.served, asked.prompts, ANSWERS, prefix, 0, is_shared=True
            )
    compare(found, expected)


def test_text_after_a_long_clip_has_the_positions_of_the_uncut_prompt():
    """Qwen2.5-VL counts a clip's time in positions, which may run far beyond those of text."""
    times = tuple(float(10 * i) for i in range(8))
    asked = Asked("qwen2_5_vl", times=times)
    prefix = visual_end(asked.prompts[0], list(asked.served.visual_ids.values()))
    with torch.no_grad(), strong(asked.host).attached(asked.host) as attachment:
        expected = [
            [asked.slow_scores(attachment, i, answer) for answer in own]
            for i, own in enumerate(ANSWERS)
        ]
        with attachment.condition(asked.clips):
            found = continued_scores(asked.host, asked.served, asked.prompts, ANSWERS, prefix, 0)
    compare(found, expected)


@pytest.mark.parametrize("is_continued", [True, False])
def test_gradients_are_those_of_plain_forwards(is_continued):
    asked = Asked("qwen3_vl")
    answers = [own[:1] for own in ANSWERS]
    prefix = visual_end(asked.prompts[0], list(asked.served.visual_ids.values()))
    gradients = []
    for slow in (True, False):
        modulation = strong(asked.host, lora=True)
        with modulation.attached(asked.host) as attachment:
            if slow:
                total = sum(
                    asked.slow_scores(attachment, i, own[0]).sum() for i, own in enumerate(answers)
                )
            else:
                with attachment.condition(asked.clips):
                    if is_continued:
                        scores = continued_scores(
                            asked.host, asked.served, asked.prompts, answers, prefix, 0
                        )
                    else:
                        flat = [own[0] for own in answers]
                        scores = plain_scores(asked.host, asked.served, asked.prompts, flat, 0)
                total = scores.log_probs.sum()
            total.backward()
        gradients.append(
            {n: p.grad for n, p in modulation.named_parameters() if p.grad is not None}
        )
    assert gradients[0].keys() == gradients[1].keys() and len(gradients[0]) > 10
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, atol=1e-4, rtol=1e-3)


def test_options_are_scored_by_sum_mean_or_first_token():
    mask = torch.tensor([[[1, 1], [1, 0]], [[1, 1], [0, 0]]]).bool()
    log_probs = torch.tensor([[[-1.0, -3.0], [-2.5, 0.0]], [[-4.0, -2.0], [0.0, 0.0]]])
    scores = TokenScores(log_probs, log_probs, mask, mask)
    missing = float("-inf")
    assert scores.option_scores("sum").tolist() == [[-4.0, -2.5], [-6.0, missing]]
    assert scores.option_scores("mean").tolist() == [[-2.0, -2.5], [-3.0, missing]]
    assert scores.option_scores("first").tolist() == [[-1.0, -2.5], [-4.0, missing]]


@torch.no_grad()
def test_the_most_probable_token_and_the_mean_over_the_vocabulary_are_told():
    asked = Asked("qwen2_vl", texts=("Where",))
    with strong(asked.host).attached(asked.host) as attachment:
        with attachment.condition(asked.clips):
            best = asked.host(**asked.prompts[0]).logits[0, -1]
        answers = [torch.stack([best.argmax()]), torch.stack([best.argmin()])]
        with attachment.condition(asked.clips):
            scores = continued_scores(asked.host, asked.served, asked.prompts, [answers], 15, 0)
    assert scores.is_top[0, :, 0].tolist() == [True, False]
    expected = best.log_softmax(0).mean()
    torch.testing.assert_close(scores.uniform[0, :, 0], expected.expand(2))


def test_prompts_are_cut_and_extended_along_their_positions_only():
    inputs = {
        "input_ids": torch.tensor([[1, 5, 5, 7]]),
        "attention_mask": torch.ones(1, 4),
        "mm_token_type_ids": torch.tensor([[0, 2, 2, 0]]),
        "pixel_values_videos": torch.zeros(8, 3),
    }
    assert visual_end(inputs, [5]) == 3 and visual_end(inputs, [9]) == 1
    short = cut(inputs, 3)
    assert short["input_ids"].tolist() == [[1, 5, 5]] and "attention_mask" not in short
    assert short["pixel_values_videos"].shape == (8, 3)
    longer = extend(inputs, torch.tensor([8, 9]))
    assert longer["input_ids"].tolist() == [[1, 5, 5, 7, 8, 9]]
    assert longer["attention_mask"].tolist() == [[1.0] * 6]
    assert longer["mm_token_type_ids"].tolist() == [[0, 2, 2, 0, 0, 0]]
    assert longer["pixel_values_videos"].shape == (8, 3)


def test_a_host_whose_text_attends_to_later_text_is_refused():
    with pytest.raises(HostError, match=r"PaliGemma.* attend to those behind them"):
        require_causal(understand(built("paligemma")))
    require_causal(understand(built("qwen2_5_vl")))

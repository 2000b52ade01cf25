"""Batches: by clip, in order, and the logits of their options."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import torch

from modulate.inference.batching import (
    Batch,
    batches_by_clip,
    batches_in_order,
    clip_key,
    evaluation_batches,
)
from tests.samples import one_clip_sample


def sample(number, video):
    return one_clip_sample(str(number), video, (0.0, 8.0), signals={"gaze": Path("g")})


def ids(batches):
    return [[sample.id for sample in batch] for batch in batches]


SAMPLES = [sample(number, "aabacb"[number % 6]) for number in range(11)]


def test_batches_by_clip_keep_the_order_and_every_sample():
    batches = batches_by_clip(SAMPLES, 3)
    assert ids(batches) == [["0", "1", "3"], ["6", "7", "9"], ["2", "5", "8"], ["4", "10"]]
    assert all(len({clip_key(member) for member in batch}) == 1 for batch in batches)


def test_samples_of_several_clips_share_a_batch_if_all_their_clips_are_equal():
    first, second = sample(0, "a").clip, sample(1, "b").clip
    several = [(first, second), (second, first), (first, second), (first,), (first, first)]
    members = [replace(sample(i, "a"), clips=clips) for i, clips in enumerate(several)]
    assert ids(batches_by_clip(members, 3)) == [["0", "2"], ["1"], ["3"], ["4"]]


def test_an_evaluation_by_clip_batches_single_samples_last():
    batches = evaluation_batches([*SAMPLES, sample(11, "d"), sample(12, "e")], 5, "clip")
    assert ids(batches) == [
        ["0", "1", "3", "6", "7"],
        ["2", "5", "8"],
        ["4", "10"],
        ["9", "11", "12"],
    ]


def test_any_samples_share_a_batch_in_their_order():
    expected = [SAMPLES[:4], SAMPLES[4:8], SAMPLES[8:]]
    assert batches_in_order(SAMPLES, 4) == expected
    assert evaluation_batches(SAMPLES, 4, "any") == expected


def test_option_logits_are_those_of_the_last_position_and_padding_cannot_win():
    logits = torch.arange(12.0).reshape(2, 2, 3)
    batch = Batch([], {}, torch.tensor([[2, 0], [1, -1]]), torch.tensor([0, 0]))
    found = batch.option_logits(SimpleNamespace(logits=logits.half()))
    assert found.dtype == torch.float32
    assert found.tolist() == [[5.0, 3.0], [10.0, float("-inf")]]

"""What training samples are conditioned with, and the random numbers that this takes."""

import random
import threading

import pytest
from torch.distributed import HashStore

from modulate.distributed.process_group import ProcessGroup
from modulate.training.augmentation import Augmentation


def conditioned(pipeline, batches, rng=None, processes=None):
    """Return a step's batches with their clips, and the state of the random numbers after it."""
    rng = rng or random.Random(0)
    augmentation = Augmentation(
        pipeline.recipe.training, pipeline.host, rng, processes or ProcessGroup()
    )
    return augmentation.condition(batches), rng.getstate()


def prepared(pipeline):
    return [pipeline.prepare(sample, training=True) for sample in pipeline.samples("train")]


def starts(batches):
    return [[clip.signal.starts.tolist() for clip in clips] for b in batches for _, clips in b]


@pytest.mark.parametrize("augment", [False, True])
def test_samples_are_conditioned_with_their_signal_a_blank_one_or_nothing(begin, augment):
    _, pipeline = begin(f"training.augment={str(augment).lower()}")
    samples = prepared(pipeline)
    own, state = conditioned(pipeline, [samples])
    assert (state == random.Random(0).getstate()) is not augment
    signals = [clips[0].signal for _, clips in own[0]]
    if not augment:
        assert all(a is b.clips[0].signal for a, b in zip(signals, samples, strict=True))
    _, pipeline = begin("name=blank", "training.condition=blank")
    blank, _ = conditioned(pipeline, [samples])
    assert [len(clips[0].signal) for _, clips in blank[0]] == [0] * len(samples)
    _, pipeline = begin(
        "name=none",
        "training.condition=none",
        "training.stages=[{name: lora, train: [lora], epochs: 1}]",
    )
    bare, state = conditioned(pipeline, [samples])
    assert [clips for _, clips in bare[0]] == [[]] * len(samples)
    assert state == random.Random(0).getstate()


def test_questions_that_share_a_forward_share_one_perturbation(begin):
    _, pipeline = begin("training.batch_by=clip")
    first = prepared(pipeline)[0]
    (batch,), shared = conditioned(pipeline, [[first, first]])
    assert batch[0][1] is batch[1][1]
    _, once = conditioned(pipeline, [[first]])
    assert shared == once


def test_two_processes_draw_the_numbers_of_one(begin):
    _, pipeline = begin()
    samples = prepared(pipeline)
    whole, after = conditioned(pipeline, [samples[:3], samples[3:]])
    store = HashStore()
    found = {}

    def work(rank, batches):
        group = ProcessGroup(rank, 2, store)
        found[rank] = conditioned(pipeline, batches, processes=group)

    parts = {0: [samples[:2], []], 1: [samples[2:3], samples[3:]]}
    threads = [threading.Thread(target=work, args=item) for item in parts.items()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert starts(found[0][0]) + starts(found[1][0]) == starts(whole)
    assert found[0][1] == found[1][1] == after != random.Random(0).getstate()

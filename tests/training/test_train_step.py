"""Gradients of one optimizer step: the same in parts, where memory is short, as in one."""

import random
from functools import partial

import pytest
import torch

from modulate.distributed.process_group import ProcessGroup
from modulate.errors import DataError
from modulate.modulation.attachment import ModulatedHost
from modulate.training.augmentation import Augmentation
from modulate.training.data_loader import FailedSamples
from modulate.training.loss import BatchLoss
from modulate.training.optimizer import select
from modulate.training.processes import accelerator_for
from modulate.training.train_step import TrainStep
from modulate.training.trainer import train
from tests.training.runs import STEPS


def gradients(pipeline, batches):
    modulation = pipeline.fresh_modulation()
    torch.manual_seed(0)
    for projection in modulation.out:
        torch.nn.init.normal_(projection.weight, std=0.1)
    select(modulation, pipeline.recipe.training.stages[1])
    host = ModulatedHost(modulation.train(), pipeline.model)
    folder = pipeline.extractor.feature_cache.folder
    accelerator = accelerator_for(pipeline.recipe, pipeline.device, folder)
    settings = pipeline.recipe.training
    alone = ProcessGroup()
    failures = FailedSamples({}, 4, max_share=0.0)
    step = TrainStep(
        BatchLoss(pipeline, accelerator, host),
        Augmentation(settings, host.attachment.host, random.Random(0), alone),
        failures,
        partial(pipeline.prepare, training=True),
        alone,
    )
    try:
        stats = step.accumulate(batches)
    finally:
        host.attachment.detach()
    return {name: p.grad for name, p in modulation.named_parameters()}, stats, failures.errors


def test_what_does_not_fit_is_done_in_halves_with_the_same_gradients(begin, small_memory):
    _, pipeline = begin()
    samples = pipeline.samples("train")
    assert len(samples) == 4
    batches = [samples[:3], samples[3:]]
    expected, plain, _ = gradients(pipeline, batches)
    small_memory(1)
    with pytest.warns(
        UserWarning,
        match=(
            r"A forward of 3 samples does not fit into memory \(CUDA out of memory\); it is done in"
            r" parts of 1, with the same gradients"
        ),
    ):
        found, stats, failed = gradients(pipeline, batches)
    assert (
        stats.split
        and not plain.split
        and stats.ids == plain.ids
        and not failed
        and stats.loss == pytest.approx(plain.loss)
    )
    assert expected.keys() == found.keys() and any(
        g is not None and g.abs().max() > 1e-4 for g in found.values()
    )
    assert {
        n: float(g.norm())
        for n, g in expected.items()
        if (g - found[n]).norm() > 1e-4 * g.norm() + 1e-7
    } == {}


def test_a_backward_that_runs_out_of_memory_leaves_nothing_behind(begin, whole):
    _, pipeline = begin()
    samples = pipeline.samples("train")
    expected, _, _ = gradients(pipeline, [samples])
    seen = []

    def overflow(module, grad_output):
        seen.append(grad_output[0].shape[0])
        if len(seen) == 1:  # the later layers have their gradients by now
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to …")

    handle = pipeline.host.layers[2].register_full_backward_pre_hook(overflow)
    try:
        with pytest.warns(UserWarning, match="in parts of 2"):
            found, _, _ = gradients(pipeline, [samples])
    finally:
        handle.remove()
    assert seen == [4, 2, 2]
    assert {
        n: float(g.norm())
        for n, g in expected.items()
        if (g - found[n]).norm() > 1e-4 * g.norm() + 1e-7
    } == {}


def test_a_sample_that_does_not_fit_alone_is_recorded_and_the_others_go_on(begin, small_memory):
    run, pipeline = begin("evaluation.max_failed_share=0.25", "training.validate_every=null")
    big = pipeline.samples("train")[0]
    length = pipeline.prepare(big, training=True).inputs["input_ids"].shape[1]

    def check(module, args, kwargs):
        if (kwargs["attention_mask"].sum(1) == length).any() and (
            kwargs["input_ids"][:, -length:]
            == pipeline.prepare(big, training=True).inputs["input_ids"]
        ).all(1).any():
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to …")

    handle = pipeline.model.register_forward_pre_hook(check, with_kwargs=True)
    try:
        with pytest.warns(UserWarning, match="A forward of 2 samples does not fit"):
            train(run, pipeline)
        state = run.read_json("state.json")
        assert (
            list(state["failed"]) == [big.id]
            and state["split_steps"] >= 3
            and state["steps"] == STEPS
        )
        assert (
            state["failed"][big.id]
            == f"Sample {big.id}: does not fit into memory, even alone (CUDA out of memory). Lower"
            " sampling.train_max_frames."
        )
        strict, pipeline = begin("name=strict", "training.validate_every=null")
        with (
            pytest.raises(
                DataError,
                match=(
                    r"1 of 4 training samples failed, more than max_failed_share allows\. Sample"
                    r" .*even alone"
                ),
            ),
            pytest.warns(UserWarning, match="parts of 1"),
        ):
            train(strict, pipeline)
    finally:
        handle.remove()

"""Optimizer steps: how many a stage has, which are skipped, and when a training has diverged."""

import json
import math
import random

import pytest
import torch

from modulate.config.sections import Stage
from modulate.errors import DataError, DivergedError, Interrupted
from modulate.training.loss import StepStats
from modulate.training.optimizer_step import StagePlan, diagnosis
from modulate.training.trainer import train
from modulate.training.trainer_state import TrainerState
from modulate.utils.interrupts import StopRequest
from tests.training.runs import scaling, spoil, stopping

STAGE = Stage(name="joint", train=("modulator",), epochs=1.5, lr=0.003)


@pytest.mark.parametrize(
    ("batches", "accumulation", "steps", "per_epoch"),
    [(4, 1, 6, 4), (4, 3, 3, 2), (1, 1, 2, 1), (5, 8, 2, 1)],
)
def test_a_stage_has_steps_for_its_epochs(batches, accumulation, steps, per_epoch):
    assert StagePlan.of(STAGE, batches, accumulation) == StagePlan(STAGE, steps, per_epoch)


def test_a_stage_of_part_of_a_step_has_one_step():
    short = STAGE.model_copy(update={"epochs": 0.1})
    assert StagePlan.of(short, 4, 2).steps == 1


def test_a_diagnosis_names_stage_samples_rate_and_the_first_bad_parameters():
    state = TrainerState(step=17, consecutive_skips=5)
    stats = StepStats(loss=math.nan, ids=["a", "b", "c", "d"])
    text = diagnosis(STAGE, state, stats, ["out.0", "out.1", "gate", "other"])
    assert "5 optimizer steps in a row" in text and "step 17 of stage 'joint'" in text
    assert "on 4 samples, the first a, b, c" in text and "0.003" in text
    assert "not finite in 4 parameters, among them out.0, out.1, gate" in text
    assert "Its gradients are finite" in diagnosis(STAGE, state, stats, [])


def test_a_step_that_is_not_finite_is_skipped_and_counted(begin):
    run, pipeline = begin("training.validate_every=null", "training.max_skipped_steps=2")
    handle = spoil(pipeline, lambda n: n in (1, 3))
    heard = []
    try:
        modulation = train(run, pipeline, heard.append)
    finally:
        handle.remove()
    log = [json.loads(line) for line in (run.folder / "log.jsonl").read_text().splitlines()]
    assert [r["loss"] is None for r in log] == [True, False, True, False, False, False] and [
        p.skipped for p in heard[:2]
    ] == ["not_finite", ""]
    assert [r.get("skipped") for r in log] == ["not_finite", None, "not_finite", None, None, None]
    assert run.read_json("state.json")["skipped"] == {"not_finite": 2}
    assert all(v.isfinite().all() for v in modulation.state_dict().values())


def test_many_in_a_row_stop_the_run_with_a_diagnosis(begin):
    run, pipeline = begin("training.validate_every=null", "training.max_skipped_steps=3")
    handle = spoil(pipeline, lambda n: n > 1)
    text = (
        r"Training diverged: 3 optimizer steps in a row had a loss or gradients that are not"
        r" finite\. The last is step 4 of stage 'modulator': loss nan on 2 samples, the "
        r"first \S+, \S+\. Gradients are not finite in \d+ parameters, among them .+\. Lower the"
        r" learning rate 0\.001, look at these samples, or let training\.max_skipped"
    )
    try:
        with pytest.raises(DivergedError, match=text):
            train(run, pipeline)
        with pytest.raises(
            DivergedError, match="3 optimizer steps in a row"
        ):  # the count goes on where it was
            train(run, pipeline)
    finally:
        handle.remove()


def test_gradients_that_are_not_finite_behind_a_finite_loss_are_named(begin, whole):
    run, pipeline = begin("training.validate_every=null", "training.max_skipped_steps=1")
    layer = pipeline.host.layers[1]  # its own residual is behind it, that of layer 0 before it
    handle = layer.register_full_backward_hook(
        lambda module, grads, out: tuple(None if g is None else g * math.inf for g in grads)
    )
    try:
        with pytest.raises(
            DivergedError,
            match=(
                r"loss [\d.]+ on 2 samples, .*Gradients are not finite in \d+ parameters, among"
                r" them (?!.*out\.1)"
            ),
        ):
            train(run, pipeline)
    finally:
        handle.remove()


@pytest.mark.parametrize("scaled", [False, True])
def test_a_step_whose_samples_all_failed_is_counted_and_trips_nothing(begin, monkeypatch, scaled):
    if scaled:
        scaling(monkeypatch)
    run, pipeline = begin("training.validate_every=null", "evaluation.max_failed_share=0.5")
    order = list(pipeline.samples("train"))
    random.Random(f"{pipeline.recipe.seed}:modulator:0").shuffle(order)
    bad = {s.id for s in order[:2]}
    prepare = pipeline.prepare

    def broken(sample, view="own", training=False):
        if sample.id in bad:
            raise DataError(f"Sample {sample.id}: broken.")
        return prepare(sample, view, training)

    monkeypatch.setattr(pipeline, "prepare", broken)
    before = pipeline.fresh_modulation().state_dict()
    stop = StopRequest()
    with pytest.raises(Interrupted):
        train(run, pipeline, stopping(stop, 1), stop=stop)
    found = run.checkpoints.latest()
    assert all(
        torch.equal(found.tensors[f"model/{k}"], v) for k, v in before.items()
    ) and found.notes["state"]["skipped"] == {"no_samples": 1}
    train(run, pipeline)
    state = run.read_json("state.json")
    assert state["skipped"]["no_samples"] >= 1 and set(state["failed"]) == bad


def test_fp16_s_search_for_its_scale_is_no_divergence_and_goes_on_after_a_kill(begin, monkeypatch):
    scaling(monkeypatch, init_scale=16.0)
    run, pipeline = begin("training.validate_every=null", "training.max_skipped_steps=1")
    too_large = pipeline.host.layers[1].register_full_backward_hook(
        lambda module, grads, out: tuple(None if g is None else g * math.inf for g in grads)
    )
    try:
        for scale in (8.0, 4.0):
            stop = StopRequest()
            with pytest.raises(Interrupted):
                train(run, pipeline, stopping(stop), stop=stop)
            assert run.checkpoints.latest().notes["scaler"]["scale"] == scale
        with pytest.raises(
            DivergedError, match="1 optimizer steps in a row"
        ):  # at scale 1 it is the gradients themselves
            train(run, pipeline)
    finally:
        too_large.remove()
    train(run, pipeline)
    assert run.read_json("state.json")["skipped"] == {
        "scaled": 4
    }  # the step that stopped it is taken anew

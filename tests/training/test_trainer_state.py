"""Where a training is when it has not begun, and what a changed run says."""

import random
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator

from modulate.errors import CheckpointError, DataError
from modulate.runs.checkpoints import Checkpoint
from modulate.training.trainer_state import (
    Snapshot,
    TrainerState,
    parse_notes,
    require_same_inputs,
)


def test_a_training_begins_at_the_start_with_nothing_behind_it():
    counts = {
        "stage",
        "step",
        "validated",
        "stale",
        "steps",
        "lines",
        "seconds",
        "consecutive_skips",
        "split_steps",
        "unshared_batches",
    }
    found = vars(TrainerState())
    assert all(found[name] == 0 for name in counts) and found["best"] == -1.0
    assert (found["failed"], found["skipped"], found["resumed"]) == ({}, {}, []) and len(
        found
    ) == len(counts) + 4


def unpacked(notes, tensors, accelerator):
    """What a run reads back of a checkpoint that holds this; of a run made of nothing, unless it
    says so.
    """
    kept = Checkpoint({"made_of": {}, **notes}, tensors)
    return Snapshot.unpack(kept, parse_notes(kept, Path("checkpoints")), accelerator)


def test_a_snapshot_is_unpacked_as_it_was_packed_with_all_random_numbers():
    accelerator = Accelerator(cpu=True)
    rng = random.Random(3)
    rng.gauss(0, 1)
    torch.manual_seed(5)
    state = TrainerState(stage=1, step=4, failed={"a": "b"}, resumed=[2])
    notes, tensors = Snapshot(
        state,
        {"w/x": torch.ones(2)},
        {"w/x": torch.zeros(2)},
        {"exp_avg/w": torch.full((2,), 3.0)},
        rng,
    ).pack(accelerator)
    wanted = torch.rand(3), rng.random(), rng.gauss(0, 1)
    torch.manual_seed(6)
    found = unpacked(notes, tensors, accelerator)
    assert (
        found.state == state
        and (found.rng.random(), found.rng.gauss(0, 1)) == wanted[1:]
        and torch.equal(torch.rand(3), wanted[0])
    )
    assert [list(part) for part in (found.model, found.best, found.moments)] == [
        ["w/x"],
        ["w/x"],
        ["exp_avg/w"],
    ]
    assert (
        (found.model["w/x"] == 1).all()
        and (found.best["w/x"] == 0).all()
        and (found.moments["exp_avg/w"] == 3).all()
    )


def test_a_loss_scale_is_no_matter_where_none_is_used():
    accelerator = Accelerator(cpu=True)
    notes, tensors = Snapshot(TrainerState(), {}, {}, {}, random.Random(0)).pack(accelerator)
    assert notes["scaler"] is None
    assert (
        unpacked(notes | {"scaler": {"scale": 2.0}}, tensors, accelerator).state == TrainerState()
    )


def test_random_numbers_of_a_gpu_are_no_matter_on_the_cpu():
    accelerator = Accelerator(cpu=True)
    notes, tensors = Snapshot(TrainerState(), {}, {}, {}, random.Random(0)).pack(accelerator)
    assert "random/cuda" not in tensors
    assert (
        unpacked(
            notes, tensors | {"random/cuda": torch.zeros(16, dtype=torch.uint8)}, accelerator
        ).state
        == TrainerState()
    )


@pytest.mark.parametrize(
    "damage",
    [
        lambda n, t: n.pop("state"),
        lambda n, t: n["state"].update(nose=1),
        lambda n, t: n.pop("random"),
        lambda n, t: t.update({"nose/x": torch.ones(1)}),
    ],
)
def test_a_checkpoint_of_another_version_says_so(damage):
    accelerator = Accelerator(cpu=True)
    notes, tensors = Snapshot(TrainerState(), {}, {}, {}, random.Random(0)).pack(accelerator)
    damage(notes, tensors)
    with pytest.raises(
        CheckpointError,
        match=(
            r"written by another version of modulate or of a plugin .*; start it anew with"
            r" --no-resume"
        ),
    ):
        unpacked(notes, tensors, accelerator)


def test_weights_that_do_not_fit_say_so():
    with pytest.raises(CheckpointError, match="another version"):
        Snapshot(TrainerState(), {"nose": torch.ones(1)}, {}, {}, random.Random(0)).load_into(
            torch.nn.Linear(2, 2)
        )


def test_what_has_changed_since_a_run_began_is_named(tmp_path):
    require_same_inputs(tmp_path, {"data": "1", "host": "2"}, {"host": "2", "data": "1"})
    with pytest.raises(DataError, match="was begun with other data and host than there is now"):
        require_same_inputs(
            tmp_path, {"data": "1", "host": "2", "backbone": "3"}, {"data": "0", "backbone": "3"}
        )


def test_checkpoints_of_version_0_1_have_older_names_of_two_counts():
    accelerator = Accelerator(cpu=True)
    notes, tensors = Snapshot.initial(0).pack(accelerator)
    notes["state"]["in_a_row"] = notes["state"].pop("consecutive_skips") + 3
    notes["state"]["apart"] = notes["state"].pop("unshared_batches") + 4
    state = unpacked(notes, tensors, accelerator).state
    assert state == TrainerState(consecutive_skips=3, unshared_batches=4)


def test_steps_are_counted_by_what_became_of_them():
    state = TrainerState()
    runs = []
    for skipped in ("not_finite", "not_finite", "", "not_finite", "scaled", "no_samples"):
        state.count_step(skipped)
        runs.append(state.consecutive_skips)
    assert runs == [1, 2, 0, 1, 0, 0] and (state.step, state.steps) == (6, 6)
    assert state.skipped == {"not_finite": 3, "scaled": 1, "no_samples": 1}


def test_a_stage_ends_with_the_latest_of_its_best_weights():
    model = torch.nn.Linear(1, 1)
    snapshot = Snapshot.initial(0)
    for step, accuracy in enumerate((0.5, 0.75, 0.75, 0.5), start=1):
        snapshot.state.step = step
        torch.nn.init.constant_(model.weight, step)
        snapshot.record_validation(accuracy, model)
    state = snapshot.state
    assert (state.validated, state.best, state.stale) == (4, 0.75, 1)
    snapshot.moments = {"exp_avg/weight": torch.ones(1)}
    snapshot.finish_stage(model)
    assert model.weight.item() == 3.0
    assert snapshot.state == TrainerState(stage=1) and not snapshot.best and not snapshot.moments


def test_a_stage_without_validations_ends_with_its_last_weights():
    model = torch.nn.Linear(1, 1)
    torch.nn.init.constant_(model.weight, 7)
    Snapshot.initial(0).finish_stage(model)
    assert model.weight.item() == 7.0

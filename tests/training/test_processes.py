"""The processes and the accelerator of a training, and what is refused before it begins."""

import pytest
import torch
from accelerate import Accelerator

from modulate.config.recipe import load_recipe
from modulate.config.sections import Training
from modulate.distributed.process_group import ProcessGroup
from modulate.errors import RecipeError
from modulate.training.processes import (
    accelerator_for,
    process_group_for,
    refuse_idle_processes,
)

STAGES = ({"name": "one", "train": ("modulator",), "epochs": 1},)


@pytest.mark.parametrize(
    ("batch_size", "accumulation", "batch_by", "most"),
    [(4, 1, "any", 4), (2, 3, "length", 6), (8, 3, "clip", 3)],
)
def test_a_step_must_have_something_to_do_for_every_process(
    batch_size, accumulation, batch_by, most
):
    of = Training(
        stages=STAGES, batch_size=batch_size, accumulation=accumulation, batch_by=batch_by
    )
    refuse_idle_processes(ProcessGroup(0, most), of)
    with pytest.raises(
        RecipeError,
        match=f"{most + 1} processes share an optimizer step of {most} (samples|batches)",
    ):
        refuse_idle_processes(ProcessGroup(0, most + 1), of)


def test_a_process_started_alone_is_a_group_of_one():
    with process_group_for(load_recipe("gazeqwen_tiny")) as processes:
        assert processes == ProcessGroup()


def test_a_precision_that_the_cpu_lacks_is_refused(tmp_path):
    recipe = load_recipe("gazeqwen_tiny", ["training.precision=fp16"])
    with pytest.raises(
        RecipeError,
        match=r"training\.precision is fp16, which needs a GPU, and the host is on the CPU",
    ):
        accelerator_for(recipe, torch.device("cpu"), tmp_path)
    made = accelerator_for(load_recipe("gazeqwen_tiny"), torch.device("cpu"), tmp_path)
    assert (made.mixed_precision, made.device.type, made.log_with) == ("no", "cpu", [])


def test_processes_joined_for_another_kind_of_device_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(Accelerator, "num_processes", 2)
    monkeypatch.setattr(Accelerator, "device", torch.device("cuda"))
    with pytest.raises(
        RecipeError, match="The processes of this run are joined for cuda, and the host is on cpu"
    ):
        accelerator_for(load_recipe("gazeqwen_tiny"), torch.device("cpu"), tmp_path)
    monkeypatch.setattr(Accelerator, "num_processes", 1)
    accelerator_for(load_recipe("gazeqwen_tiny"), torch.device("cpu"), tmp_path)


def test_a_second_precision_in_one_process_is_refused(tmp_path, new_process):
    accelerator_for(load_recipe("gazeqwen_tiny"), torch.device("cpu"), tmp_path)
    with pytest.raises(
        RecipeError,
        match=r"refuses training\.precision 'bf16' on cpu: one process trains in one precision\.",
    ):
        accelerator_for(
            load_recipe("gazeqwen_tiny", ["training.precision=bf16"]), torch.device("cpu"), tmp_path
        )

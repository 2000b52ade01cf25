"""Hosts whose layers are divided among processes: what cannot be done with them is refused before
anything is loaded.
"""

import warnings

import pytest
import torch

from modulate.config.recipe import load_recipe
from modulate.distributed.process_group import ProcessGroup
from modulate.errors import DataError, RecipeError
from modulate.hosts.fsdp import full_tensor, in_step, refuse_out_of_step
from tests.paths import SMALL

DIVIDED = ProcessGroup(0, 2, shards=True)
ALONE = ProcessGroup(0, 2)
LORA_EVERYWHERE = "training.stages.0.train=[modulator, lora]"


@pytest.mark.parametrize(
    ("overrides", "text", "scoring_too"),
    [
        (
            ["training.batch_by=clip"],
            "`training.batch_by: clip` runs one forward for each clip",
            False,
        ),
        (["evaluation.batch_by=clip"], "`evaluation.batch_by: clip` runs one forward", True),
        (
            ["features.hidden_state_cache_gib=1"],
            "`features.hidden_state_cache_gib` skips layers",
            True,
        ),
        (["injection.empty=none"], "`injection.empty: none` skips the backward", False),
    ],
)
def test_what_takes_some_through_the_host_more_often_than_others_is_refused(
    overrides, text, scoring_too
):
    recipe = load_recipe(SMALL, overrides)
    with pytest.raises(RecipeError, match=text):
        refuse_out_of_step(recipe, DIVIDED, training=True)
    if scoring_too:
        with pytest.raises(RecipeError, match=text):
            refuse_out_of_step(recipe, DIVIDED, training=False)
    else:
        refuse_out_of_step(recipe, DIVIDED, training=False)
    refuse_out_of_step(recipe, ALONE, training=True)


def test_what_goes_in_step_is_not_refused():
    for overrides in ([], ["injection.empty=none", LORA_EVERYWHERE]):
        for training in (True, False):
            refuse_out_of_step(load_recipe(SMALL, overrides), DIVIDED, training)


def test_running_out_of_memory_is_final_where_the_host_is_divided_and_there_alone():
    full = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
    with (
        pytest.raises(
            DataError,
            match=(
                r"A forward does not fit into memory \(CUDA out of memory\)\. .* lower batch_size"
            ),
        ),
        in_step(DIVIDED),
    ):
        raise full
    with pytest.raises(torch.OutOfMemoryError), in_step(ALONE):
        raise full
    with pytest.raises(RuntimeError, match="shapes"), in_step(DIVIDED):
        raise RuntimeError("shapes")


def test_the_one_warning_that_our_own_hooks_cause_is_silent_and_no_other():
    with in_step(DIVIDED):
        warnings.warn("FSDP2-wrapped module Layer returned a view tensor.", stacklevel=1)
    with pytest.warns(UserWarning, match="something else"), in_step(DIVIDED):
        warnings.warn("something else", stacklevel=1)


def test_a_parameter_that_is_not_divided_is_its_own_whole():
    value = torch.ones(2)
    assert full_tensor(value) is value

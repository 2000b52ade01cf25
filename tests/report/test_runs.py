"""Runs are read, pooled over seeds, and matched with their companions."""

import re

import pytest

from modulate.errors import DataError, MissingFileError, RecipeError
from modulate.evaluation.predictions import as_lines
from modulate.report.results import compute_results
from modulate.report.runs import find_companions, group_runs, read_run
from tests.report.helpers import EASY, HARD, SIGNAL, VIDEOS, predictions, write_run


def test_seeds_of_one_recipe_are_pooled_and_named(tmp_path):
    runs = [write_run(tmp_path, f"ours-{seed}", SIGNAL, seed=seed) for seed in (12, 3)]
    runs.append(write_run(tmp_path, "other-3", SIGNAL, "encoder.name=coord_pe", seed=3))
    first, second = group_runs(runs)
    assert (first.name, first.seeds) == ("ours", (3, 12))
    assert (second.name, second.seeds) == ("other-3", (3,))
    pooled = first.pooled("signal")
    assert len(pooled) == len({record.id for record in pooled}) == 56
    assert {record.group for record in pooled} == set(VIDEOS[:8])
    assert compute_results(first, [first]).main.tasks[EASY].correct == 30


def test_runs_evaluated_under_different_conditions_are_still_one_group(tmp_path):
    more = {**SIGNAL, "centre": {EASY: "0" * 16, HARD: "0" * 12}}
    settings = ["evaluation.conditions=[none, shuffled, centre]", "evaluation.bootstrap=500"]
    runs = [
        write_run(tmp_path, "a-0", SIGNAL),
        write_run(tmp_path, "a-1", more, *settings, seed=1),
    ]
    (group,) = group_runs(runs)
    assert group.seeds_of("centre") == (1,)
    assert compute_results(group, [group]).scores["centre"].overall.n == 28


def test_the_same_recipe_and_seed_twice_is_refused(tmp_path):
    runs = [write_run(tmp_path, "a-0", SIGNAL), write_run(tmp_path, "b-0", SIGNAL)]
    message = r"a-0 and .*b-0 are runs of the same recipe with the same seed, 0"
    with pytest.raises(RecipeError, match=message):
        group_runs(runs)


def test_groups_of_equal_names_are_named_by_their_runs_or_folders(tmp_path):
    encoder = "encoder.name=coord_pe"
    runs = [
        write_run(tmp_path, "a-0", SIGNAL, folder="one/a-0"),
        write_run(tmp_path, "a-0", SIGNAL, encoder, folder="two/a-0"),
    ]
    assert [group.name for group in group_runs(runs)] == [
        str(tmp_path / "one" / "a-0"),
        str(tmp_path / "two" / "a-0"),
    ]
    runs.append(write_run(tmp_path, "a-1", SIGNAL, seed=1, folder="one/a-1"))
    runs.append(write_run(tmp_path, "a-2", SIGNAL, encoder, seed=2, folder="two/a-2"))
    assert [group.name for group in group_runs(runs)] == ["a-0 + a-1", "a-0 + a-2"]


def test_companions_are_found_by_their_recipes(three_runs):
    ours, free, lora = groups = group_runs(three_runs)
    lora_only, blank_trained = find_companions(ours, groups)
    assert (lora_only.group, blank_trained.group) == (lora, free)
    assert list(lora_only.differs) == ["training.stages"] and blank_trained.differs == {}


def test_an_encoder_may_differ_where_the_signal_is_blank_and_a_modulator_may_not(
    three_runs, tmp_path
):
    runs = [
        write_run(tmp_path, "enc-0", SIGNAL, "encoder.name=coord_pe"),
        write_run(tmp_path, "mod-0", SIGNAL, "modulator.params.latents=8"),
        write_run(tmp_path, "rank-0", SIGNAL, "lora.rank=8"),
    ]
    groups = group_runs([*three_runs, *runs])
    companions = {group.name: find_companions(group, groups) for group in groups[3:]}
    names = {
        name: [companion.group and companion.group.name for companion in found]
        for name, found in companions.items()
    }
    assert names == {
        "enc-0": ["lora-0", "free-0"],
        "mod-0": ["lora-0", None],
        "rank-0": [None, None],
    }
    _, blank_trained = companions["enc-0"]
    assert blank_trained.differs["encoder"][0]["name"] == "coord_pe"


def test_missing_companions_come_with_the_command_that_makes_them(three_runs):
    (ours,) = group_runs(three_runs[:1])
    lora, blank = (companion.missing for companion in find_companions(ours, [ours]))
    assert lora.startswith("No LoRA-only run of this recipe was given.")
    assert "training.condition=none training.stages=" in lora
    assert blank.startswith("No blank-trained run of this recipe was given.")
    assert "ours-0/recipe.yaml name=… training.condition=blank`" in blank


def test_without_lora_there_is_no_lora_only_run(tmp_path):
    stages = "training.stages=[{name: modulator, train: [modulator], epochs: 1}]"
    (group,) = group_runs([write_run(tmp_path, "bare-0", SIGNAL, "lora=null", stages)])
    lora_only, _ = find_companions(group, [group])
    assert (
        lora_only.missing == "The recipe has no LoRA, so there is no LoRA-only run to compare with."
    )


def test_a_run_that_was_not_evaluated_on_the_split_is_refused(three_runs):
    folder = three_runs[0].run.folder
    message = (
        r"predictions-val\.jsonl does not exist: the run was not evaluated on that split\."
        r" `modulate eval .*ours-0` does it"
    )
    with pytest.raises(MissingFileError, match=message):
        read_run(folder, "val")


def test_a_run_without_answers_under_its_own_condition_is_refused(three_runs):
    folder = three_runs[0].run.folder
    (folder / "predictions.jsonl").write_text(as_lines(predictions("none", "1", "t")))
    message = re.escape("holds no answers under its own condition 'signal', only none")
    with pytest.raises(DataError, match=message):
        read_run(folder)

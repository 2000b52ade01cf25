"""Training and evaluation over two real processes, on the CPU over gloo: the same as one, and one's
failure is everybody's.
"""

import gc
import json
import os
import random
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file
from torch.distributed import TCPStore

from modulate.config.recipe import load_recipe
from modulate.distributed import launch
from modulate.distributed.process_group import ProcessGroup
from modulate.errors import DataError, RankError, RecipeError
from modulate.evaluation.evaluate import evaluate
from modulate.hosts.fsdp import in_step, refuse_out_of_step
from modulate.inference.pipeline import Pipeline
from modulate.runs.run import Run
from modulate.training.epoch_sampler import epoch_batches
from modulate.training.trainer import train
from modulate.utils.file_lock import folder_lock
from tests.distributed.ranks_worker import TROUBLED, recipe_for, without
from tests.paths import ROOT


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A folder in which one process, and then two, have done the same."""
    world = tmp_path_factory.mktemp("world")
    gc.freeze()  # accelerate collects garbage before every stage
    recipe = recipe_for(world)
    pipeline = Pipeline(recipe, world / "cache")
    pipeline.make_data()
    run = Run.create(recipe, world / "solo")
    evaluate(run, pipeline, train(run, pipeline))
    bad = epoch_batches(pipeline.samples("train"), 4, "any", random.Random("0:modulator:0"))[0][
        0
    ].id
    (world / "bad.txt").write_text(bad)
    pipeline.recipe = recipe_for(world, *TROUBLED)
    without(pipeline, bad)
    train(Run.create(pipeline.recipe, world / "solo"), pipeline)
    gc.unfreeze()
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        "-m",
        "tests.distributed.ranks_worker",
        str(world),
    ]
    with folder_lock(world / "duo" / "held"):
        done = subprocess.run(
            command,
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=240,
        )
    assert done.returncode == 0, done.stderr[-4000:]
    return world


def notes(world, name):
    """What each of the two processes noted of a scenario."""
    return [json.loads((world / f"{name}-{rank}.json").read_text()) for rank in range(2)]


def log(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def weights(folder):
    return {
        **load_file(folder / "modulation/model.safetensors"),
        **load_file(folder / "modulation/adapter/adapter_model.safetensors"),
    }


def assert_same_course(solo, other):
    """Losses, steps, accuracies and rates of one process, up to rounding, and its weights."""
    expected = log(solo)
    found = log(other)
    assert len(expected) >= 2 and [r.keys() for r in found] == [r.keys() for r in expected]
    for a, b in zip(expected, found, strict=True):
        assert b == {**a, **({"loss": pytest.approx(a["loss"], rel=1e-5)} if "loss" in a else {})}
    before = weights(solo)
    after = weights(other)
    assert before.keys() == after.keys()
    # AdamW divides by the gradient's own size: where that is rounding alone, a step of any sign is
    # as right as another, and no step is larger than 1e-3.
    assert max(float((before[k] - after[k]).abs().max()) for k in before) < 5e-4
    assert all(
        torch.allclose(before[k], after[k], rtol=1e-3, atol=1e-5)
        for k in before
        if k.startswith("out.")
    )


def test_two_processes_train_as_one_also_stopped_by_one_and_resumed(world):
    for note in notes(world, "stopped"):
        assert "error" not in note, note
        assert (
            note["found"][0] == ["modulator", 1]
            and "Stopped by SIGTERM; everything up to here is saved" in note["found"][1]
        )
        assert note["found"][2:] == [["modulator", 2], ["joint", 1], ["joint", 2]]
    assert_same_course(world / "solo/gazeqwen_tiny", world / "duo/gazeqwen_tiny")
    assert json.loads((world / "duo/gazeqwen_tiny/state.json").read_text())["resumed"] == [1]


def test_one_process_writes_and_the_folder_is_one_run(world):
    names = lambda folder: {
        p.relative_to(folder).as_posix()
        for p in folder.rglob("*")
        if p.is_file() and "checkpoint/" not in str(p)
    }
    assert (
        names(world / "solo/gazeqwen_tiny")
        == names(world / "duo/gazeqwen_tiny")
        == names(world / "fsdp/gazeqwen_tiny")
    )


def test_two_processes_answer_as_one_to_the_byte(world):
    solo = world / "solo/gazeqwen_tiny"
    duo = world / "duo/judged"
    for name in ("predictions.jsonl", "metrics.json"):
        assert (solo / name).read_bytes() == (duo / name).read_bytes()
    for note in notes(
        world, "judged"
    ):  # a batch of three and one of one, side by side, under three conditions
        assert note["found"] == [[condition, 4, 4] for condition in ("signal", "blank", "host")]


def test_a_failed_sample_and_short_memory_in_one_process_change_nothing(world):
    assert [note.get("error") for note in notes(world, "troubled")] == [None, None]
    solo = world / "solo/troubled"
    duo = world / "duo/troubled"
    assert_same_course(solo, duo)
    state, expected = (json.loads((folder / "state.json").read_text()) for folder in (duo, solo))
    assert (
        state["failed"]
        == expected["failed"]
        == {(world / "bad.txt").read_text(): f"Sample {(world / 'bad.txt').read_text()}: broken."}
    )
    assert state["split_steps"] >= 1 and expected["split_steps"] == 0


def test_a_step_that_is_not_finite_in_one_process_is_skipped_by_both(world):
    assert [note.get("error") for note in notes(world, "spoiled")] == [None, None]
    assert json.loads((world / "duo/spoiled/state.json").read_text())["skipped"] == {
        "not_finite": 1
    }
    assert [r["loss"] is None for r in log(world / "duo/spoiled")] == [True, False]


def test_a_defect_in_one_process_ends_the_other_at_once_naming_it(world):
    other, own = notes(world, "broken")
    assert (own["error"], own["text"]) == ("KeyError", "'a defect'")
    assert (other["error"], other["text"]) == (
        "RankError",
        "Process 1 of 2 failed, so all processes end. KeyError: 'a defect'",
    )
    assert other["seconds"] < 8


def test_a_run_that_another_holds_is_refused_by_both(world):
    first, second = notes(world, "held")
    assert (
        first["error"] == "LockedError"
        and f"is in use by process {os.getpid()} on host" in first["text"]
    )
    assert second["error"] == "RankError" and second["text"].startswith(
        "Process 0 of 2 failed, so all processes end. LockedError: "
    )


def test_who_does_not_come_is_named(world):
    first, second = notes(world, "late")
    assert first["error"] == second["error"] == "RankError"
    assert (
        first["text"]
        == "Process 1 of 2 did not arrive within 0.2 s; it hangs, is gone, or has far more work"
        " than process 0."
    )
    assert second["text"].startswith(
        "Process 0 of 2 failed, so all processes end. RankError: Process 1 of 2 did not arrive"
    )


def test_more_processes_than_a_step_has_samples_are_refused(world):
    for note in notes(world, "crowded"):
        assert note["error"] == "RecipeError"
        assert note["text"].startswith(
            "2 processes share an optimizer step of 1 samples (training.batch_size times"
            " training.accumulation): some would never"
        )


def test_a_divided_host_gives_the_same_gradients_and_is_itself_afterwards(world):
    for note in notes(world, "sharded"):
        found = note["found"]
        assert found["divided"] == ["layers"] and found["share"] == pytest.approx(0.5)
        assert found["size"] > 1e-3 and found["gradients"] < 1e-4
        assert found["hooks"] == 0 and found["same"] and found["modules"]


def test_the_command_trains_on_a_divided_host_as_on_a_whole_one(world):
    assert [note["found"] for note in notes(world, "command")] == [0, 0]
    assert_same_course(world / "solo/gazeqwen_tiny", world / "fsdp/gazeqwen_tiny")
    answers = [
        [
            json.loads(line)["prediction"]
            for line in (world / run / "gazeqwen_tiny/predictions.jsonl").read_text().splitlines()
        ]
        for run in ("solo", "fsdp")
    ]
    assert answers[0] == answers[1] and len(answers[0]) == 12
    made_of = [
        json.loads((world / run / "gazeqwen_tiny/state.json").read_text())["made_of"]
        for run in ("solo", "fsdp")
    ]
    assert made_of[0] == made_of[1]


# --- launches, without launching


@pytest.fixture
def environment(monkeypatch):
    monkeypatch.setattr(launch, "_joined", None)
    return lambda **values: [monkeypatch.setenv(name, value) for name, value in values.items()]


def test_one_process_where_several_were_asked_for_is_an_error(environment):
    environment(ACCELERATE_USE_CPU="True", MASTER_ADDR="127.0.0.1")
    with pytest.raises(
        RecipeError,
        match=(
            r"was asked for several processes but started one, .*torchrun --nproc-per-node N"
            r" -m modulate train"
        ),
    ):
        launch.join("cpu")


def test_a_single_device_for_several_processes_and_fsdp1_are_errors(environment):
    environment(WORLD_SIZE="2", RANK="0", LOCAL_RANK="0")
    with pytest.raises(
        RecipeError,
        match=(
            r"host\.params\.device is 'cuda:1', which all processes of this run would share;"
            r" leave it at auto"
        ),
    ):
        launch.join("cuda:1")
    environment(ACCELERATE_USE_FSDP="true", FSDP_VERSION="1")
    with pytest.raises(RecipeError, match=r"asks for FSDP1, .*fsdp_version: 2"):
        launch.join("cpu")
    environment(ACCELERATE_USE_FSDP="true", FSDP_VERSION="2", FSDP_OFFLOAD_PARAMS="true")
    with pytest.raises(RecipeError, match="asks for fsdp_offload_params, which is not supported"):
        launch.join("cpu")


def test_what_the_configurations_in_the_docs_ask_for_is_done(monkeypatch):
    from accelerate.commands.config.config_args import load_config_from_file

    folder = ROOT / "docs" / "how-to" / "accelerate"
    found = {path.stem: load_config_from_file(str(path)) for path in folder.glob("*.yaml")}
    assert found.keys() == {"ddp", "fsdp2"} and {
        config.mixed_precision for config in found.values()
    } == {"no"}
    assert found["ddp"].distributed_type == "MULTI_GPU" and not found["ddp"].fsdp_config
    for key, value in found["fsdp2"].fsdp_config.items():
        monkeypatch.setenv(key.upper(), str(value))  # as accelerate's launcher does
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert launch._sharding() == (True, True) and "ACCELERATE_USE_FSDP" not in os.environ
    assert launch._sharding() == (False, True)


def test_parts_of_all_processes_laid_end_to_end_are_the_whole():
    for size in (1, 2, 3, 7):
        for n in (0, 1, 5, 8):
            parts = [ProcessGroup(rank, size).local_part(range(n)) for rank in range(size)]
            assert [i for part in parts for i in part] == list(range(n)) and max(
                map(len, parts)
            ) - min(map(len, parts)) <= 1


def test_a_process_that_was_killed_is_named_at_once():
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    processes = ProcessGroup(0, 2, TCPStore("127.0.0.1", 0, None, True))
    with (
        pytest.raises(
            RankError,
            match=(
                r"Process 1 of 2 is gone without an error: it was killed, or it crashed\. The same"
                r" command continues"
            ),
        ),
        processes.fail_together(),
    ):
        other = ProcessGroup(1, 2, processes.store)
        other._block = processes._block
        other.announce_pid(ended.pid)
        processes.barrier()


@pytest.mark.parametrize(
    ("training", "overrides", "text"),
    [
        (
            True,
            ["training.batch_by=clip"],
            r"`training\.batch_by: clip` runs one forward for each clip",
        ),
        (
            False,
            ["evaluation.batch_by=clip"],
            r"`evaluation\.batch_by: clip` runs one forward",
        ),
        (
            True,
            ["evaluation.batch_by=clip"],
            r"`evaluation\.batch_by: clip` runs one forward",
        ),  # a validation would never end
        (
            False,
            ["features.hidden_state_cache_gib=1"],
            r"`features\.hidden_state_cache_gib` skips layers for cached clips",
        ),
        (
            True,
            ["injection.empty=none"],
            r"`injection\.empty: none` skips the backward where signals are empty",
        ),
    ],
)
def test_what_would_bring_a_divided_host_out_of_step_is_refused(training, overrides, text):
    recipe = load_recipe("gazeqwen_tiny", overrides)
    refuse_out_of_step(recipe, ProcessGroup(0, 2), training)
    with pytest.raises(RecipeError, match=text):
        refuse_out_of_step(recipe, ProcessGroup(0, 2, shards=True), training)


def test_short_memory_on_a_divided_host_ends_the_run():
    with (
        pytest.raises(
            DataError,
            match=(
                r"A forward does not fit into memory \(CUDA out of memory\)\. Processes that share"
                r" a host's layers"
            ),
        ),
        in_step(ProcessGroup(0, 2, shards=True)),
    ):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
    with pytest.raises(torch.OutOfMemoryError), in_step(ProcessGroup(0, 2)):
        raise torch.OutOfMemoryError("CUDA out of memory.")


def test_a_rank_without_an_address_to_meet_at_is_refused(environment, monkeypatch):
    environment(WORLD_SIZE="2", RANK="0")
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with pytest.raises(
        RecipeError,
        match=(
            "RANK and WORLD_SIZE are set, as by a launcher, but MASTER_ADDR is not: start with"
            " torchrun"
        ),
    ):
        launch.join("cpu")

"""A training that is stopped or killed continues to the same bits, or says why it cannot."""

import errno
import os
import re
import shutil
import subprocess
from dataclasses import replace

import pytest

from modulate.errors import (
    CheckpointError,
    DataError,
    Interrupted,
    LockedError,
    StorageError,
)
from modulate.evaluation.evaluate import evaluate
from modulate.modulation.module import Modulation
from modulate.runs.run import Run
from modulate.training.trainer import train
from modulate.utils.interrupts import StopRequest
from tests.training.runs import STEPS, files_of, stopping


@pytest.mark.parametrize(
    "overrides", [(), ("training.schedule=one_cycle",)], ids=["cosine", "one_cycle"]
)
def test_a_training_stopped_after_every_step_ends_as_if_never_stopped(
    whole, begin, tmp_path, overrides
):
    expected = whole[1]
    if overrides:
        expected, pipeline = begin(*overrides)
        evaluate(expected, pipeline, train(expected, pipeline))
        shutil.move(expected.folder, tmp_path / "expected")
        expected = replace(expected, folder=tmp_path / "expected")
    run, pipeline = begin(*overrides)
    said = []
    for number in range(STEPS):
        stop = StopRequest()
        with pytest.raises(Interrupted, match="Stopped by SIGTERM; everything up to here is saved"):
            train(run, pipeline, stopping(stop), stop=stop, notice=said.append)
        assert (
            not (run.folder / "state.json").exists()
            and len((run.folder / "log.jsonl").read_text().splitlines()) >= number + 1
        )
    modulation = train(
        run, pipeline, lambda progress: pytest.fail("a step too many"), notice=said.append
    )
    assert (
        [int(re.search(r"step (\d+)", text)[1]) for text in said]
        == [1, 2, 3, 4, 5, 6]
        == run.read_json("state.json")["resumed"]
    )
    evaluate(run, pipeline, modulation)
    assert files_of(run) == files_of(expected)


def test_altered_weights_of_a_finished_run_are_made_again(whole, begin):
    run, pipeline = begin()
    train(run, pipeline)
    weights = run.weights / "model.safetensors"
    whole_bytes = weights.read_bytes()
    weights.write_bytes(whole_bytes[:-1] + bytes([whole_bytes[-1] ^ 1]))
    with pytest.raises(
        CheckpointError,
        match=(
            r"model\.safetensors was changed since training wrote it\. `modulate train` with the"
            r" run's recipe makes it again"
        ),
    ):
        run.check_weights()
    with pytest.warns(
        UserWarning,
        match=(
            r"model\.safetensors was changed since training wrote it; the modulation is made again"
            r" from the last checkpoint"
        ),
    ):
        train(run, pipeline, lambda progress: pytest.fail("trained again"))
    run.check_weights()
    assert weights.read_bytes() == whole_bytes


def test_other_data_or_another_host_is_refused_until_told_to_start_anew(begin, monkeypatch):
    run, pipeline = begin()
    stop = StopRequest()
    with pytest.raises(Interrupted):
        train(run, pipeline, stopping(stop, 2), stop=stop)
    made_of = pipeline.fingerprints()
    monkeypatch.setattr(pipeline, "fingerprints", lambda: {**made_of, "data": "other"})
    with pytest.raises(
        DataError,
        match=(
            r"was begun with other data than there is now\. Bring that back, give this run another"
            r" name with name=…, or start it anew with --no-resume"
        ),
    ):
        train(run, pipeline)
    heard = []
    train(run, pipeline, lambda p: heard.append(p.step), resume=False)
    assert heard == [1, 2, 3, 4, 1, 2] and run.read_json("state.json")["made_of"]["data"] == "other"
    monkeypatch.undo()
    with pytest.raises(
        DataError, match="was begun with other data"
    ):  # a finished one is not overwritten either
        train(run, pipeline)


def test_starting_anew_leaves_nothing_of_the_old_run(whole, begin):
    run, pipeline = begin()
    evaluate(run, pipeline, train(run, pipeline))
    (run.folder / "metrics-val.json").write_text("{}")
    stop = StopRequest()
    with pytest.raises(Interrupted):
        train(run, pipeline, stopping(stop, 1), stop=stop, resume=False)
    assert sorted(p.name for p in run.folder.iterdir()) == [
        ".lock",
        "checkpoint",
        "environment.json",
        "log.jsonl",
        "recipe.yaml",
    ]
    evaluate(run, pipeline, train(run, pipeline))
    assert files_of(run) == files_of(whole[1])


def test_a_run_that_another_process_holds_is_refused(begin):
    run, pipeline = begin()
    code = (
        "import sys; from modulate.utils.file_lock import folder_lock\nwith"
        " folder_lock(__import__('pathlib').Path(sys.argv[1])): print('held', flush=True);"
        " sys.stdin.read()"
    )
    with subprocess.Popen(
        [os.sys.executable, "-c", code, run.folder],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as holder:
        holder.stdout.readline()
        for work in (
            lambda: train(run, pipeline),
            lambda: evaluate(run, pipeline, pipeline.fresh_modulation()),
            lambda: Run.create(run.recipe, run.folder.parent),
        ):
            with pytest.raises(LockedError, match=f"is in use by process {holder.pid} on host"):
                work()
        holder.kill()


# --- evaluation


def test_a_stopped_evaluation_goes_on_with_the_conditions_that_are_left(whole, begin, monkeypatch):
    run, pipeline = begin()
    modulation = train(run, pipeline)
    stop = StopRequest()
    asked = []

    def count(condition, n, total):
        asked.append((condition, n))
        if condition == "blank":
            stop.request(15)

    with pytest.raises(Interrupted):
        evaluate(run, pipeline, modulation, advance=count, stop=stop)
    assert sorted(p.name for p in (run.folder / "evaluation").iterdir()) == ["test-signal.jsonl"]
    done = asked.copy()
    from modulate.evaluation import evaluate as module

    score = module.score
    monkeypatch.setattr(
        module, "score", lambda *args: (asked.append(("scored", args[3])), score(*args))[1]
    )
    evaluate(run, pipeline, modulation, advance=lambda *args: None)
    scored = [name for what, name in asked[len(done) :] if what == "scored"]
    assert "signal" not in scored and scored[-1] == "host"
    assert files_of(run) == files_of(whole[1]) and not (run.folder / "evaluation").exists()


def test_answers_of_other_weights_or_damaged_ones_are_not_used(whole, begin):
    run, pipeline = begin()
    modulation = train(run, pipeline)
    stop = StopRequest()
    ask_at = lambda name: (
        lambda condition, n, total: stop.request(15) if condition == name else None
    )
    other = pipeline.fresh_modulation()
    with pytest.raises(Interrupted):
        evaluate(run, pipeline, other, advance=ask_at("host"), stop=stop)
    stop = StopRequest()
    with pytest.raises(Interrupted):
        evaluate(run, pipeline, modulation, advance=ask_at("host"), stop=stop)
    path = run.folder / "evaluation" / "test-blank.jsonl"
    path.write_text(path.read_text().replace('"prediction": ', '"prediction": 1'))
    with pytest.warns(
        UserWarning,
        match=(
            r"test-blank\.jsonl are damaged \(their checksum does not match\); the condition"
            r" 'blank' is evaluated again"
        ),
    ):
        evaluate(run, pipeline, modulation)
    assert files_of(run) == files_of(whole[1])


def test_an_evaluation_short_of_memory_answers_in_halves_and_counts_what_fails(
    whole, begin, small_memory
):
    run, pipeline = begin()
    modulation = Modulation.from_pretrained(whole[1].weights)
    small_memory(1)
    with pytest.warns(UserWarning) as said:
        metrics = evaluate(run, pipeline, modulation)
    assert str(said[0].message).startswith(
        "A forward of 4 samples does not fit into memory (CUDA out of memory); it is done in"
        " halves."
    )
    assert not metrics["failed"] and metrics["overall"] == whole[2]["overall"]
    small_memory(0)
    with (
        pytest.raises(DataError, match=r"4 of 4 samples failed.*even alone"),
        pytest.warns(UserWarning),
    ):
        evaluate(run, pipeline, modulation)


# --- a full disk


def test_a_full_disk_stops_the_run_and_leaves_the_last_good_state(whole, begin, tmp_path):
    small = tmp_path / "runs"
    small.mkdir()
    if (
        os.geteuid()
        or subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", small], capture_output=True
        ).returncode
    ):
        pytest.skip("mounting a small disk is not permitted here")
    try:
        run, pipeline = begin()
        stop = StopRequest()
        with pytest.raises(Interrupted):
            train(run, pipeline, stopping(stop, 2), stop=stop)
        usage = shutil.disk_usage(small)
        ballast = small / "ballast"
        ballast.write_bytes(bytes(usage.free - 1_000_000))
        before = {p.name: p.read_bytes() for p in (run.folder / "checkpoint").iterdir()}
        with pytest.raises(
            StorageError,
            match=(
                r"checkpoint/\d+\.\w+ cannot be written: .*No space left on device.*Free some space"
            ),
        ):
            train(run, pipeline)
        assert {p.name: p.read_bytes() for p in (run.folder / "checkpoint").iterdir()} == before
        ballast.unlink()
        evaluate(run, pipeline, train(run, pipeline))
        assert files_of(run) == files_of(whole[1])
    finally:
        subprocess.run(["umount", small], check=True)


def test_a_log_that_cannot_be_written_stops_the_run(begin, monkeypatch):
    run, pipeline = begin()
    (run.folder / "log.jsonl").symlink_to("/dev/full")
    with pytest.raises(
        StorageError, match=rf"log\.jsonl cannot be written: \[Errno {errno.ENOSPC}\]"
    ):
        train(run, pipeline)

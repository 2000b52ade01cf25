"""When checkpoints are written, and what becomes of damaged and foreign ones."""

import pytest

from modulate.errors import CheckpointError, Interrupted
from modulate.evaluation.evaluate import evaluate
from modulate.training.checkpointer import Checkpointer
from modulate.training.trainer import train
from modulate.utils.interrupts import StopRequest
from tests.training.runs import files_of, stopping


def test_checkpoints_are_written_when_the_recipe_says_and_after_validations_and_stages(
    begin, monkeypatch
):
    run, pipeline = begin(
        "training.checkpoint_every=3", "training.stages.0.epochs=4", "training.validate_every=2"
    )
    saved = []
    save = Checkpointer.save

    def note_and_save(self, snapshot, modulation):
        saved.append((snapshot.state.stage, snapshot.state.step))
        save(self, snapshot, modulation)

    monkeypatch.setattr(Checkpointer, "save", note_and_save)
    stop = StopRequest()
    with pytest.raises(Interrupted):
        train(run, pipeline, stopping(stop, 7), stop=stop)
    assert saved == [(0, 3), (0, 4), (0, 6), (0, 7)]  # an epoch has two steps
    assert {p.suffix for p in (run.folder / "checkpoint").iterdir()} == {".json", ".safetensors"}
    train(run, pipeline)
    assert saved[4:] == [(0, 8), (1, 0), (1, 2), (2, 0)]
    assert (
        len(list((run.folder / "checkpoint").iterdir())) == 2
    )  # of a finished run only the weights it ended with


def test_a_damaged_checkpoint_costs_the_way_from_the_one_before(whole, begin):
    run, pipeline = begin()
    stop = StopRequest()
    with pytest.raises(Interrupted):
        train(run, pipeline, stopping(stop, 3), stop=stop)
    last = max((run.folder / "checkpoint").glob("*.safetensors"))
    last.write_bytes(last.read_bytes()[:-1] + b"?")
    heard = []
    with pytest.warns(
        UserWarning,
        match=(
            rf"the checksum of {last.name} does not match; it is removed, and the one before it is"
            r" used"
        ),
    ):
        evaluate(run, pipeline, train(run, pipeline, lambda p: heard.append((p.stage, p.step))))
    assert heard[0] == ("modulator", 3) and files_of(run) == files_of(whole[1])


def test_lines_that_the_log_has_lost_are_said(begin):
    run, pipeline = begin()
    stop = StopRequest()
    with pytest.raises(Interrupted):
        train(run, pipeline, stopping(stop, 2), stop=stop)
    (run.folder / "log.jsonl").write_text("")
    with pytest.warns(
        UserWarning, match=r"log\.jsonl lacks 2 lines that were written before the checkpoint"
    ):
        train(run, pipeline)


def test_checkpoints_that_do_not_fit_say_so(begin):
    run, pipeline = begin()
    pipeline.fingerprints = lambda: {}
    run.checkpoints.save({"made_of": {}, "state": {"foreign": 1}}, {})
    with pytest.raises(
        CheckpointError,
        match=(
            r"were written by another version of modulate or of a plugin \(.*foreign.*\); start it"
            r" anew with --no-resume"
        ),
    ):
        train(run, pipeline)

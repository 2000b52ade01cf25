"""When a training is validated, and when it has lost patience."""

import pytest

from modulate.errors import Interrupted
from modulate.evaluation.evaluate import evaluate
from modulate.training import validation
from modulate.training.optimizer_step import StagePlan
from modulate.training.trainer import train
from modulate.training.trainer_state import TrainerState
from modulate.training.validation import Validator
from modulate.utils.interrupts import StopRequest
from tests.training.runs import files_of


def due_steps(validator, plan):
    """Return the steps of a stage after which its weights are validated."""
    state = TrainerState()
    steps = []
    for state.step in range(plan.steps + 1):
        if validator.is_due(state, plan):
            steps.append(state.step)
            state.validated = state.step
            assert not validator.is_due(state, plan)
    return steps


@pytest.mark.parametrize(
    ("every", "expected"), [(1, [2, 4, 6, 7]), (2, [4, 7]), (5, [7]), ("null", [])]
)
def test_weights_are_validated_every_so_many_epochs_and_at_the_end(begin, every, expected):
    _, pipeline = begin(f"training.validate_every={every}")
    plan = StagePlan(pipeline.recipe.training.stages[0], steps=7, steps_per_epoch=2)
    assert due_steps(Validator(pipeline), plan) == expected


def test_patience_ends_after_so_many_validations_without_a_better_one(begin):
    _, pipeline = begin("training.patience=2")
    validator = Validator(pipeline)
    found = [validator.is_patience_exhausted(TrainerState(stale=n)) for n in range(4)]
    assert found == [False, False, True, True]
    _, pipeline = begin("name=patient", "training.patience=null")
    assert not Validator(pipeline).is_patience_exhausted(TrainerState(stale=100))


def test_a_stop_during_validation_keeps_the_step_and_repeats_the_validation(
    whole, begin, monkeypatch
):
    run, pipeline = begin()
    stop = StopRequest()
    score = validation.score
    monkeypatch.setattr(validation, "score", lambda *args: (stop.request(2), score(*args))[1])
    with pytest.raises(Interrupted, match="SIGINT"):
        train(run, pipeline, stop=stop)
    assert "validation" not in (run.folder / "log.jsonl").read_text()
    monkeypatch.setattr(validation, "score", score)
    evaluate(run, pipeline, train(run, pipeline))
    assert files_of(run) == files_of(whole[1])

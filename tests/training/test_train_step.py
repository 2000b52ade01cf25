"""One optimizer step's totals, and what is said of a training that diverged."""

import math

from modulate.config.sections import Stage
from modulate.training.train_step import StepStats, diagnosis
from modulate.training.trainer_state import TrainerState

STAGE = Stage(name="joint", train=("modulator",), epochs=1, lr=0.003)


def stats():
    return StepStats(loss=math.nan, ids=["a", "b", "c", "d"])


def test_a_step_counts_the_samples_that_took_part():
    assert stats().n == 4 and StepStats().n == 0


def test_a_diagnosis_names_stage_samples_rate_and_the_first_bad_parameters():
    state = TrainerState()
    state.in_a_row = 5
    state.step = 17
    text = diagnosis(STAGE, state, stats(), ["out.0", "out.1", "gate", "other"])
    assert "5 optimizer steps in a row" in text and "step 17 of stage 'joint'" in text
    assert "on 4 samples, the first a, b, c" in text and "0.003" in text
    assert "not finite in 4 parameters, among them out.0, out.1, gate" in text
    assert "Its gradients are finite" in diagnosis(STAGE, state, stats(), [])

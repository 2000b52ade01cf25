"""What a training reports, and where."""

import json
import math

from accelerate import Accelerator

from modulate.runs.records import read_log
from modulate.training.training_log import Progress, TrainingLog


def test_steps_and_validations_are_logged_in_order_and_steps_reach_the_listener(begin):
    run, _ = begin()
    heard = []
    log = TrainingLog(run, Accelerator(cpu=True), heard.append)
    first = Progress("joint", 1, 2, 0.5, 0.75, 1.0, 1e-3)
    log.step(first, 5)
    log.validation("joint", 1, 0.25, 5)
    log.close()
    assert heard == [first] and log.lines.count == 2
    step, validation = read_log(run.folder / "log.jsonl")
    assert (step.steps, step.loss, step.accuracy, step.lr) == (2, 0.5, 0.75, 1e-3)
    assert (validation.step, validation.validation_accuracy) == (1, 0.25)
    assert "skipped" not in (run.folder / "log.jsonl").read_text()


def test_a_skipped_step_says_why_and_a_loss_that_is_no_number_is_null(begin):
    run, _ = begin()
    log = TrainingLog(run, Accelerator(cpu=True), lambda progress: None)
    for loss in (math.nan, math.inf):
        log.step(Progress("joint", 1, 2, loss, 0.0, 0.0, 1e-3, "not_finite"), 1)
    lines = (run.folder / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["loss"] for line in lines] == [None, None]
    assert {json.loads(line)["skipped"] for line in lines} == {"not_finite"}

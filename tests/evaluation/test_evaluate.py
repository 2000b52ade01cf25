"""Evaluation: which conditions, what becomes of failures, and the metrics. Whole runs are tested
with training.
"""

import math
from pathlib import Path

import pytest
import torch

from modulate.config.recipe import load_recipe
from modulate.errors import DataError
from modulate.evaluation import evaluate as evaluation
from modulate.evaluation.evaluate import compute_metrics
from modulate.evaluation.predictions import Prediction
from modulate.interfaces.components import Sample
from modulate.runs.run import Run


def sample(name):
    return Sample(name, "task", Path("v.mp4"), (0.0, 1.0), "Which?", ("one", "two"), 0, {})


def predictions(condition, correct, active_steps=2):
    return [
        Prediction(
            f"q{i}", "task", f"v{i}", condition, 0, 0 if ok else 1, ok, (1.0, 0.0), active_steps
        )
        for i, ok in enumerate(correct)
    ]


@pytest.fixture
def make_run(tmp_path):
    def make(*overrides):
        settings = ["name=a", "evaluation.bootstrap=100", *overrides]
        return Run.create(load_recipe("gazeqwen_tiny", settings), tmp_path)

    return make


def test_a_run_is_evaluated_under_its_own_condition_first_and_each_condition_once(make_run):
    run = make_run("evaluation.conditions=[none, signal, host]")
    assert evaluation._conditions(run) == ["signal", "none", "host"]


def test_controls_of_the_signal_do_not_apply_to_a_run_without_modulation(make_run):
    run = make_run(
        "training.condition=none",
        "training.stages=[{name: lora, train: [lora], epochs: 1, lr: 1.0e-3}]",
        "evaluation.conditions=[host, text_only]",
    )
    assert evaluation._conditions(run) == ["none", "host", "text_only"]


def test_metrics_compare_the_main_condition_with_every_other(make_run):
    records = {
        "signal": predictions("signal", [True, True, True, False]),
        "none": predictions("none", [False, True, False, False], active_steps=0),
    }
    metrics = compute_metrics(make_run(), "signal", records)
    assert (metrics["condition"], metrics["overall"], metrics["n"]) == ("signal", 0.75, 4)
    assert metrics["controls"]["none"]["overall"] == 0.25
    assert metrics["comparisons"]["signal - none"]["difference"] == 0.5
    assert metrics["signal"] == {
        "samples": 4,
        "samples_with_active_signal": 4,
        "active_steps": 8,
    }
    assert metrics["failed"] == []


def test_failed_samples_are_listed_and_left_out_as_the_recipe_says(make_run):
    failed = Prediction("q9", "task", "v9", "none", 0, None, False, (), 0, "DataError: lost")
    records = {
        "signal": [
            *predictions("signal", [True, True]),
            Prediction("q9", "task", "v9", "signal", 0, 0, True, (1.0,), 2),
        ],
        "none": [*predictions("none", [False, True]), failed],
    }
    metrics = compute_metrics(make_run("evaluation.failed=left_out"), "signal", records)
    assert metrics["failed"] == [{"id": "q9", "condition": "none", "error": "DataError: lost"}]
    assert metrics["n"] == metrics["controls"]["none"]["n"] == 2


def test_an_evaluation_in_which_every_sample_failed_has_no_metrics(make_run):
    failed = Prediction("q0", "task", "v0", "signal", 0, None, False, (), 0, "DataError: lost")
    with pytest.raises(DataError, match=r"Every sample failed .*First: q0, signal: DataError"):
        compute_metrics(make_run("evaluation.failed=left_out"), "signal", {"signal": [failed]})


@pytest.mark.parametrize("logits", [[math.nan, 1.0], [math.inf, 1.0], [1.0, -math.inf]])
def test_an_answer_whose_logits_are_not_finite_has_failed(logits):
    record = evaluation._prediction(sample("a"), "signal", logits, 3)
    assert record.prediction is None and not record.correct
    assert record.error.startswith("DataError: the host's logits of the options are not all finite")


def test_an_error_text_is_cut_and_can_be_written_as_utf_8():
    record = evaluation._failure(sample("a"), "signal", DataError("v\udcff.mp4 " + "x" * 20_000))
    assert record.error.startswith("DataError: v\\udcff.mp4 ")
    assert len(record.error) < 10_100 and record.error.encode()


class Prepared:
    """A prepared sample, as far as failures need one."""

    def __init__(self, name):
        self.sample = sample(name)


def test_a_batch_that_does_not_fit_is_answered_in_halves(monkeypatch):
    sizes = []

    def forward(pipeline, attachment, ready, condition):
        sizes.append(len(ready))
        names = [prepared.sample.id for prepared, _ in ready]
        if len(ready) > 2 or "large" in names:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return [evaluation._prediction(p.sample, condition, [1.0, 0.0], 1) for p, _ in ready]

    monkeypatch.setattr(evaluation, "_forward", forward)
    ready = [(Prepared(name), []) for name in ("a", "b", "c", "large")]
    with pytest.warns(UserWarning, match="A forward of . samples does not fit into memory"):
        records = evaluation._forward_that_fits(None, None, ready, "signal")
    assert sizes == [4, 2, 2, 1, 1]
    assert [record.id for record in records] == ["a", "b", "c", "large"]
    assert [record.prediction for record in records] == [0, 0, 0, None]
    assert "does not fit into memory, even alone" in records[-1].error


def test_other_errors_of_the_host_are_not_retried(monkeypatch):
    def forward(*args):
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(evaluation, "_forward", forward)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        evaluation._forward_that_fits(None, None, [(Prepared("a"), [])], "signal")

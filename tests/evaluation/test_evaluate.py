"""Evaluation: which conditions, what becomes of failures, and the metrics. Whole runs are tested
with training.
"""

from dataclasses import replace

import pytest
from pydantic import TypeAdapter

from modulate.config.recipe import load_recipe
from modulate.errors import DataError, SignalWarning
from modulate.evaluation import evaluate as evaluation
from modulate.evaluation.evaluate import compute_metrics
from modulate.evaluation.predictions import Prediction
from modulate.inference.pipeline import Pipeline
from modulate.runs.records import Metrics
from modulate.runs.run import Run
from modulate.utils.schema import checked
from tests.paths import SMALL
from tests.report.helpers import text_predictions


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


def test_metrics_of_answers_in_text_name_their_main_score_and_how_scores_were_computed(make_run):
    records = {
        "signal": text_predictions("signal", "1" * 12 + "0" * 8),
        "none": text_predictions("none", "-" * 20),
    }
    metrics = compute_metrics(make_run("answer=text"), "signal", records)
    assert metrics["metric"] == "token_f1" and metrics["overall"] == pytest.approx(0.8)
    assert metrics["scores"]["exact_match"]["overall"] == pytest.approx(0.6)
    assert metrics["controls"]["none"]["overall"] == pytest.approx(0.0)
    compared = metrics["comparisons"]["signal - none"]
    assert compared["difference"] == pytest.approx(0.8) and compared["p_permutation"] < 0.01
    assert compared["mcnemar"]["b"] == 12
    assert set(metrics["signatures"]) == {"bleu", "rouge_l"}
    checked(TypeAdapter(Metrics), {"split": "test", **metrics}, "metrics.json", "figures", "")


def test_metrics_of_options_have_neither(make_run):
    records = {"signal": predictions("signal", [True, False])}
    metrics = compute_metrics(make_run(), "signal", records)
    assert not {"metric", "signatures", "scores"} & metrics.keys()


def test_a_failed_text_scores_nothing(make_run):
    lost = replace(
        text_predictions("signal", "1")[0], id="lost", text=None, error="x", correct=False
    )
    records = {"signal": [*text_predictions("signal", "1"), lost]}
    metrics = compute_metrics(make_run("answer=text"), "signal", records)
    assert metrics["overall"] == 0.5 and metrics["scores"]["bleu"]["overall"] == 0.3


def test_samples_whose_signal_is_on_another_clock_than_their_video_are_counted(tmp_path):
    changes = [f"data.params.root={tmp_path}/world", "evaluation.conditions=[host]"]
    recipe = load_recipe(SMALL, [*changes, "data.params.max_per_split=4"])
    pipeline = Pipeline(recipe, tmp_path / "cache")
    pipeline.make_data()
    samples = pipeline.samples("test")
    late = {sample.clip.signals["gaze"] for sample in samples[:1]}
    for path in late:
        header, *rows = path.read_text("utf-8").splitlines()
        is_time = [name.startswith(("start_time", "end_time")) for name in header.split(",")]
        moved = [
            ",".join(
                str(float(value) + 1000) if time else value
                for value, time in zip(row.split(","), is_time, strict=True)
            )
            for row in rows
        ]
        path.write_text("\n".join([header, *moved]) + "\n", "utf-8")
    run = Run.create(recipe, tmp_path)
    with pytest.warns(SignalWarning, match=r"lies within 0\.00 to .* on another clock") as caught:
        metrics = evaluation.evaluate(run, pipeline, pipeline.fresh_modulation())
    assert len(caught) == len(late)
    count = sum(sample.clip.signals["gaze"] in late for sample in samples)
    assert metrics["signal"]["samples_off_clock"] == count > 0
    assert run.read_json("metrics.json") == metrics

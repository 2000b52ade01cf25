"""Tables of results in the terminal."""

import dataclasses
import shutil

from modulate.cli import tables
from modulate.evaluation.metrics import compare, summarize
from modulate.evaluation.predictions import FAILED_RULES
from modulate.runs.run import Run
from tests.paths import FIXTURES
from tests.report.helpers import text_predictions


def shown(run, capsys):
    tables.show_metrics(run, run.read_json("metrics.json"))
    return capsys.readouterr().out


def test_each_task_condition_and_comparison_has_its_place(tmp_path, capsys):
    shutil.copytree(FIXTURES / "saved_by_0_1" / "run", tmp_path / "run")
    run = Run.open(tmp_path / "run")
    out = shown(run, capsys)
    metrics = run.read_json("metrics.json")
    for task in metrics["tasks"]:
        assert task in out
    for condition in run.recipe.evaluation.conditions:
        assert condition in out and f"signal - {condition}" in out
    assert "50.0" in out


def test_signals_on_another_clock_are_warned_of_and_only_they(tmp_path, capsys):
    shutil.copytree(FIXTURES / "saved_by_0_1" / "run", tmp_path / "run")
    run = Run.open(tmp_path / "run")
    assert "another clock" not in shown(run, capsys)
    metrics = run.read_json("metrics.json")
    metrics["signal"]["samples_off_clock"] = 3
    tables.show_metrics(run, metrics)
    out = " ".join(capsys.readouterr().out.split())
    assert "in 3 samples the whole signal lies outside the video: is it on another clock?" in out


def test_what_was_done_with_failed_samples_is_said_as_the_recipe_says(tmp_path, capsys):
    shutil.copytree(FIXTURES / "saved_by_0_1" / "run", tmp_path / "run")
    run = Run.open(tmp_path / "run")
    metrics = run.read_json("metrics.json")
    metrics["failed"] = [{"id": "a/b", "condition": "signal", "error": "DataError: broken"}]
    texts = {}
    for rule in ("wrong", "left_out"):
        evaluation = run.recipe.evaluation.model_copy(update={"failed": rule})
        recipe = run.recipe.model_copy(update={"evaluation": evaluation})
        tables.show_metrics(dataclasses.replace(run, recipe=recipe), metrics)
        texts[rule] = capsys.readouterr().out
        assert "a/b" in texts[rule]
    for rule, text in texts.items():
        (other,) = FAILED_RULES.keys() - {rule}
        one_line = " ".join(text.split())
        assert FAILED_RULES[rule] in one_line and FAILED_RULES[other] not in one_line


def test_scores_of_text_are_shown_by_condition_with_the_test_of_graded_scores(tmp_path, capsys):
    shutil.copytree(FIXTURES / "saved_by_0_1" / "run", tmp_path / "run")
    run = Run.open(tmp_path / "run")
    own = text_predictions("signal", "1" * 12 + "0" * 8)
    none = text_predictions("none", "1" * 4 + "-" * 16)
    metrics = {
        **run.read_json("metrics.json"),
        "metric": "token_f1",
        **summarize(own, 200, 0, "token_f1"),
        "controls": {"none": summarize(none, 200, 0, "token_f1")},
        "comparisons": {"signal - none": compare(own, none, 200, 0, "token_f1")},
    }
    tables.show_metrics(run, metrics)
    out = capsys.readouterr().out
    assert "token F1, %" in out and "p by video" in out and "McNemar" not in out
    lines = {line.split()[0]: line.split()[1:] for line in out.splitlines() if line.strip()}
    assert lines["none"][:2] == ["20.0", "20.0"]
    assert lines["signal"][:2] == ["60.0", "80.0"]

"""Tables of results in the terminal."""

import dataclasses
import shutil

from modulate.cli import tables
from modulate.evaluation.predictions import FAILED_RULES
from modulate.runs.run import Run
from tests.paths import FIXTURES


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
        words = " ".join(text.split())
        assert FAILED_RULES[rule] in words and FAILED_RULES[other] not in words

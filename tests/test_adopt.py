"""Weights from elsewhere become a run, or are refused with what differs."""

import json

import pytest

from modulate.adopt import adopt
from modulate.cli import main
from modulate.errors import RecipeError
from modulate.modulation import Modulation
from modulate.pipeline import Pipeline
from modulate.recipe import load_recipe
from modulate.run import Run
from modulate_tabletop.make import make_world

WORLD = ["data.params.train=1", "data.params.val=1", "data.params.test=2", "data.params.seed=5", "evaluation.conditions=[none, shuffled]"]


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    root = tmp_path_factory.mktemp("adopt")
    make_world(root / "tabletop", train=1, val=1, test=2, seed=5, workers=1)
    recipe = load_recipe("gazeqwen_tiny", [f"data.params.root={root}/tabletop", *WORLD])
    Pipeline(recipe, root / "cache").fresh_modulation().save_pretrained(root / "weights")
    return root


def command(*args):
    with pytest.raises(SystemExit) as ended:
        main(args)
    assert ended.value.code == 0


def test_adopted_weights_are_evaluated_like_a_run_s_own(weights, capsys):
    command("adopt", str(weights / "weights"), "gazeqwen_tiny", f"data.params.root={weights}/tabletop", *WORLD, "--runs", str(weights / "runs"))
    assert f"Next: modulate eval {weights}/runs/gazeqwen_tiny" in capsys.readouterr().out
    command("eval", str(weights / "runs/gazeqwen_tiny"), "--cache", str(weights / "cache"))
    metrics = json.loads((weights / "runs/gazeqwen_tiny/metrics.json").read_text())
    assert metrics["controls"].keys() == {"none", "shuffled"} and metrics["overall"] == metrics["controls"]["none"]["overall"]  # fresh: no effect
    run = Run.open(weights / "runs/gazeqwen_tiny")
    assert run.read_json("state.json")["adopted"] == str(weights / "weights")
    kept = Modulation.from_pretrained(run.weights).state_dict()
    assert all((kept[key] == value).all() for key, value in Modulation.from_pretrained(weights / "weights").state_dict().items())


def test_weights_that_do_not_fit_are_refused_with_every_difference(weights, tmp_path):
    recipe = load_recipe("gazeqwen_tiny", ["encoder={name: coord_pe, params: {dim: 64}}", "injection.layers=[0, 2]", "lora=null", "training.stages.1.train=[modulator]"])
    with pytest.raises(RecipeError, match=r"is no modulation of the recipe 'gazeqwen_tiny':\n  encoder: the recipe says \('coord_pe'") as caught:
        adopt(recipe, str(weights / "weights"), tmp_path)
    assert "lora: the recipe says None" in str(caught.value) and "injection.layers: the recipe says (0, 2), the modulation has (0, 1)." in str(caught.value)
    assert not (tmp_path / "gazeqwen_tiny").exists()


def test_a_training_s_own_weights_are_never_replaced(weights, tmp_path):
    recipe = load_recipe("gazeqwen_tiny")
    run = Run.create(recipe, tmp_path)
    run.weights.mkdir()
    run.write_json("state.json", {"finished": True})
    with pytest.raises(RecipeError, match=r"holds the weights of a training; give this run another name with name=…"):
        adopt(recipe, str(weights / "weights"), tmp_path)

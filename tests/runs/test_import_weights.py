"""Weights from elsewhere become a run, or are refused with what differs."""

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest

from modulate.cli import main
from modulate.config.recipe import differing, load_recipe
from modulate.errors import DataError, MissingFileError, RecipeError
from modulate.inference.pipeline import Pipeline
from modulate.interfaces.components import Dataset
from modulate.interfaces.params import ComponentSpec
from modulate.modulation.module import Modulation
from modulate.runs.import_weights import adopt, on_other_data
from modulate.runs.run import Run
from modulate_streamgaze.dataset import StreamGaze, StreamGazeParams
from modulate_tabletop.make import make_world, world_in

WORLD = [
    "data.params.train=1",
    "data.params.val=1",
    "data.params.test=2",
    "data.params.seed=5",
    "evaluation.conditions=[none, shuffled]",
]


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
    command(
        "adopt",
        str(weights / "weights"),
        "gazeqwen_tiny",
        f"data.params.root={weights}/tabletop",
        *WORLD,
        "--runs",
        str(weights / "runs"),
    )
    assert f"Next: modulate eval {weights}/runs/gazeqwen_tiny" in capsys.readouterr().out
    command("eval", str(weights / "runs/gazeqwen_tiny"), "--cache", str(weights / "cache"))
    metrics = json.loads((weights / "runs/gazeqwen_tiny/metrics.json").read_text())
    assert (
        metrics["controls"].keys() == {"none", "shuffled"}
        and metrics["overall"] == metrics["controls"]["none"]["overall"]
    )  # fresh: no effect
    run = Run.open(weights / "runs/gazeqwen_tiny")
    assert run.read_json("state.json")["adopted"] == str(weights / "weights")
    kept = Modulation.from_pretrained(run.weights).state_dict()
    assert all(
        (kept[key] == value).all()
        for key, value in Modulation.from_pretrained(weights / "weights").state_dict().items()
    )


@pytest.fixture(scope="module")
def trained(weights):
    """A run with weights, results, and the state that a training leaves."""
    recipe = load_recipe(
        "gazeqwen_tiny", [f"data.params.root={weights}/tabletop", *WORLD, "name=trained"]
    )
    run = adopt(recipe, str(weights / "weights"), weights / "runs")
    run.write_json("state.json", {"finished": True, "weights": run.weight_hashes(), "steps": 1})
    run.write_json("metrics.json", {"own": "results"})
    return run


def evaluated(run, *args):
    command("eval", str(run.folder), *args, "--cache", str(run.folder.parent.parent / "cache"))


def test_a_run_is_evaluated_on_another_world_by_naming_its_folder(weights, trained, capsys):
    make_world(
        weights / "other world", train=1, val=2, test=3, seed=6, objects=15, drift=8.0, workers=1
    )
    evaluated(trained, "--on", str(weights / "other world"))
    there = Run.open(weights / "runs/trained-on-other_world")
    assert f"Run: {there.folder}" in capsys.readouterr().out
    params = there.recipe.data.resolved("dataset")[1]
    assert (params.train, params.val, params.test, params.seed, params.objects, params.drift) == (
        1,
        2,
        3,
        6,
        15,
        8.0,
    )
    answered = [
        json.loads(line) for line in (there.folder / "predictions.jsonl").read_text().splitlines()
    ]
    assert len({a["group"] for a in answered}) == 3 and there.read_json("metrics.json")[
        "controls"
    ].keys() == {"none", "shuffled"}
    assert differing(there.recipe, trained.recipe) == sorted(
        [
            "name",
            *(f"data.params.{key}" for key in ("drift", "objects", "root", "seed", "test", "val")),
        ]
    )
    assert (
        json.loads((trained.folder / "metrics.json").read_text(encoding="utf-8"))
        == {"own": "results"}
        and there.weight_hashes() == trained.weight_hashes()
    )
    written = [path.stat().st_mtime_ns for path in sorted(there.weights.rglob("*"))]
    evaluated(
        trained, "--on", str(weights / "other world"), "--split", "val"
    )  # goes on with the same run
    assert [path.stat().st_mtime_ns for path in sorted(there.weights.rglob("*"))] == written and (
        there.folder / "metrics-val.json"
    ).is_file()


def test_a_world_that_is_not_there_is_made_from_the_numbers_given(weights, trained):
    evaluated(
        trained,
        "--on",
        str(weights / "new"),
        "data.params.seed=9",
        "evaluation.conditions=[]",
        "name=elsewhere",
    )
    assert (
        world_in(weights / "new")["seed"] == 9
        and Run.open(weights / "runs/elsewhere").recipe.evaluation.conditions == ()
    )


def test_data_of_another_kind_and_settings_of_the_training_are_refused(weights, trained, tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other/file").write_text("")
    with pytest.raises(DataError, match="is not empty and holds no tabletop world"):
        on_other_data(trained, tmp_path / "other")
    for text in ("encoder.name=coord_pe", "sampling.max_frames=4", "seed=1"):
        with pytest.raises(
            RecipeError,
            match=("on other data only name, data, evaluation, features may differ"),
        ):
            on_other_data(trained, tmp_path / "none", [text])
    with pytest.raises(RecipeError, match=r"needs a name other than 'trained'"):
        on_other_data(trained, tmp_path / "none", ["name=trained"])
    with pytest.raises(SystemExit):
        main(["eval", str(trained.folder), "data.params.seed=9"])
    own = Run.create(
        load_recipe(
            "gazeqwen_tiny", [f"data.params.root={tmp_path}/none", *WORLD, "name=trained-on-none"]
        ),
        trained.folder.parent,
    )
    own.write_json("state.json", {"finished": True, "steps": 3})
    with pytest.raises(
        RecipeError, match="holds the weights of a training; give this run another name"
    ):
        on_other_data(trained, tmp_path / "none")
    with pytest.raises(MissingFileError, match="has no trained weights yet"):
        on_other_data(own, tmp_path / "none")


def test_data_in_no_folder_are_told(tmp_path):
    class Loose(Dataset):
        Params = ComponentSpec

    with pytest.raises(DataError, match="Loose has no parameter `root`"):
        Loose.with_root(ComponentSpec(name="x"), tmp_path)


def test_another_streamgaze_tree_takes_the_place_of_the_first(tmp_path):
    params = StreamGazeParams(root="a", split="participant", tasks=["past_scene_recall"])
    assert StreamGaze.with_root(params, tmp_path) == params.model_copy(update={"root": tmp_path})


def test_weights_that_do_not_fit_are_refused_with_every_difference(weights, tmp_path):
    recipe = load_recipe(
        "gazeqwen_tiny",
        [
            "encoder={name: coord_pe, params: {dim: 64}}",
            "injection.layers=[0, 2]",
            "lora=null",
            "training.stages.1.train=[modulator]",
        ],
    )
    with pytest.raises(
        RecipeError,
        match=(
            r"is not a modulation of the recipe 'gazeqwen_tiny':\n  encoder: the recipe says"
            r" \('coord_pe'"
        ),
    ) as caught:
        adopt(recipe, str(weights / "weights"), tmp_path)
    assert "lora: the recipe says None" in str(
        caught.value
    ) and "injection.layers: the recipe says (0, 2), the modulation has (0, 1)." in str(
        caught.value
    )
    assert not (tmp_path / "gazeqwen_tiny").exists()


def test_a_training_s_own_weights_are_never_replaced(weights, tmp_path):
    recipe = load_recipe("gazeqwen_tiny")
    run = Run.create(recipe, tmp_path)
    run.weights.mkdir()
    run.write_json("state.json", {"finished": True})
    with pytest.raises(
        RecipeError,
        match=r"holds the weights of a training; give this run another name with name=…",
    ):
        adopt(recipe, str(weights / "weights"), tmp_path)


def test_the_how_to_for_other_data_works_as_it_is_written(trained, weights, tmp_path, monkeypatch):
    page = Path("docs/how-to/evaluate-on-other-data.md").read_text(encoding="utf-8")
    lines = [
        line for block in re.findall(r"```sh\n(.*?)```", page, re.S) for line in block.splitlines()
    ]
    monkeypatch.chdir(tmp_path)
    shutil.copytree(trained.folder, "runs/gazeqwen_tiny")
    text = Path("runs/gazeqwen_tiny/recipe.yaml").read_text()
    Path("runs/gazeqwen_tiny/recipe.yaml").write_text(
        text.replace("name: trained\n", "name: gazeqwen_tiny\n")
    )
    for line in lines:
        command(
            *shlex.split(line.replace("--test 80", "--test 2"))[1:]
        )  # as many videos as a test can wait for
    assert len(lines) == 3 and {path.name for path in Path("runs").iterdir()} == {
        "gazeqwen_tiny",
        "gazeqwen_tiny-on-tabletop-7",
        "gazeqwen_tiny-on-tabletop-8",
    }
    assert [
        Run.open(Path(f"runs/gazeqwen_tiny-on-tabletop-{k}")).recipe.data.params["seed"]
        for k in (7, 8)
    ] == [7, 8]
    command(
        "report",
        *map(str, sorted(Path("runs").glob("*-on-*"))),
        "--out",
        "report",
        "--gallery",
        "0",
    )

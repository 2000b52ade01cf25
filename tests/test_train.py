"""Training and evaluation on real generated files, with the host that ships."""

import json
import math
import shutil
from dataclasses import replace

import pytest
import torch

from modulate import Modulation
from modulate.errors import DataError, RecipeError
from modulate.evaluate import evaluate, score
from modulate.pipeline import Pipeline
from modulate.recipe import load_recipe
from modulate.run import Run
from modulate.train import parameter_groups, select, smoothed_cross_entropy, train, warmup_cosine

WORLD = ["data.params.train=2", "data.params.val=1", "data.params.test=2", "data.params.max_per_split=8"]
QUICK = ["training.batch_size=4", "training.stages.0.epochs=1", "training.stages.1.epochs=1", "evaluation.batch_size=5", "evaluation.bootstrap=100"]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return tmp_path_factory.mktemp("world")


def recipe_for(world, *overrides):
    return load_recipe("gazeqwen_tiny", [f"data.params.root={world}/tabletop", *WORLD, *QUICK, *overrides])


def prepared_pipeline(recipe, world):
    pipeline = Pipeline(recipe, world / "cache")
    pipeline.dataset.prepare()
    return pipeline


@pytest.fixture(scope="module")
def finished(world):
    """A trained and evaluated run: (run, pipeline, modulation, metrics, what the listener heard)."""
    recipe = recipe_for(world)
    run, pipeline, heard = Run.create(recipe, world / "runs"), prepared_pipeline(recipe, world), []
    modulation = train(run, pipeline, heard.append)
    return run, pipeline, modulation, evaluate(run, pipeline, modulation), heard


def test_a_run_folder_explains_itself(finished):
    run, pipeline, _, metrics, heard = finished
    names = {p.relative_to(run.folder).as_posix() for p in run.folder.rglob("*") if p.is_file()}
    assert names >= {"recipe.yaml", "environment.json", "state.json", "log.jsonl", "metrics.json", "predictions.jsonl", "modulation/config.json"}
    assert [(p.stage, p.step, p.steps) for p in heard] == [("modulator", 1, 2), ("modulator", 2, 2), ("joint", 1, 2), ("joint", 2, 2)]
    assert all(p.active == 1.0 for p in heard)
    assert json.loads((run.folder / "metrics.json").read_text()) == metrics
    assert run.read_json("state.json")["made_of"] == pipeline.fingerprints()


def test_metrics_count_every_sample_under_every_condition(finished):
    run, _pipeline, _, metrics, _ = finished
    lines = [json.loads(line) for line in (run.folder / "predictions.jsonl").read_text().splitlines()]
    assert set(metrics["controls"]) == {"none", "blank", "shuffled", "centre", "shifted", "host"}
    assert len(lines) == 7 * 8 and metrics["signal"] == {"samples": 8, "samples_with_active_signal": 8, "active_steps": metrics["signal"]["active_steps"]}
    for condition, figures in {"signal": metrics, **metrics["controls"]}.items():
        own = [r for r in lines if r["condition"] == condition]
        for task, found in figures["tasks"].items():
            right = [r["correct"] for r in own if r["task"] == task]
            assert (found["n"], found["accuracy"]) == (len(right), sum(right) / len(right))
        assert figures["overall"] == pytest.approx(sum(t["accuracy"] for t in figures["tasks"].values()) / len(figures["tasks"]))
    assert all(len(r["logits"]) == (2 if r["task"].startswith("proactive") else 4) for r in lines)
    assert not metrics["failed"]


def test_a_second_evaluation_writes_the_same_files(finished, world):
    run, _, _, _, _ = finished
    before = [(run.folder / name).read_bytes() for name in ("metrics.json", "predictions.jsonl")]
    again = Run.open(run.folder)
    evaluate(again, prepared_pipeline(again.recipe, world), Modulation.from_pretrained(again.weights))
    assert [(run.folder / name).read_bytes() for name in ("metrics.json", "predictions.jsonl")] == before


def test_a_finished_run_is_loaded_not_repeated_and_another_recipe_is_refused(finished, world):
    run, pipeline, modulation, _, _ = finished
    again = train(Run.create(run.recipe, world / "runs"), pipeline, lambda progress: pytest.fail("trained again"))
    assert all(torch.equal(a, b) for a, b in zip(modulation.state_dict().values(), again.state_dict().values(), strict=True))
    with pytest.raises(RecipeError, match=r"holds a run of another recipe \(differs in seed\)"):
        Run.create(recipe_for(world, "seed=5"), world / "runs")


def test_the_same_seed_gives_the_same_weights(finished, world):
    _run, _, modulation, _, _ = finished
    recipe = recipe_for(world, "name=twin")
    twin = train(Run.create(recipe, world / "runs"), prepared_pipeline(recipe, world))
    assert all(torch.equal(a, b) for a, b in zip(modulation.state_dict().values(), twin.state_dict().values(), strict=True))


def test_the_bare_host_condition_is_the_host(finished):
    _, pipeline, modulation, _, _ = finished
    samples = pipeline.samples("test")
    with modulation.attached(pipeline.model) as attachment:
        inside = score(pipeline, attachment, samples, "host")
    batch = pipeline.collate([pipeline.prepare(s) for s in samples[:5]])
    bare = pipeline.option_logits(batch, pipeline.model(**batch.inputs, logits_to_keep=1))
    assert [r.logits for r in inside[:5]] == [tuple(round(v, 4) for v in row[row.isfinite()].tolist()) for row in bare]


def test_lora_alone_trains_lora_alone(world):
    recipe = recipe_for(world, "name=lora", "training.condition=none", "training.stages=[{name: lora, train: [lora], epochs: 1, lr: 1.0e-2}]")
    run, pipeline = Run.create(recipe, world / "runs"), prepared_pipeline(recipe, world)
    fresh, trained = pipeline.fresh_modulation().state_dict(), train(run, pipeline).state_dict()
    changed = {k.partition(".")[0] for k in fresh if not torch.equal(fresh[k], trained[k])}
    assert changed == {"lora"}
    with pytest.raises(RecipeError, match=r"every stage must train \[lora\] only"):
        recipe_for(world, "training.condition=none")


def test_a_broken_video_fails_the_run_or_is_counted_as_wrong(finished, world, tmp_path):
    _run, _, modulation, _, _ = finished
    shutil.copytree(world / "tabletop", tmp_path / "tabletop")
    recipe = recipe_for(tmp_path, "name=broken")
    pipeline = prepared_pipeline(recipe, tmp_path)
    samples = pipeline.samples("test")
    samples[0].video.write_bytes(samples[0].video.read_bytes()[:2000])
    hit = [s for s in samples if s.video == samples[0].video]
    with pytest.raises(DataError, match=rf"{len(hit)} of 8 samples failed, more than max_failed_share 0.0 allows. First: {samples[0].id}: VideoError"):
        evaluate(Run.create(recipe, tmp_path / "runs"), pipeline, modulation)
    metrics = json.loads((tmp_path / "runs/broken/metrics.json").read_text())
    assert [f["id"] for f in metrics["failed"]] == [s.id for s in hit] and metrics["n"] == 8
    lines = [json.loads(line) for line in (tmp_path / "runs/broken/predictions.jsonl").read_text().splitlines()]
    assert not any(r["correct"] for r in lines if r["error"])


def test_shuffling_takes_another_video_s_signal_at_the_same_moment(finished):
    _, pipeline, _, _, _ = finished
    samples = pipeline.samples("test")
    prepared = pipeline.prepare(samples[0])
    first, second = (pipeline.control("shuffled", prepared, samples) for _ in range(2))
    assert (first.fixations == second.fixations).all()
    start, end = samples[0].window
    assert len(first) and (first.ends > start).all() and (first.starts < end).all()
    with pytest.raises(DataError, match="needs samples of at least two videos"):
        pipeline.control("shuffled", prepared, [samples[0]])
    with pytest.raises(RecipeError, match="has no control 'upside_down'; it has blank, centre, shifted, shuffled"):
        pipeline.control("upside_down", prepared, samples)


def test_word_scoring_refuses_what_is_not_one_token(finished, world):
    _, pipeline, _, _, _ = finished
    word = prepared_pipeline(recipe_for(world, "answer=word"), world)
    sample = replace(pipeline.samples("test")[0], options=("zeppelin", "mug"), answer=0)
    with pytest.raises(DataError, match=r"the answer 'zeppelin' is not one known token"):
        word.prepare(sample)


def test_an_answer_beside_the_offered_options_cannot_win():
    logits = torch.tensor([[1.0, 2.0, -math.inf, -math.inf], [0.5, 0.1, 0.2, 0.3]])
    answers = torch.tensor([0, 3])
    first = -math.log(math.e / (math.e + math.e**2))
    p = [math.exp(v) for v in (0.5, 0.1, 0.2, 0.3)]
    nll = [-math.log(v / sum(p)) for v in p]
    assert smoothed_cross_entropy(logits, answers, 0.0).item() == pytest.approx((first + nll[3]) / 2)
    smooth_first = 0.9 * first + 0.1 * (first + first - 1) / 2
    smooth_second = 0.9 * nll[3] + 0.1 * sum(nll) / 4
    assert smoothed_cross_entropy(logits, answers, 0.1).item() == pytest.approx((smooth_first + smooth_second) / 2)


def test_warm_up_and_cosine_finish():
    factor = warmup_cosine(4, 20)
    assert [factor(s) for s in range(4)] == [0.25, 0.5, 0.75, 1.0]
    assert factor(12) == pytest.approx(0.5) and factor(20) == pytest.approx(0.0) and factor(19) > 0


def test_decay_groups_and_stages_follow_the_recipe(finished):
    _, pipeline, _, _, _ = finished
    modulation, (first, second) = pipeline.fresh_modulation(), pipeline.recipe.training.stages
    names = {id(p): n for n, p in modulation.named_parameters()}
    select(modulation, first)
    assert not any(n.startswith("lora") for n, p in modulation.named_parameters() if p.requires_grad)
    select(modulation, second)
    for group in parameter_groups(modulation, second, 0.01):
        plain = {names[id(p)] for p in group["params"] if names[id(p)].startswith("lora") or "norm" in names[id(p)] or names[id(p)].endswith("bias")}
        assert group["weight_decay"] == 0.0 or not plain
    assert sum(len(g["params"]) for g in parameter_groups(modulation, second, 0.01)) == len(names)

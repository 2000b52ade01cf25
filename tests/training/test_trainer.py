"""Training and evaluation on real generated files, with the host that ships."""

import json
import math
import random
import shutil
from dataclasses import replace

import pytest
import torch
import yaml
from accelerate.tracking import get_available_trackers
from safetensors.torch import load_file

from modulate import Modulation
from modulate.config.recipe import load_recipe
from modulate.errors import DataError, RecipeError
from modulate.evaluation.evaluate import evaluate
from modulate.evaluation.scoring import score
from modulate.inference.controls import ShufflePool
from modulate.inference.pipeline import Pipeline
from modulate.runs.run import Run
from modulate.training import processes
from modulate.training.optimizer import parameter_groups, select, warmup_cosine
from modulate.training.trainer import train
from tests.training.runs import scaling

WORLD = [
    "data.params.train=2",
    "data.params.val=1",
    "data.params.test=2",
    "data.params.max_per_split=8",
]
QUICK = [
    "training.batch_size=4",
    "training.stages.0.epochs=1",
    "training.stages.1.epochs=1",
    "evaluation.batch_size=5",
    "evaluation.bootstrap=100",
]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return tmp_path_factory.mktemp("world")


def recipe_for(world, *overrides):
    return load_recipe(
        "gazeqwen_tiny", [f"data.params.root={world}/tabletop", *WORLD, *QUICK, *overrides]
    )


def prepared_pipeline(recipe, world):
    pipeline = Pipeline(recipe, world / "cache")
    pipeline.dataset.prepare()
    return pipeline


@pytest.fixture(scope="module")
def finished(world):
    """A trained and evaluated run: (run, pipeline, modulation, metrics, progress reports)."""
    recipe = recipe_for(world)
    run = Run.create(recipe, world / "runs")
    pipeline = prepared_pipeline(recipe, world)
    heard = []
    modulation = train(run, pipeline, heard.append)
    return run, pipeline, modulation, evaluate(run, pipeline, modulation), heard


def test_a_run_folder_explains_itself(finished):
    run, pipeline, _, metrics, heard = finished
    names = {p.relative_to(run.folder).as_posix() for p in run.folder.rglob("*") if p.is_file()}
    assert names >= {
        "recipe.yaml",
        "environment.json",
        "state.json",
        "log.jsonl",
        "metrics.json",
        "predictions.jsonl",
        "modulation/config.json",
    }
    assert [(p.stage, p.step, p.steps) for p in heard] == [
        ("modulator", 1, 2),
        ("modulator", 2, 2),
        ("joint", 1, 2),
        ("joint", 2, 2),
    ]
    assert all(p.active == 1.0 for p in heard)
    assert json.loads((run.folder / "metrics.json").read_text()) == metrics
    assert run.read_json("state.json")["made_of"] == pipeline.fingerprints()


def test_metrics_count_every_sample_under_every_condition(finished):
    run, _pipeline, _, metrics, _ = finished
    lines = [
        json.loads(line) for line in (run.folder / "predictions.jsonl").read_text().splitlines()
    ]
    assert set(metrics["controls"]) == {"none", "blank", "shuffled", "centre", "shifted", "host"}
    assert len(lines) == 7 * 8 and metrics["signal"] == {
        "samples": 8,
        "samples_with_active_signal": 8,
        "active_steps": metrics["signal"]["active_steps"],
    }
    for condition, figures in {"signal": metrics, **metrics["controls"]}.items():
        own = [r for r in lines if r["condition"] == condition]
        for task, found in figures["tasks"].items():
            right = [r["correct"] for r in own if r["task"] == task]
            assert (found["n"], found["accuracy"]) == (len(right), sum(right) / len(right))
        assert figures["overall"] == pytest.approx(
            sum(t["accuracy"] for t in figures["tasks"].values()) / len(figures["tasks"])
        )
    assert all(len(r["logits"]) == (2 if r["task"].startswith("proactive") else 4) for r in lines)
    assert not metrics["failed"]


def test_a_second_evaluation_writes_the_same_files(finished, world):
    run, _, _, _, _ = finished
    before = [(run.folder / name).read_bytes() for name in ("metrics.json", "predictions.jsonl")]
    again = Run.open(run.folder)
    evaluate(
        again, prepared_pipeline(again.recipe, world), Modulation.from_pretrained(again.weights)
    )
    assert [
        (run.folder / name).read_bytes() for name in ("metrics.json", "predictions.jsonl")
    ] == before


def test_a_finished_run_is_loaded_not_repeated_and_another_recipe_is_refused(finished, world):
    run, pipeline, modulation, _, _ = finished
    again = train(
        Run.create(run.recipe, world / "runs"),
        pipeline,
        lambda progress: pytest.fail("trained again"),
    )
    assert all(
        torch.equal(a, b)
        for a, b in zip(modulation.state_dict().values(), again.state_dict().values(), strict=True)
    )
    with pytest.raises(RecipeError, match=r"holds a run of another recipe \(differs in seed\)"):
        Run.create(recipe_for(world, "seed=5"), world / "runs")


def test_a_run_of_an_earlier_version_is_this_recipe_s_where_new_keys_have_their_defaults(
    finished, tmp_path
):
    recipe = finished[0].recipe
    text = (finished[0].folder / "recipe.yaml").read_text()
    older = {key: value for key, value in yaml.safe_load(text).items() if key != "letters"}
    path = tmp_path / recipe.name / "recipe.yaml"
    path.parent.mkdir()
    path.write_text(yaml.safe_dump(older))
    Run.create(recipe, tmp_path)
    assert path.read_text() == text
    path.write_text(yaml.safe_dump(older | {"seed": 9}))
    (path.parent / "log.jsonl").write_text("{}\n")  # it took a step
    with pytest.raises(RecipeError, match=r"another recipe \(differs in seed\)"):
        Run.create(recipe, tmp_path)


def test_the_same_seed_gives_the_same_weights(finished, world):
    _run, _, modulation, _, _ = finished
    recipe = recipe_for(world, "name=twin")
    twin = train(Run.create(recipe, world / "runs"), prepared_pipeline(recipe, world))
    assert all(
        torch.equal(a, b)
        for a, b in zip(modulation.state_dict().values(), twin.state_dict().values(), strict=True)
    )


def test_the_bare_host_condition_is_the_host(finished):
    _, pipeline, modulation, _, _ = finished
    samples = pipeline.samples("test")
    with modulation.attached(pipeline.model) as attachment:
        inside = score(pipeline, attachment, samples, "host")
    batch = pipeline.collate([pipeline.prepare(s) for s in samples[:5]])
    bare = batch.option_logits(pipeline.model(**batch.inputs, logits_to_keep=1))
    assert [r.logits for r in inside[:5]] == [
        tuple(round(v, 4) for v in row[row.isfinite()].tolist()) for row in bare
    ]


def test_lora_alone_trains_lora_alone(world):
    recipe = recipe_for(
        world,
        "name=lora",
        "training.condition=none",
        "training.stages=[{name: lora, train: [lora], epochs: 1, lr: 1.0e-2}]",
    )
    run = Run.create(recipe, world / "runs")
    pipeline = prepared_pipeline(recipe, world)
    fresh = pipeline.fresh_modulation().state_dict()
    trained = train(run, pipeline).state_dict()
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
    video = samples[0].clip.file
    video.write_bytes(video.read_bytes()[:2000])
    hit = [s for s in samples if s.clip.file == video]
    with pytest.raises(
        DataError,
        match=(
            rf"{len(hit)} of 8 samples failed, more than max_failed_share 0.0 allows. First:"
            rf" {samples[0].id}: VideoError"
        ),
    ):
        evaluate(Run.create(recipe, tmp_path / "runs"), pipeline, modulation)
    metrics = json.loads((tmp_path / "runs/broken/metrics.json").read_text())
    assert [f["id"] for f in metrics["failed"]] == [s.id for s in hit] and metrics["n"] == 8
    lines = [
        json.loads(line)
        for line in (tmp_path / "runs/broken/predictions.jsonl").read_text().splitlines()
    ]
    assert not any(r["correct"] for r in lines if r["error"])


def test_shuffling_takes_another_video_s_signal_at_the_same_moment(finished):
    _, pipeline, _, _, _ = finished
    samples = pipeline.samples("test")
    prepared = pipeline.prepare(samples[0])
    others = ShufflePool(samples)
    (first,), (second,) = (pipeline.control("shuffled", prepared, others) for _ in range(2))
    assert (first.fixations == second.fixations).all()
    start, end = samples[0].clip.window
    assert len(first) and (first.ends > start).all() and (first.starts < end).all()
    with pytest.raises(DataError, match="needs samples of at least two videos"):
        pipeline.control("shuffled", prepared, ShufflePool([samples[0]]))
    with pytest.raises(
        RecipeError, match="has no control 'upside_down'; it has blank, centre, shifted, shuffled"
    ):
        pipeline.control("upside_down", prepared, others)


def test_shuffling_draws_from_all_samples_of_other_videos_in_their_order(finished):
    _, pipeline, _, _, _ = finished
    samples = pipeline.samples("test") + pipeline.samples("train")
    seed = pipeline.recipe.seed
    others = ShufflePool(samples)
    plain = [
        random.Random(f"{seed}:{own.id}").choice(
            [s for s in samples if s.clip.file != own.clip.file]
        )
        for own in samples
    ]
    assert [others.draw(own, seed) for own in samples] == [(s, s.clip) for s in plain]
    assert len({s.clip.file for s in plain}) > 2


def test_only_shuffling_reads_another_sample_s_signal(finished, monkeypatch):
    _, pipeline, _, _, _ = finished
    samples = pipeline.samples("test")
    prepared = pipeline.prepare(samples[0])
    read = []
    signal = pipeline.signals.read
    monkeypatch.setattr(
        pipeline.signals, "read", lambda *clip: (read.append(clip), signal(*clip))[1]
    )
    for name in ("blank", "centre", "shifted"):
        pipeline.control(name, prepared, ShufflePool([samples[0]]))  # one video is enough for these
    assert read == []
    pipeline.control("shuffled", prepared, ShufflePool(samples))
    assert read == [ShufflePool(samples).draw(samples[0], pipeline.recipe.seed)]


def test_word_scoring_refuses_what_is_not_one_token(finished, world):
    _, pipeline, _, _, _ = finished
    word = prepared_pipeline(recipe_for(world, "answer=word"), world)
    sample = replace(pipeline.samples("test")[0], options=("zeppelin", "mug"), answer=0)
    with pytest.raises(DataError, match=r"the answer 'zeppelin' is not one known token"):
        word.prepare(sample)


def test_warm_up_and_cosine_finish():
    factor = warmup_cosine(4, 20)
    assert [factor(s) for s in range(4)] == [0.25, 0.5, 0.75, 1.0]
    assert factor(12) == pytest.approx(0.5) and factor(20) == pytest.approx(0.0) and factor(19) > 0


def test_decay_groups_and_stages_follow_the_recipe(finished):
    _, pipeline, _, _, _ = finished
    modulation, (first, second) = pipeline.fresh_modulation(), pipeline.recipe.training.stages
    names = {id(p): n for n, p in modulation.named_parameters()}
    select(modulation, first)
    assert not any(
        n.startswith("lora") for n, p in modulation.named_parameters() if p.requires_grad
    )
    select(modulation, second)
    for group in parameter_groups(modulation, second, 0.01):
        plain = {
            names[id(p)]
            for p in group["params"]
            if names[id(p)].startswith("lora")
            or "norm" in names[id(p)]
            or names[id(p)].endswith("bias")
        }
        assert group["weight_decay"] == 0.0 or not plain
    assert sum(len(g["params"]) for g in parameter_groups(modulation, second, 0.01)) == len(names)


# --- precision, trackers and the host's own flags


def log_of(run):
    return [json.loads(line) for line in (run.folder / "log.jsonl").read_text().splitlines()]


def test_bf16_changes_the_forward_and_leaves_the_weights_in_fp32(finished, world, new_process):
    recipe = recipe_for(world, "name=bf16", "training.precision=bf16")
    run = Run.create(recipe, world / "runs")
    pipeline = prepared_pipeline(recipe, world)
    modulation = train(run, pipeline)
    losses, plain = ([r["loss"] for r in log_of(r) if "loss" in r] for r in (run, finished[0]))
    assert (
        all(map(math.isfinite, losses))
        and losses[0] != plain[0]
        and losses[0] == pytest.approx(plain[0], rel=0.02)
    )
    saved = [v for path in run.weights.rglob("*.safetensors") for v in load_file(path).values()]
    assert len(saved) == len(modulation.state_dict())
    assert {
        v.dtype
        for v in [*modulation.state_dict().values(), *pipeline.model.state_dict().values(), *saved]
    } == {torch.float32}


def test_fp16_on_the_cpu_is_refused(world):
    recipe = recipe_for(world, "name=fp16", "training.precision=fp16")
    with pytest.raises(
        RecipeError,
        match=(
            r"training\.precision is fp16, which needs a GPU, and the host is on the CPU; take bf16"
            r" or no\."
        ),
    ):
        train(Run.create(recipe, world / "runs"), prepared_pipeline(recipe, world))


def test_scaled_gradients_are_unscaled_once_in_every_stage(finished, world, monkeypatch):
    """What fp16 does to gradients, in fp32 on the CPU: a scale that is a power of two must change
    nothing.
    """

    scaling(monkeypatch)
    recipe = recipe_for(world, "name=scaled")
    run = Run.create(recipe, world / "runs")
    scaled = train(run, prepared_pipeline(recipe, world)).state_dict()
    plain = finished[2].state_dict()
    assert log_of(run) == log_of(finished[0])
    assert all(torch.equal(plain[k], scaled[k]) for k in plain)


def test_tensorboard_gets_what_the_log_gets(world):
    if "tensorboard" not in map(str, get_available_trackers()):
        pytest.skip("the extra `tensorboard` is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    recipe = recipe_for(world, "name=tracked", "training.trackers=[tensorboard]")
    run = Run.create(recipe, world / "runs")
    train(run, prepared_pipeline(recipe, world))
    (events,) = run.folder.rglob("events.out.tfevents.*")
    board = EventAccumulator(str(events)).Reload()
    for name in ("loss", "accuracy", "active", "lr", "validation_accuracy"):
        assert [e.value for e in board.Scalars(name)] == pytest.approx(
            [r[name] for r in log_of(run) if name in r]
        )
    assert [e.step for e in board.Scalars("loss")] == [1, 2, 3, 4]


def test_a_tracker_that_is_not_installed_is_refused_and_not_left_out(world, monkeypatch):
    monkeypatch.setattr(processes, "get_available_trackers", lambda: [])
    recipe = recipe_for(world, "name=untracked", "training.trackers=[tensorboard]")
    with pytest.raises(
        RecipeError,
        match=(
            r"asks for 'tensorboard', which is not installed: pip install"
            r" 'modulate\[tensorboard\]', or take it out"
        ),
    ):
        train(Run.create(recipe, world / "runs"), prepared_pipeline(recipe, world))


def test_training_leaves_the_host_s_flags_alone_and_its_dropout_off(world):
    recipe = recipe_for(world, "name=flags")
    pipeline = prepared_pipeline(recipe, world)
    seen = []
    model = pipeline.model
    model.get_submodule("lm_head").weight.requires_grad_(True)  # a user's own choice
    modules = list(model.modules())
    parameters = list(model.parameters())
    before = [m.training for m in modules], [p.requires_grad for p in parameters]
    state = {k: v.clone() for k, v in model.state_dict().items()}

    def look(module, args):
        seen.append(
            (
                [m.training for m in modules],
                [p.requires_grad for p in parameters],
                [m for m in module.modules() if m.training],
            )
        )

    handle = model.register_forward_pre_hook(look)
    train(Run.create(recipe, world / "runs"), pipeline)
    handle.remove()
    assert len(seen) > 4 and all(found == (*before, []) for found in seen)
    assert list(model.modules()) == modules and not any(before[0])
    assert ([m.training for m in modules], [p.requires_grad for p in parameters]) == before
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in state.items())

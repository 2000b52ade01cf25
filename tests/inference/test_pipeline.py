"""Pipelines: their parts, the host's caches over a run, and shared passes over a clip."""

import json
from dataclasses import replace

import pytest
import torch

from benchmarks.speed import fixtures
from modulate.checks.findings import CheckReport
from modulate.checks.settings import check_settings
from modulate.config.recipe import validate
from modulate.errors import RecipeError
from modulate.evaluation.evaluate import evaluate
from modulate.evaluation.scoring import score
from modulate.inference.pipeline import Pipeline
from modulate.runs.run import Run
from modulate.training.trainer import train
from tests.tiny import our_hooks

CONDITIONS = ("signal", "none", "shuffled", "shifted", "no_pixels", "host")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Return the folder of a small bench: four videos, each with one clip and four questions."""
    root = tmp_path_factory.mktemp("together")
    fixtures.save_host(root / "host", pixels=64**2, patch=8, layers=4, width=128, vocabulary=512)
    fixtures.write_dataset(root / "world", videos=4, seconds=8, size=(160, 120), moments=(6,))
    names = [f"bench{index}.mp4" for index in range(4)]
    (root / "world/split.json").write_text(
        json.dumps({"train": names[:1], "val": names[1:2], "test": names[2:]})
    )
    questions = root / "world/qa" / f"{fixtures.TASKS[1]}.json"
    longer = "Which object on the table is being looked at?"
    questions.write_text(questions.read_text().replace("What is on the table?", longer))
    return root


def pipeline_for(
    root, name="together", stages=1, features=None, batch_by="any", scored="any", batch_size=8
):
    stages = [
        {"name": "modulator", "train": ["modulator"], "epochs": 2},
        {"name": "joint", "train": ["modulator", "lora"], "epochs": 1},
    ][:stages]
    recipe = fixtures.recipe(
        root / "world",
        root / "host",
        name=name,
        injection={"layers": [1, 2]},
        sampling={"fps": 1.0, "max_frames": 4},
        lora={"rank": 2} if len(stages) > 1 else None,
        features=features or {},
        data={
            "name": "streamgaze",
            "params": {"root": str(root / "world"), "split": "split.json", "present_seconds": 3.0},
        },
        backbone={
            "name": "vjepa2_1",
            "params": {
                "weights": "random",
                "dims": {"dim": 24, "depth": 1, "heads": 2},
                "image_size": 64,
            },
        },
        training={"stages": stages, "batch_size": 4, "warmup_steps": 0, "batch_by": batch_by},
        evaluation={
            "conditions": ["none", "shuffled", "host"],
            "bootstrap": 100,
            "batch_by": scored,
            "batch_size": batch_size,
        },
    )
    pipeline = Pipeline(recipe, root / "cache")
    pipeline.make_data()
    return pipeline


def awake(pipeline):
    """Return a modulation whose residuals and LoRA are not zero."""
    modulation = pipeline.fresh_modulation()
    torch.manual_seed(1)
    for parameter in [*(writer.weight for writer in modulation.out), *modulation.lora.values()]:
        torch.nn.init.normal_(parameter, std=0.1)
    return modulation.eval()


def answers(pipeline, modulation, runs):
    """Return the answers under every condition; append the first layer's token counts to `runs`."""
    with (
        modulation.attached(pipeline.model) as attachment,
        pipeline.vision_tower_cache.active(),
    ):
        by_condition = {}
        handle = pipeline.host.layers[0].register_forward_hook(
            lambda module, args, output: runs.append(output.shape[0] * output.shape[1])
        )
        try:
            for condition in CONDITIONS:
                samples = pipeline.samples("test")
                by_condition[condition] = score(pipeline, attachment, samples, condition)
        finally:
            handle.remove()
    return by_condition


def test_questions_on_one_clip_have_the_same_answers_together_as_one_by_one(root):
    alone = pipeline_for(root, stages=2, batch_size=5)
    together = pipeline_for(root, stages=2, batch_size=5, scored="clip")
    modulation = awake(alone)
    tokens = {}
    one, all_at_once = (
        answers(pipeline, modulation, tokens.setdefault(pipeline, []))
        for pipeline in (alone, together)
    )
    for condition in CONDITIONS:
        for a, b in zip(one[condition], all_at_once[condition], strict=True):
            assert replace(a, logits=b.logits) == b
            assert b.logits == pytest.approx(a.logits, abs=3e-4)
        assert len({p.logits for p in one[condition]}) >= 4
    assert one["signal"] != one["none"] != one["host"]
    assert sum(tokens[together]) < 0.75 * sum(tokens[alone])
    again = answers(together, modulation, [])
    assert again == all_at_once


def run(root, name, **changes):
    """Train and evaluate a run; return the bytes of its results, and its pipeline."""
    pipeline = pipeline_for(root, name, batch_by="clip", **changes)
    run = Run.create(pipeline.recipe, root / "runs")
    evaluate(run, pipeline, train(run, pipeline))
    assert not our_hooks(pipeline.model) and not {"get_video_features", "forward"} & {
        name for module in pipeline.model.modules() for name in vars(module)
    }
    return [
        (run.folder / name).read_bytes()
        for name in (
            "log.jsonl",
            "modulation/model.safetensors",
            "metrics.json",
            "predictions.jsonl",
        )
    ], pipeline


def test_caching_the_vision_tower_changes_no_byte_of_a_run(root):
    """Two stages with validation, and evaluation; then again with the first run's cache."""
    plain, _ = run(root, "plain", stages=2)
    kept, first = run(root, "kept", stages=2, features={"vision_tower_cache_gib": 1})
    found, second = run(root, "found", stages=2, features={"vision_tower_cache_gib": 1})
    assert plain == kept == found
    assert 0 < first.vision_tower_cache.store.misses < first.vision_tower_cache.store.hits
    assert (second.vision_tower_cache.store.misses, second.vision_tower_cache.store.hits) == (
        0,
        first.vision_tower_cache.store.misses + first.vision_tower_cache.store.hits,
    )


def test_caching_hidden_states_changes_no_byte_of_a_run(root):
    plain, _ = run(root, "stage")
    kept, pipeline = run(root, "stage-kept", features={"hidden_state_cache_gib": 0.1})
    assert plain == kept
    assert 0 < pipeline.hidden_state_cache.misses < pipeline.hidden_state_cache.hits


def test_caches_and_input_transforms_are_built_at_first_use(root):
    pipeline = pipeline_for(root, features={"vision_tower_cache_gib": 1})
    deferred = {"vision_tower_cache", "hidden_state_cache"}
    assert not deferred & vars(pipeline).keys()
    pipeline.build_deferred()
    assert deferred <= vars(pipeline).keys()
    assert pipeline.vision_tower_cache.store is not None


def test_scoring_by_clip_is_refused_where_it_is_impossible_or_has_no_effect(root):
    tree = pipeline_for(root).recipe.model_dump(mode="json")
    for evaluation, more, text in (
        ({"batch_size": 1}, {}, "has no effect with batch_size 1"),
        (
            {},
            {"injection": {"layers": [1], "tokens": {"kind": "text"}}},
            "can write to visual tokens only",
        ),
    ):
        with pytest.raises(RecipeError, match=f"`evaluation.batch_by: clip` .*{text}"):
            validate(
                tree
                | {"evaluation": tree["evaluation"] | {"batch_by": "clip"} | evaluation}
                | more,
                "a test",
            )


def test_a_cache_without_hits_is_a_finding(root):
    def found(**changes):
        report = CheckReport("test")
        check_settings(report, pipeline_for(root, **changes).recipe, {})
        return [finding.text for finding in report.findings if "_gib" in finding.text]

    mixed = found(features={"vision_tower_cache_gib": 1, "hidden_state_cache_gib": 1})
    assert [text.partition(" finds nothing in training")[0] for text in mixed] == [
        "features.vision_tower_cache_gib",
        "features.hidden_state_cache_gib",
    ]
    assert (
        found(features={"vision_tower_cache_gib": 1, "vision_tower_cache_by": "clip"})
        == found(
            batch_by="clip", features={"vision_tower_cache_gib": 1, "hidden_state_cache_gib": 1}
        )
        == []
    )
    assert found(features={"vision_tower_cache_by": "clip"}) == [
        "features.vision_tower_cache_by is `clip`, which has no effect without"
        " features.vision_tower_cache_gib."
    ]
    (rests,) = found(stages=2, batch_by="clip", features={"hidden_state_cache_gib": 1})
    assert rests.startswith("features.hidden_state_cache_gib has no effect in stage 'joint'")

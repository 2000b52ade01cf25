"""Work that samples share, done once: the vision tower's over epochs and conditions, a clip's for
all questions on it.
"""

import json
from pathlib import Path

import pytest
import torch

from benchmarks.speed import world
from modulate.checks.findings import CheckReport
from modulate.checks.settings import check_settings
from modulate.config.recipe import validate
from modulate.errors import RecipeError
from modulate.evaluation.evaluate import evaluate, score
from modulate.inference.batching import batches_by_clip, clip_key, evaluation_batches
from modulate.inference.pipeline import Pipeline
from modulate.interfaces.components import Sample
from modulate.runs.run import Run
from modulate.training.trainer import train
from tests.tiny import our_hooks

CONDITIONS = ("signal", "none", "shuffled", "shifted", "no_pixels", "host")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """The bench in small: four videos, one clip of each, four questions on each clip, not all of
    one length.
    """
    root = tmp_path_factory.mktemp("together")
    world.save_host(root / "host", pixels=64**2, patch=8, layers=4, width=128, vocabulary=512)
    world.write_world(root / "world", videos=4, seconds=8, size=(160, 120), moments=(6,))
    names = [f"bench{i}.mp4" for i in range(4)]
    (root / "world/split.json").write_text(
        json.dumps({"train": names[:1], "val": names[1:2], "test": names[2:]})
    )
    asked = root / "world/qa" / f"{world.TASKS[1]}.json"
    asked.write_text(
        asked.read_text().replace(
            "What is on the table?", "Which object on the table is being looked at?"
        )
    )
    return root


def pipeline_for(
    root, name="together", stages=1, features=None, batch_by="any", scored="any", batch_size=8
):
    stages = [
        {"name": "modulator", "train": ["modulator"], "epochs": 2},
        {"name": "joint", "train": ["modulator", "lora"], "epochs": 1},
    ][:stages]
    recipe = world.recipe(
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
    """A modulation whose residuals and LoRA are not zero."""
    modulation = pipeline.fresh_modulation()
    torch.manual_seed(1)
    for parameter in [*(writer.weight for writer in modulation.out), *modulation.lora.values()]:
        torch.nn.init.normal_(parameter, std=0.1)
    return modulation.eval()


def answers(pipeline, modulation, runs):
    """Answers under every condition, and the tokens that the host's first layer saw."""
    with (
        modulation.attached(pipeline.model) as attachment,
        pipeline.vision_tower_cache.active(),
    ):
        found = {}
        handle = pipeline.host.layers[0].register_forward_hook(
            lambda module, args, output: runs.append(output.shape[0] * output.shape[1])
        )
        try:
            for condition in CONDITIONS:
                found[condition] = score(pipeline, attachment, pipeline.samples("test"), condition)
        finally:
            handle.remove()
    return found


def test_questions_on_one_clip_scored_together_are_answered_as_one_by_one(root):
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
            assert (a.id, a.prediction, a.correct, a.active_steps, a.error) == (
                b.id,
                b.prediction,
                b.correct,
                b.active_steps,
                b.error,
            )
            assert b.logits == pytest.approx(a.logits, abs=3e-4)
        assert len({p.logits for p in one[condition]}) >= 4
    assert one["signal"] != one["none"] != one["host"]
    assert sum(tokens[together]) < 0.75 * sum(tokens[alone])
    again = answers(together, modulation, [])
    assert again == all_at_once


def run(root, name, **changes):
    """A run trained and evaluated: the bytes of all that it found, and its pipeline."""
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


def test_kept_in_a_store_the_tower_s_output_changes_no_byte_of_a_run(root):
    """Two stages with validation, and evaluation; then once more from what the first run left on
    disk.
    """
    plain, _ = run(root, "plain", stages=2)
    kept, first = run(root, "kept", stages=2, features={"vision_tower_cache_gib": 1})
    found, second = run(root, "found", stages=2, features={"vision_tower_cache_gib": 1})
    assert plain == kept == found
    assert 0 < first.vision_tower_cache.store.misses < first.vision_tower_cache.store.hits
    assert (second.vision_tower_cache.store.misses, second.vision_tower_cache.store.hits) == (
        0,
        first.vision_tower_cache.store.misses + first.vision_tower_cache.store.hits,
    )


def test_states_below_the_first_residual_kept_change_no_byte_of_a_run(root):
    plain, _ = run(root, "stage")
    kept, pipeline = run(root, "stage-kept", features={"hidden_state_cache_gib": 0.1})
    assert plain == kept
    assert 0 < pipeline.hidden_state_cache.misses < pipeline.hidden_state_cache.hits


def sample(i, video):
    return Sample(str(i), "task", Path(video), (0.0, 8.0), "?", ("x", "y"), 0, {"gaze": Path("g")})


def test_batches_by_clip_keep_the_order_and_lose_nobody():
    samples = [sample(i, "aabacb"[i % 6]) for i in range(11)]
    batches = batches_by_clip(samples, 3)
    assert [[s.id for s in batch] for batch in batches] == [
        ["0", "1", "3"],
        ["6", "7", "9"],
        ["2", "5", "8"],
        ["4", "10"],
    ]
    assert all(len({clip_key(s) for s in batch}) == 1 for batch in batches)
    scored = evaluation_batches([*samples, sample(11, "d"), sample(12, "e")], 5, "clip")
    assert [[s.id for s in batch] for batch in scored] == [
        ["0", "1", "3", "6", "7"],
        ["2", "5", "8"],
        ["4", "10"],
        ["9", "11", "12"],
    ]
    assert evaluation_batches(samples, 4, "any") == [samples[:4], samples[4:8], samples[8:]]


def test_scoring_together_where_it_cannot_be_is_refused(root):
    tree = pipeline_for(root).recipe.model_dump(mode="json")
    for evaluation, more, text in (
        ({"batch_size": 1}, {}, "has no effect with batch_size 1"),
        (
            {},
            {"injection": {"layers": [1], "tokens": {"kind": "text"}}},
            "can write on visual tokens only",
        ),
    ):
        with pytest.raises(RecipeError, match=f"`evaluation.batch_by: clip` .*{text}"):
            validate(
                tree
                | {"evaluation": tree["evaluation"] | {"batch_by": "clip"} | evaluation}
                | more,
                "a test",
            )


def test_what_is_kept_and_never_found_is_a_finding(root):
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
    assert rests.startswith("features.hidden_state_cache_gib rests in stage 'joint'")

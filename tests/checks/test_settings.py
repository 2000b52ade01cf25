"""Settings without effect, impossible ones, and departures are reported, and nothing else is."""

from dataclasses import replace
from pathlib import Path

import pytest

from modulate.checks.findings import CheckReport
from modulate.checks.settings import check_settings, optimizer_steps
from modulate.config.recipe import load_recipe
from modulate.interfaces.sample import SampleClip
from tests.paths import SMALL
from tests.samples import one_clip_sample


def report_of(*overrides, train=0, test_videos=()):
    report = CheckReport("small")
    samples = {
        "train": [sample(f"t{i // 4}") for i in range(train)],
        "test": [sample(video) for video in test_videos],
    }
    check_settings(report, load_recipe(SMALL, overrides), samples)
    return report


def sample(video):
    return one_clip_sample("s", video)


def texts(report):
    return [(f.level, f.text) for f in report.findings]


def test_a_plain_recipe_has_no_findings():
    assert texts(report_of()) == []


CASES = [
    (
        ["training.stages=[{name: one, train: [modulator], epochs: 1}]"],
        "warning",
        "`lora` is set, but no stage trains it",
    ),
    (
        ["training.stages.0.lora_lr=0.1"],
        "warning",
        "Stage 'modulator' has a lora_lr, but does not train lora",
    ),
    (
        ["training.patience=2", "training.validate_every=null"],
        "warning",
        "`patience` has no effect without validation",
    ),
    (
        ["training.condition=blank"],
        "info",
        "`augment` has no effect: training under 'blank' sees no signal",
    ),
    (
        ["training.batch_by=clip"],
        "warning",
        "training.accumulation is 1: an optimizer step sees a single clip",
    ),
    (
        ["sampling.train_max_frames=3"],
        "info",
        "sampling.train_max_frames is 3: training sees fewer frames than the 8",
    ),
    (["sampling.processor_fps=24"], "warning", "sampling.processor_fps is 24.0"),
    (
        ["features.vision_tower_cache_by=clip"],
        "warning",
        (
            "features.vision_tower_cache_by is `clip`, which has no effect without"
            " features.vision_tower_cache_gib"
        ),
    ),
    (
        ["features.vision_tower_cache_gib=1"],
        "warning",
        "features.vision_tower_cache_gib finds nothing in training",
    ),
]


@pytest.mark.parametrize(
    ("overrides", "level", "text"), CASES, ids=[text[:40] for _, _, text in CASES]
)
def test_a_setting_is_reported_with_its_level(overrides, level, text):
    report = report_of(*overrides)
    assert [(f.level, text in f.text) for f in report.findings] == [(level, True)]


@pytest.mark.parametrize(
    "overrides",
    [
        ["training.stages.1.lora_lr=0.1"],
        ["training.patience=2"],
        ["training.condition=blank", "training.augment=false"],
        ["sampling.train_max_frames=8"],
        ["training.batch_by=clip", "training.accumulation=2"],
        ["features.vision_tower_cache_gib=1", "features.vision_tower_cache_by=clip"],
        ["features.vision_tower_cache_gib=1", "training.batch_size=1"],
        ["features.vision_tower_cache_gib=1", "training.batch_by=clip", "training.accumulation=2"],
        [
            "features.hidden_state_cache_gib=1",
            "training.batch_size=1",
            "lora=null",
            "training.stages=[{name: one, train: [modulator], epochs: 1}]",
        ],
        ["training.gradient_checkpointing=true"],
        ["injection.layers=[1, 2]"],
    ],
)
def test_settings_with_an_effect_are_not_reported(overrides):
    assert texts(report_of(*overrides)) == []


def test_hidden_state_caching_without_effect_is_reported_by_stage():
    report = report_of(
        "features.hidden_state_cache_gib=1",
        "training.gradient_checkpointing=true",
        "training.batch_size=1",
    )
    assert [
        (f.level, f.text.partition(" has no")[0].partition(" rests")[0]) for f in report.findings
    ] == [
        ("warning", "features.hidden_state_cache_gib"),
        ("info", "features.hidden_state_cache_gib"),
    ]
    assert "stage 'joint'" in report.findings[1].text


@pytest.mark.parametrize(
    ("videos", "conditions", "refused"),
    [
        ("aa", "[shuffled]", True),
        ("ab", "[shuffled]", False),
        ("aa", "[none]", False),
        ("", "[shuffled]", False),
    ],
)
def test_shuffling_needs_test_samples_of_two_videos(videos, conditions, refused):
    report = report_of(f"evaluation.conditions={conditions}", test_videos=videos)
    assert (
        texts(report)
        == [
            (
                "error",
                "The control `shuffled` needs test samples of at least two videos that share no"
                " file. None can be drawn for 2 clips, the first of sample s.",
            )
        ]
        * refused
    )


def test_what_pictures_and_several_clips_do_not_allow_is_reported(tmp_path):
    one = sample("a")
    picture = replace(one, id="picture", clips=(SampleClip(Path("b.png"), is_image=True),))
    recipe = load_recipe(
        SMALL,
        [
            "evaluation.inputs={mark: {name: gaze_overlay}}",
            "evaluation.conditions=[shuffled]",
            "features.vision_tower_cache_gib=1",
            "features.vision_tower_cache_by=clip",
        ],
    )
    report = CheckReport("pictures")
    check_settings(report, recipe, {"test": [one, picture]})
    found = {finding.text: finding.level for finding in report.findings}
    assert len(found) == 4
    for level, text in (
        ("error", "(mark) put the signal into one video, and sample picture shows a picture."),
        ("error", "at least two videos that share no file. None can be drawn for 1 clips"),
        ("error", "at least two pictures that share no file. None can be drawn for 1 clips"),
        ("info", "serves videos only; 1 of 2 samples show pictures."),
    ):
        assert [found[given] for given in found if text in given] == [level]


def test_steps_are_reported_by_stage_with_odd_schedules():
    report = report_of(
        "training.batch_size=4",
        "training.accumulation=2",
        "training.stages.1.epochs=3",
        "training.warmup_steps=0",
        train=20,
    )
    assert report.figures == {
        "stage modulator": "3 optimizer steps of 8 samples, training modulator",
        "stage joint": "9 optimizer steps of 8 samples, training modulator + lora",
    }
    assert texts(report) == []
    assert report_of(train=0).figures == {}


@pytest.mark.parametrize(("train", "odd"), [(8, False), (7, True)])
def test_a_step_of_more_samples_than_exist_is_reported(train, odd):
    report = report_of(
        "training.batch_size=4", "training.accumulation=2", "training.warmup_steps=0", train=train
    )
    assert (
        texts(report)
        == [
            (
                "info",
                (
                    "One optimizer step takes 8 samples, but the training split has only"
                    f" {train}: a step goes through it more than once."
                ),
            )
        ]
        * odd
    )


@pytest.mark.parametrize(
    ("accumulation", "train", "of", "odd"),
    [
        (1, 8, "a clip, 4.0 samples on average", False),
        (3, 9, "3 clips, 9.0 samples on average", False),
        (4, 9, "4 clips, 12.0 samples on average", True),
    ],
)
def test_steps_with_batches_by_clip_are_counted_in_clips(accumulation, train, of, odd):
    report = report_of(
        "training.batch_by=clip",
        f"training.accumulation={accumulation}",
        "training.warmup_steps=0",
        train=train,
    )
    assert report.figures["stage joint"].partition("steps of ")[2].startswith(of)
    assert [
        f.text.startswith(
            f"One optimizer step takes {accumulation} batches, but the training split has only 3"
        )
        for f in report.findings
        if f.level == "info"
    ] == [True] * odd


@pytest.mark.parametrize(
    ("warmup", "schedule", "told"),
    [(5, "cosine", []), (6, "cosine", [5, 5]), (6, "one_cycle", [5, 5])],
)
def test_a_warm_up_longer_than_half_a_stage_is_reported(warmup, schedule, told):
    report = report_of(
        "training.batch_size=2",
        f"training.warmup_steps={warmup}",
        f"training.schedule={schedule}",
        train=20,
    )
    shortened = [f.text for f in report.findings if "its warm-up is shortened to" in f.text]
    assert [int(text.rpartition(" ")[2].strip(".")) for text in shortened] == told


@pytest.mark.parametrize(
    ("patience", "every", "epochs", "named"),
    [(2, 1, 2, True), (2, 1, 3, False), (1, 2, 2, True), (1, 2, 3, False)],
)
def test_patience_that_cannot_run_out_is_reported(patience, every, epochs, named):
    stage = f"[{{name: one, train: [lora], epochs: {epochs}}}]"
    report = report_of(
        f"training.patience={patience}",
        f"training.validate_every={every}",
        f"training.stages={stage}",
        "training.warmup_steps=0",
        "training.batch_size=2",
        train=8,
    )
    wanted = (
        f"`patience` cannot stop stage 'one': its {epochs} epochs end before {patience} validations"
        " without progress."
    )
    assert texts(report) == [("warning", wanted)] * named


def test_steps_of_a_stage_are_whole_and_at_least_one():
    recipe = load_recipe(
        SMALL,
        ["training.accumulation=4", "training.stages.0.epochs=0.1", "training.stages.1.epochs=2.5"],
    )
    assert optimizer_steps(recipe, 10) == [1, 8]
    assert optimizer_steps(recipe, 12) == [1, 8]
    assert optimizer_steps(recipe, 13) == [1, 10]

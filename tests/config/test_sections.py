"""The sections of a recipe: defaults, limits, and the values derived from them."""

import math

import pytest
from pydantic import ValidationError

from modulate.config.sections import Evaluation, Features, Rate, Sampling, Stage, Training

STAGE = {"name": "first", "train": ("modulator",), "epochs": 1.0}
NEEDED = {Training: {"stages": (STAGE,)}, Stage: STAGE, Rate: {"fps": 1.0}}

DEFAULTS = {
    Sampling: {
        "fps": 1.0,
        "max_frames": 8,
        "train_max_frames": None,
        "clock": "true",
        "processor_fps": None,
        "alignment": "time",
        "antialias": True,
    },
    Features: {
        "dtype": "float32",
        "disk_gib": 50.0,
        "frames_gib": 0.0,
        "vision_tower_cache_gib": 0.0,
        "hidden_state_cache_gib": 0.0,
        "vision_tower_cache_by": "call",
    },
    Stage: {**STAGE, "lr": 3e-4, "lora_lr": None},
    Training: {
        "stages": (Stage(**STAGE),),
        "batch_size": 8,
        "accumulation": 1,
        "weight_decay": 0.01,
        "schedule": "cosine",
        "warmup_steps": 20,
        "clip_norm": 1.0,
        "label_smoothing": 0.0,
        "empty": "train",
        "augment": True,
        "condition": "signal",
        "batch_by": "any",
        "prefetch_batches": 1,
        "patience": None,
        "validate_every": 1,
        "gradient_checkpointing": False,
        "precision": "no",
        "checkpoint_every": 50,
        "max_skipped_steps": 5,
        "trackers": (),
    },
    Evaluation: {
        "batch_size": 32,
        "batch_by": "any",
        "conditions": ("none", "blank", "shuffled", "centre", "shifted", "host"),
        "inputs": {},
        "failed": "wrong",
        "max_failed_share": 0.0,
        "bootstrap": 2000,
        "max_new_tokens": 32,
        "main_metric": "token_f1",
    },
}


@pytest.mark.parametrize("section", DEFAULTS)
def test_keys_left_out_have_the_documented_values(section):
    built = section(**NEEDED.get(section, {}))
    assert {key: getattr(built, key) for key in section.model_fields} == DEFAULTS[section]


LIMITS = [
    (Rate, "fps", 1e-9, 0),
    (Rate, "up_to", 1e-9, 0),
    (Sampling, "fps", 1e-9, 0),
    (Sampling, "max_frames", 1, 0),
    (Sampling, "train_max_frames", 1, 0),
    (Sampling, "processor_fps", 1e-9, 0),
    (Features, "disk_gib", 0, -1e-9),
    (Features, "frames_gib", 0, -1e-9),
    (Features, "vision_tower_cache_gib", 0, -1e-9),
    (Features, "hidden_state_cache_gib", 0, -1e-9),
    (Stage, "train", ("lora",), ()),
    (Stage, "epochs", 1e-9, 0),
    (Stage, "lr", 1e-9, 0),
    (Training, "stages", (STAGE,), ()),
    (Training, "batch_size", 1, 0),
    (Training, "accumulation", 1, 0),
    (Training, "weight_decay", 0, -1e-9),
    (Training, "warmup_steps", 0, -1),
    (Training, "clip_norm", 1e-9, 0),
    (Training, "label_smoothing", 0, -1e-9),
    (Training, "label_smoothing", 0.999, 1),
    (Training, "prefetch_batches", 0, -1),
    (Training, "patience", 1, 0),
    (Training, "validate_every", 1, 0),
    (Training, "checkpoint_every", 1, 0),
    (Training, "max_skipped_steps", 1, 0),
    (Evaluation, "batch_size", 1, 0),
    (Evaluation, "max_failed_share", 0, -1e-9),
    (Evaluation, "max_failed_share", 1, 1.001),
    (Evaluation, "bootstrap", 100, 99),
    (Evaluation, "max_new_tokens", 1, 0),
    (Evaluation, "max_new_tokens", 2**16, 2**16 + 1),
]


@pytest.mark.parametrize(("section", "key", "allowed", "refused"), LIMITS)
def test_a_value_at_its_limit_is_accepted_and_one_beyond_is_refused(section, key, allowed, refused):
    needed = NEEDED.get(section, {})
    section(**needed | {key: allowed})
    with pytest.raises(ValidationError) as found:
        section(**needed | {key: refused})
    assert {error["loc"][0] for error in found.value.errors()} == {key}


@pytest.mark.parametrize("section", DEFAULTS)
def test_unknown_keys_and_non_finite_numbers_are_refused_and_sections_are_immutable(
    section,
):
    needed = NEEDED.get(section, {})
    with pytest.raises(ValidationError, match="extra_forbidden"):
        section(**needed, nose=1)
    key = next(key for key in section.model_fields if type(DEFAULTS[section][key]) is float)
    with pytest.raises(ValidationError, match=r"finite|Infinity"):
        section(**needed | {key: math.inf})
    with pytest.raises(ValidationError, match="frozen"):
        setattr(section(**needed), key, 1.0)


RATES = ({"up_to": 30, "fps": 1.0}, {"up_to": 60, "fps": 0.5}, {"fps": 0.1})


def test_the_rate_is_that_of_the_first_length_that_the_clip_does_not_exceed():
    sampling = Sampling(fps=RATES, max_frames=4)
    assert [sampling.rate(s) for s in (0.0, 30.0, 30.001, 60.0, 61.0, 1e6)] == [
        1.0,
        1.0,
        0.5,
        0.5,
        0.1,
        0.1,
    ]
    assert (
        sampling.seconds == 4.0
        and Sampling(fps=0.5, max_frames=6).seconds == 12.0
        and Sampling(fps=0.5).rate(1e6) == 0.5
    )
    assert Sampling(fps=({"fps": 0.25},)).rate(5.0) == 0.25


@pytest.mark.parametrize(
    "rates",
    [
        (),
        RATES[:2],
        (*RATES, {"up_to": 90, "fps": 1.0}),
        (RATES[1], RATES[0], RATES[2]),
        (RATES[0], RATES[0], RATES[2]),
        (RATES[2], RATES[2]),
        (RATES[0], RATES[2], RATES[2]),
    ],
)
def test_rates_by_length_must_increase_and_end_with_a_rate_for_all_longer_clips(rates):
    with pytest.raises(
        ValidationError,
        match="rates by clip length need increasing `up_to`, and a last rate without `up_to`",
    ):
        Sampling(fps=rates)


def test_training_has_its_own_frame_cap_if_the_recipe_sets_one():
    assert [Sampling(max_frames=6).frame_cap(training) for training in (True, False)] == [6, 6]
    assert [
        Sampling(max_frames=6, train_max_frames=3).frame_cap(training) for training in (True, False)
    ] == [3, 6]


def test_no_is_a_precision_although_yaml_reads_it_as_false():
    assert (
        Training(stages=(STAGE,), precision=False).precision == "no"
        and Training(stages=(STAGE,), precision="bf16").precision == "bf16"
    )
    with pytest.raises(ValidationError):
        Training(stages=(STAGE,), precision=True)

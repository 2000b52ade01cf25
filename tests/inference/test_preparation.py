"""Preparation of samples: views, input transforms from plugins, and how these are scored."""

import sys
import types
from dataclasses import replace
from typing import ClassVar

import pytest
import torch

from modulate import plugins
from modulate.config.recipe import load_recipe
from modulate.errors import ComponentError, ConditioningError, PluginError, RecipeError
from modulate.evaluation.scoring import score, uses_bare_host
from modulate.hookspecs import hookimpl
from modulate.inference.pipeline import Pipeline
from modulate.interfaces.components import HostInput, InputTransform
from modulate.interfaces.params import Params
from modulate.runs.run import Run
from modulate.training.trainer import train
from modulate_gaze.scanpath import Scanpath
from tests.paths import SMALL

WORLD = [
    "data.params.train=1",
    "data.params.val=1",
    "data.params.test=1",
    "data.params.max_per_split=3",
    "evaluation.batch_size=2",
]
INPUTS = (
    "{nothing: {name: gaze_overlay, params: {shape: dot, dot_radius: 0.001}}, mark: {name:"
    " gaze_overlay}, map: {name: gaze_saliency}, words: {name: gaze_text}, red: {name: red}}"
)


class RedParams(Params):
    """No parameters."""


class Red(InputTransform):
    """Adds words to the text, and shows red frames."""

    Params = RedParams
    signal_kind = "gaze"
    seen: ClassVar[list] = []

    def __init__(self, params):
        self.params = params

    def __call__(self, given, signal, window):
        self.seen.append((signal, window))
        images = given.frames.images.copy()
        images[..., 1:] = 0
        # The small host's vocabulary has the word.
        return HostInput(replace(given.frames, images=images), f"viewer viewer {given.text}")


class Careless(Red):
    """Has a defect."""

    def __call__(self, given, signal, window):
        return given.no_such_thing


@pytest.fixture(scope="module", autouse=True)
def plugin():
    """A plugin with two input transforms, registered for these tests."""
    module = types.ModuleType("made_up_inputs")

    @hookimpl
    def register_inputs(register):
        register("red", Red)
        register("careless", "made_up_inputs:Careless")

    module.register_inputs = register_inputs
    module.Careless = Careless
    sys.modules["made_up_inputs"] = module
    info = plugins.registry().add("extra", module)
    yield info
    plugins.registry().remove("extra")
    del sys.modules["made_up_inputs"]


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory, plugin):
    folder = tmp_path_factory.mktemp("inputs")
    recipe = load_recipe(
        "gazeqwen_tiny", [f"data.params.root={folder}/world", *WORLD, f"evaluation.inputs={INPUTS}"]
    )
    pipeline = Pipeline(recipe, folder / "cache")
    pipeline.make_data()
    return pipeline


@pytest.fixture(scope="module")
def samples(pipeline):
    return pipeline.samples("test")


def text_of(pipeline, prepared):
    return pipeline.processor.tokenizer.decode(prepared.inputs["input_ids"][0])


def test_the_hook_registers_inputs_by_class_or_by_import_path(plugin):
    assert plugin.provides == [("input", "red"), ("input", "careless")]
    assert plugins.get("input", "red") is Red and plugins.get("input", "careless") is Careless
    assert {"gaze_overlay", "gaze_text", "gaze_saliency"} <= set(plugins.registry().names("input"))


@pytest.mark.parametrize(
    ("inputs", "error", "message"),
    [
        (
            "{dot: {name: gaze_overley}}",
            PluginError,
            r"Unknown input 'gaze_overley'\. Did you mean 'gaze_overlay'",
        ),
        (
            "{dot: {name: gaze_overlay, params: {radius: 3}}}",
            RecipeError,
            r"evaluation\.inputs\.dot\.params of gaze_overlay is not valid:\n  radius: unknown key",
        ),
        (
            "{host: {name: gaze_overlay}}",
            RecipeError,
            r"evaluation\.inputs: 'host' is already a condition; give the input another name\.",
        ),
        (
            "{shifted: {name: gaze_overlay}}",
            RecipeError,
            r"evaluation\.inputs: 'shifted' is already a condition",
        ),
    ],
)
def test_a_recipe_with_wrong_inputs_is_refused(inputs, error, message):
    with pytest.raises(error, match=message):
        load_recipe("gazeqwen_tiny", [f"evaluation.inputs={inputs}"])


def test_a_training_ends_before_its_first_step_if_an_input_cannot_be_built(tmp_path):
    class Broken(Red):
        def __init__(self, params):
            raise RuntimeError("no such font")

    extra = types.ModuleType("broken_inputs")
    extra.register_inputs = hookimpl(lambda register: register("bad", Broken))
    plugins.registry().add("broken", extra)
    try:
        inputs = "evaluation.inputs={bad: {name: bad}}"
        recipe = load_recipe(SMALL, [f"data.params.root={tmp_path}/world", inputs])
        pipeline = Pipeline(recipe, tmp_path / "cache")
        pipeline.make_data()
        steps = []
        with pytest.raises(ComponentError, match="no such font"):
            train(Run.create(recipe, tmp_path / "runs"), pipeline, steps.append)
        assert steps == []
    finally:
        plugins.registry().remove("broken")


def test_an_input_transform_receives_the_clip_s_signal_and_the_host_its_result(pipeline, samples):
    Red.seen.clear()
    own = pipeline.prepare(samples[0])
    red = pipeline.prepare(samples[0], "red")
    signal = own.clips[0].signal
    assert Red.seen == [(signal, samples[0].clip.window)] and len(signal) > 0
    assert "viewer viewer Question" in text_of(pipeline, red)
    assert "viewer viewer" not in text_of(pipeline, own)
    assert not torch.equal(red.inputs["pixel_values_videos"], own.inputs["pixel_values_videos"])
    assert torch.equal(red.options, own.options)


def test_an_input_transform_does_not_change_the_frames_of_other_views(pipeline, samples):
    pipeline.prepare(samples[1], "mark")
    fresh = Pipeline(pipeline.recipe, pipeline.extractor.feature_cache.folder)
    assert torch.equal(
        pipeline.prepare(samples[1]).inputs["pixel_values_videos"],
        fresh.prepare(samples[1]).inputs["pixel_values_videos"],
    )


def test_an_image_comes_before_the_clip(pipeline, samples):
    prepared = pipeline.prepare(samples[0], "map")
    ids = prepared.inputs["input_ids"][0].tolist()
    visual = pipeline.host.visual_ids
    assert 0 < ids.index(visual["image"]) < ids.index(visual["video"])
    assert (
        len(prepared.inputs["image_grid_thw"]) == 1
        and ids.count(visual["video"]) == pipeline.prepare(samples[0]).clips[0].grid.tokens
    )


def test_text_only_has_no_clip(pipeline, samples):
    prepared = pipeline.prepare(samples[0], "text")
    assert (
        "pixel_values_videos" not in prepared.inputs
        and pipeline.host.visual_ids["video"] not in prepared.inputs["input_ids"]
    )
    assert "Question : At" in text_of(pipeline, prepared)


def test_a_sample_prepared_for_the_bare_host_cannot_be_conditioned(pipeline, samples):
    for view in ("text", "mark"):
        with pytest.raises(
            ConditioningError,
            match=r"was prepared for the bare host, which cannot be conditioned\.",
        ):
            pipeline.prepare(samples[0], view).clip_inputs()


def test_inputs_are_scored_on_the_bare_host(pipeline, samples):
    modulation = pipeline.fresh_modulation()
    for projection in modulation.out:
        torch.nn.init.normal_(projection.weight, std=0.5)
    with modulation.eval().attached(pipeline.model) as attachment:
        rows = {
            name: score(pipeline, attachment, samples, name)
            for name in ("signal", "host", "nothing", "mark", "map", "words", "text_only")
        }
    logits = {name: [r.logits for r in found] for name, found in rows.items()}
    assert [answer.id for answer in rows["map"]] == [sample.id for sample in samples]
    assert not any(answer.error for answers in rows.values() for answer in answers)
    # A dot that covers no pixel leaves the host's input as it is.
    assert logits["nothing"] == logits["host"] != logits["signal"]
    assert all(logits[name] != logits["host"] for name in ("mark", "map", "words", "text_only"))
    assert all(
        r.active_steps == 0 for name in rows if uses_bare_host(pipeline, name) for r in rows[name]
    ) and not uses_bare_host(pipeline, "signal")


def test_an_input_that_fails_is_named_with_its_plugin(pipeline, samples):
    recipe = load_recipe(
        "gazeqwen_tiny",
        [
            f"data.params.root={pipeline.dataset.params.root}",
            *WORLD,
            "evaluation.inputs={bad: {name: careless}}",
        ],
    )
    with pytest.raises(
        ComponentError,
        match=(
            r"input 'careless' of plugin 'extra' failed in call: AttributeError: 'HostInput' object"
            r" has no attribute 'no_such_thing'"
        ),
    ):
        Pipeline(recipe, pipeline.extractor.feature_cache.folder).prepare(samples[0], "bad")


def test_a_prepared_clip_is_conditioned_with_the_given_signal(pipeline, samples):
    prepared = pipeline.prepare(samples[0])
    (own,) = prepared.clips
    (clip,) = prepared.clip_inputs([Scanpath()])
    assert len(clip.signal) == 0 < len(own.signal)
    assert clip.grid is own.grid
    assert clip.features is own.features
    assert prepared.clip_inputs()[0].signal is own.signal

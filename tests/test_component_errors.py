"""Defective components: named with their plugin and original cause, and a clean host after."""

import types

import numpy as np
import pytest
import torch
from torch import nn

from modulate import Modulation, cli, plugins
from modulate.config.injection import Injection, LoraParams
from modulate.config.recipe import load_recipe
from modulate.errors import ComponentError, DataError, PluginError, RecipeError
from modulate.evaluation.scoring import score
from modulate.hookspecs import hookimpl
from modulate.inference.pipeline import Pipeline
from modulate.interfaces.components import (
    Backbone,
    Dataset,
    Modulator,
    SignalEncoder,
    SignalFeatures,
)
from modulate.interfaces.frames import Frames
from modulate.interfaces.params import ComponentSpec, Params
from tests.paths import SMALL
from tests.samples import one_clip_sample
from tests.tiny import CLIP, D_FEATURES, inputs, our_hooks, qwen


class LoudParams(Params):
    """Name of the method that fails."""

    where: str = "nowhere"


def fail(method, params):
    if method == params.where:
        raise ZeroDivisionError(f"in {method}")


class LoudWriter(nn.Module):
    """A writer that may fail inside the host's forward."""

    def __init__(self, params, d_latent, d_model):
        super().__init__()
        self.params = params
        self.linear = nn.Linear(d_latent, d_model)

    def forward(self, latents, hidden, memory):
        fail("write", self.params)
        return self.linear(latents)


class LoudModulator(Modulator):
    """A modulator that fails in the chosen method."""

    Params = LoudParams

    def __init__(self, params, *, d_features, d_signal, n_layers):
        super().__init__()
        fail("modulator", params)
        self.params = params
        self.d_latent = 4
        self.n_layers = n_layers
        self.linear = nn.Linear(d_features, 4)

    def forward(self, features, signal):
        fail("modulate", self.params)
        return [self.linear(features)] * self.n_layers

    def writer(self, layer, d_model):
        fail("writer", self.params)
        return LoudWriter(self.params, self.d_latent, d_model)


class LoudEncoder(SignalEncoder):
    """A signal encoder that fails where it is told to."""

    Params = LoudParams
    signal_kind = "gaze"

    def __init__(self, params):
        super().__init__()
        fail("encoder", params)
        self.params = params
        self.d_signal = 3

    def forward(self, signals, grids):
        fail("encode", self.params)
        if self.params.where == "typed":
            raise DataError("meant")
        steps = sum(g.steps for g in grids)
        return SignalFeatures(
            torch.zeros(steps, grids[0].tokens_per_step, 3), torch.ones(steps, dtype=torch.bool)
        )


class LoudBackbone(Backbone):
    """A backbone that fails."""

    Params = LoudParams
    d_features = 4

    def __init__(self, params):
        super().__init__()

    def forward(self, frames, frame_times):
        raise ZeroDivisionError("in a backbone")

    def fingerprint(self):
        return "loud"


class LoudData(Dataset):
    """A data set that fails."""

    Params = LoudParams

    def __init__(self, params):
        pass

    def prepare(self):
        raise ZeroDivisionError("in prepare")

    def samples(self, split):
        raise ZeroDivisionError("in samples")

    def fingerprint(self):
        return "loud"


@pytest.fixture
def noisy():
    """A plugin with components that fail."""
    module = types.ModuleType("noisy_plugin")
    module.register_signal_encoders = hookimpl(
        lambda register: register("loud_encoder", LoudEncoder)
    )
    module.register_modulators = hookimpl(lambda register: register("loud", LoudModulator))
    module.register_backbones = hookimpl(lambda register: register("loud_backbone", LoudBackbone))
    module.register_datasets = hookimpl(lambda register: register("loud_data", LoudData))
    plugins.registry().add("noisy", module)
    yield
    plugins.registry().remove("noisy")


def loud(host, where):
    choice = {"params": {"where": where}}
    return Modulation.for_host(
        host,
        encoder=ComponentSpec(name="loud_encoder", **choice),
        modulator=ComponentSpec(name="loud", **choice),
        injection=Injection(layers=(0, 2)),
        d_features=D_FEATURES,
        lora=LoraParams(rank=2),
    )


@pytest.mark.parametrize(
    ("where", "message"),
    [
        (
            "encoder",
            (
                r"signal_encoder 'loud_encoder' of plugin 'noisy' failed in its constructor:"
                r" ZeroDivisionError: in encoder \(test_component_errors\.py, line \d+\)"
            ),
        ),
        (
            "modulator",
            (
                r"modulator 'loud' of plugin 'noisy' failed in its constructor: ZeroDivisionError:"
                r" in modulator"
            ),
        ),
        ("writer", r"modulator 'loud' of plugin 'noisy' failed in writer: ZeroDivisionError"),
    ],
)
def test_a_component_that_fails_when_built_is_named(where, message, noisy, host):
    with pytest.raises(ComponentError, match=message) as caught:
        loud(host, where)
    assert isinstance(caught.value, PluginError) and isinstance(
        caught.value.__cause__, ZeroDivisionError
    )


@pytest.mark.parametrize(
    ("where", "message"),
    [
        (
            "encode",
            (
                "signal_encoder 'loud_encoder' of plugin 'noisy' failed in forward:"
                " ZeroDivisionError: in encode"
            ),
        ),
        (
            "modulate",
            "modulator 'loud' of plugin 'noisy' failed in forward: ZeroDivisionError: in modulate",
        ),
        (
            "write",
            "modulator 'loud' of plugin 'noisy' failed in writer: ZeroDivisionError: in write",
        ),
    ],
)
def test_a_component_that_fails_in_a_forward_is_named_and_leaves_the_host_clean(
    where, message, noisy
):
    host = qwen()
    batch = inputs()
    before = host(**batch).logits
    keys = list(host.state_dict())
    modules = {id(m) for m in host.modules()}
    with (
        pytest.raises(ComponentError, match=message) as caught,
        loud(host, where).attached(host) as attachment,
        attachment.condition([[CLIP], [CLIP]]),
    ):
        host(**batch)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    assert (
        not our_hooks(host)
        and list(host.state_dict()) == keys
        and {id(m) for m in host.modules()} == modules
    )
    assert not hasattr(host, "peft_config") and not any(p.requires_grad for p in host.parameters())
    assert torch.equal(host(**batch).logits, before)


def test_a_backbone_and_a_data_set_that_fail_are_named(noisy, tmp_path, monkeypatch):
    pipeline = Pipeline(
        load_recipe(SMALL, ["backbone={name: loud_backbone}", "data={name: loud_data}"]), tmp_path
    )
    with pytest.raises(
        ComponentError,
        match=(
            "dataset 'loud_data' of plugin 'noisy' failed in prepare: ZeroDivisionError: in prepare"
        ),
    ):
        pipeline.make_data()
    with pytest.raises(
        ComponentError,
        match="dataset 'loud_data' of plugin 'noisy' failed in samples: ZeroDivisionError",
    ):
        pipeline.samples("train")
    sample = one_clip_sample("s", tmp_path / "v.mp4")
    monochrome = Frames(np.zeros((2, 64, 64, 3), np.uint8), (0.0, 1.0))
    with pytest.raises(
        ComponentError,
        match=(
            "backbone 'loud_backbone' of plugin 'noisy' failed in forward: ZeroDivisionError: in a"
            " backbone"
        ),
    ):
        pipeline.extractor.raw_features(sample.clip.file, monochrome, gray=True)
    sample.clip.file.write_bytes(b"never decoded here")
    monkeypatch.setattr(pipeline.clip_reader, "read", lambda video, times: monochrome)
    monkeypatch.setattr(pipeline.signals, "read", lambda sample, clip: None)
    for answer in (
        lambda: pipeline.prepare(sample),
        lambda: score(pipeline, None, [sample], "none"),
    ):
        with pytest.raises(
            ComponentError,
            match=r"^Sample s: backbone 'loud_backbone' of plugin 'noisy' failed in forward",
        ):
            answer()


def test_an_attachment_works_after_a_component_has_failed(noisy):
    host = qwen()
    batch = inputs()
    modulation = loud(host, "write")
    with modulation.attached(host) as attachment:
        for _ in range(2):
            with pytest.raises(ComponentError), attachment.condition([[CLIP], [CLIP]]):
                host(**batch)
        host(**batch)
        for writer in modulation.out:
            writer.params = LoudParams()
        with attachment.condition([[CLIP], [CLIP]]):
            host(**batch)
        assert attachment.report().tokens == 2 * CLIP.grid.tokens
    assert not our_hooks(host)


def test_intended_errors_are_not_changed(noisy, host):
    with (
        loud(host, "typed").attached(host) as attachment,
        pytest.raises(DataError, match=r"^meant$"),
        attachment.condition([[CLIP]]),
    ):
        pass
    registry = plugins.registry()
    for error in (
        RecipeError("x"),
        MemoryError("x"),
        torch.OutOfMemoryError("x"),
        KeyboardInterrupt(),
    ):
        with pytest.raises(type(error)) as caught, registry.blame("modulator", "loud", "forward"):
            raise error
        assert caught.value is error


def test_a_plugin_that_fails_in_a_registration_hook_is_named_and_leaves_no_trace():
    registry = plugins.Registry([])
    module = types.ModuleType("fails")

    @hookimpl
    def register_modulators(register):
        register("first", LoudModulator)
        raise KeyError("oops")

    module.register_modulators = register_modulators
    with pytest.raises(
        PluginError,
        match=(
            r"The plugin 'fails' failed in its hook register_modulators: KeyError: 'oops'"
            r" \(test_component_errors\.py, line \d+\)"
        ),
    ):
        registry.add("fails", module)
    assert not registry.components and not registry.plugins and not registry.manager.get_plugins()


def test_the_command_line_keeps_the_traceback_of_a_components_failure(monkeypatch, capsys):
    def broken():
        with plugins.registry().blame("modulator", "gaze_resampler", "forward"):
            raise ZeroDivisionError("a bug")

    monkeypatch.setattr("modulate.config.recipe.recipe_paths", broken)
    with pytest.raises(SystemExit) as ended:
        cli.main(["ls"])
    err = capsys.readouterr().err
    assert ended.value.code == 1 and "Traceback" in err
    assert (
        "ComponentError: modulator 'gaze_resampler' of plugin 'gaze' failed in forward:"
        " ZeroDivisionError: a bug" in err
    )

"""Deliberate mistakes of plugin authors: each error names the guilty plugin and what to do.

Every mistake goes through the real pipeline: a recipe, real videos, a real small host. The plugins
come from a package in a folder, as pip would install it.
"""

import re
import sys
import textwrap

import pytest
import torch

from modulate import plugins
from modulate.config.recipe import load_recipe
from modulate.errors import ComponentError, PluginError
from modulate.inference.controls import ShufflePool
from modulate.inference.pipeline import Pipeline
from tests.paths import SMALL
from tests.test_plugins import installed

SOUND = """
import torch
from dataclasses import replace
import numpy as np
import modulate
from modulate import *
from modulate.interfaces.signal import COMMON_CONTROLS
from modulate_gaze.heatmaps import HeatmapDur
from modulate_gaze.scanpath import Scanpath
from modulate_tabletop.dataset import Tabletop
from modulate_hosts.qwen2_5_vl import Qwen25VL

def unchecked(cls, **fields):
    "What an author outside these tests gets: jaxtyping checks shapes in tests only."
    result = object.__new__(cls)
    for name, value in fields.items():
        object.__setattr__(result, name, value)
    return result

class Kind(Scanpath):
    kind = "my_signal"

class Encoder(HeatmapDur):
    def good(self, signals, grids):
        found = super().forward(signals, grids)
        return found.values, found.active
    def forward(self, signals, grids):
        values, active = self.good(signals, grids)
        return unchecked(SignalFeatures, values=values, active=active, to_features=False)

class ModulatorParams(Params):
    width: int = 4

class MyModulator(Modulator):
    Params = ModulatorParams
    def __init__(self, params, *, d_features, d_signal, n_layers):
        super().__init__()
        self.d_latent, self.n_layers = params.width, n_layers
        self.map = torch.nn.Linear(d_features, params.width)
    def forward(self, features, signal):
        return [self.map(features)] * self.n_layers

class MyBackbone(Backbone):
    Params = Params
    d_features = 3
    def __init__(self, params):
        super().__init__()
    def good(self, frames, times):
        cells = torch.nn.functional.adaptive_avg_pool2d(frames.permute(0, 3, 1, 2) / 255.0, 4)
        return cells.permute(0, 2, 3, 1), tuple(times)
    def forward(self, frames, times):
        values, times = self.good(frames, times)
        return unchecked(FrameFeatures, values=values, times=times)
    def fingerprint(self):
        return "mine"

class Data(Tabletop):
    def samples(self, split):
        return [self.with_signal(sample) for sample in super().samples(split)]
    def with_signal(self, sample):
        signals = {**sample.clip.signals, "my_signal": sample.clip.signals["gaze"]}
        return replace(sample, clips=(replace(sample.clip, signals=signals),))

class Transform(InputTransform):
    Params = Params
    signal_kind = "gaze"
    def __init__(self, params):
        pass
    def __call__(self, given, signal, window):
        return replace(given, text=given.text + "!")

class MyHost(Qwen25VL):
    model_types = ()

@hookimpl
def register_signals(register):
    register("my_signal", Kind)
@hookimpl
def register_signal_encoders(register):
    register("my_encoder", Encoder)
@hookimpl
def register_modulators(register):
    register("my_modulator", MyModulator)
@hookimpl
def register_backbones(register):
    register("my_backbone", MyBackbone)
@hookimpl
def register_datasets(register):
    register("my_data", Data)
@hookimpl
def register_inputs(register):
    register("my_input", Transform)
@hookimpl
def register_hosts(register):
    register("my_host", MyHost)
"""

PARTS = {
    "encoder": ["encoder={name: my_encoder, params: {dim: 8}}"],
    "modulator": ["modulator={name: my_modulator}"],
    "backbone": ["backbone={name: my_backbone}"],
    "dataset": ["data.name=my_data"],
    "signal": ["data.name=my_data", "signal=my_signal", "evaluation.conditions=[signal, blank]"],
    "input": ["evaluation.inputs={mine: {name: my_input}}"],
    "host": ["host.name=my_host"],
}
KIND = {"encoder": "signal_encoder"}

# What the plugin does wrong (replaced or added code), and what the error says after the plugin.
MISTAKES = {
    "encoder": [
        (
            "Encoder.forward = lambda self, signals, grids: self.good(signals, grids)[0]",
            "returned a Tensor from forward; it must return a SignalFeatures(values, active).",
        ),
        (
            "Encoder.good = lambda self, s, g, was=Encoder.good: (was(self, s, g)[0].transpose(0,"
            " 1), was(self, s, g)[1])",
            "(step, token, d_signal). Its axes are in another order: permute them.",
        ),
        (
            "Encoder.good = lambda self, s, g, was=Encoder.good: (was(self, s, g)[0][..., :4],"
            " was(self, s, g)[1])",
            "and d_signal 8 the shape must be",
        ),
        (
            "Encoder.good = lambda self, s, g, was=Encoder.good: (was(self, s, g)[0],"
            " was(self, s, g)[1].float())",
            "it must be bool of shape (4,): whether any signal reached each step.",
        ),
        (
            "Encoder.good = lambda self, s, g, was=Encoder.good: (was(self, s, g)[0] / 0,"
            " was(self, s, g)[1])",
            "values that are not finite from forward, first at step 0. Look for a division",
        ),
        (
            "Encoder.good = lambda self, s, g, was=Encoder.good: (was(self, s, g)[0] + 1,"
            " was(self, s, g)[1] & False)",
            "values that are not 0 at step 0, which it calls inactive. Multiply the values",
        ),
        (
            "class Encoder(HeatmapDur):\n    def __init__(self, params):\n       "
            " super().__init__(params)\n        self.d_signal = None",
            "has d_signal = None after its constructor; it must set d_signal to a positive int.",
        ),
        (
            "class Encoder(SignalEncoder):\n    signal_kind = 'gaze'",
            "has no class `Params` derived from modulate.Params",
        ),
    ],
    "modulator": [
        (
            "MyModulator.forward = lambda self, features, signal: self.map(features)",
            "returned a Tensor from forward; it must return a list with the latents of each of the"
            " 3 injected layers.",
        ),
        (
            "MyModulator.forward = lambda self, features, signal: [self.map(features)]",
            "returned the latents of 1 layers from forward, where 3 layers are injected",
        ),
        (
            "MyModulator.forward = lambda self, f, signal: [self.map(f).flatten(0, 1)] * 3",
            "and d_latent 4 the shape must be",
        ),
        (
            "MyModulator.forward = lambda self, f, signal: [self.map(f).log()] * 3",
            "returned latents that are not finite from forward, although features and signal are.",
        ),
        (
            "class W(Writer):\n    def __init__(self, d):\n        super().__init__()\n       "
            " self.w = torch.nn.Parameter(torch.zeros(d))\n    def forward(self, latents, hidden,"
            " memory):\n        return self.w[None]\nMyModulator.writer = lambda self, layer,"
            " d_model: W(d_model)",
            "from its writer's forward; for",
        ),
    ],
    "backbone": [
        (
            "MyBackbone.forward = lambda self, frames, times: self.good(frames, times)[0]",
            "returned a Tensor from forward; it must return a FrameFeatures(values, times).",
        ),
        (
            "MyBackbone.good = lambda self, f, t, was=MyBackbone.good: (was(self, f,"
            " t)[0].permute(0, 3, 1, 2), tuple(t))",
            "the last axis must be d_features, 3: (time, row, col, d_features). Its channels are on"
            " another axis: permute them.",
        ),
        (
            "MyBackbone.good = lambda self, f, t, was=MyBackbone.good: (was(self, f, t)[0],"
            " tuple(t)[1:])",
            "Each must be the mean time (s) of the frames that its features merge.",
        ),
        (
            "MyBackbone.good = lambda self, f, t, was=MyBackbone.good: (was(self, f, t)[0],"
            " tuple(1000 * x for x in t))",
            "s from forward, for frames from",
        ),
        (
            "MyBackbone.good = lambda self, f, t, was=MyBackbone.good: (was(self, f, t)[0] / 0,"
            " tuple(t))",
            "not finite from forward. If it computes in half precision, compute in float32.",
        ),
        (
            "MyBackbone.fingerprint = lambda self: 7",
            "returned 7 from fingerprint; it must return a short text that changes whenever",
        ),
        (
            "class MyBackbone(Backbone):\n    Params = Params\n    def __init__(self, params):\n   "
            "     super().__init__()\n    def forward(self, frames, times): ...",
            "failed in its constructor: TypeError: Can't instantiate abstract class MyBackbone",
        ),
    ],
    "dataset": [
        (
            "Data.samples = lambda self, split: tuple(Tabletop.samples(self, split))",
            "returned a tuple from samples('test'); it must return a list of Sample.",
        ),
        (
            "Data.samples = lambda self, split: Tabletop.samples(self, split)[:1] * 2",
            "returned 2 samples with the id",
        ),
        (
            "Data.samples = lambda self, split: [vars(s) for s in Tabletop.samples(self, split)]",
            "returned a dict as item 0 of samples('test'); each must be a Sample.",
        ),
        (
            "Data.samples = lambda self, split: [replace(s, clips=(replace(s.clip,"
            " file=s.clip.file.with_suffix('.avi')),)) for s in Tabletop.samples(self, split)]",
            "none exists, such as",
        ),
        (
            "Data.samples = lambda self, split: [replace(s, clips=(replace(s.clip,"
            " file=str(s.clip.file)),)) for s in Tabletop.samples(self, split)]",
            "each must be a pathlib.Path.",
        ),
        (
            "Data.samples = lambda self, split: [replace(s, clips=(replace(s.clip,"
            " window=(3.0, 1.0)),)) for s in Tabletop.samples(self, split)]",
            "whose window ends before it starts: (3.0, 1.0).",
        ),
        (
            "Data.clip_signal = lambda self, sample, clip, signal: signal.fixations",
            "from clip_signal; it must return a Scanpath.",
        ),
    ],
    "signal": [
        (
            "Kind.within = lambda self, start, end: self.fixations",
            "returned a value of type ndarray from within; it must return a Kind.",
        ),
        (
            "Kind.read = classmethod(lambda cls, path: Scanpath.read(path))",
            "it must return a Kind.",
        ),
        (
            "Kind.read = classmethod(lambda cls, path: 1 / 0)",
            "ZeroDivisionError",
        ),
        (
            "Kind.blank = lambda self: self",
            "events in its blank signal; `blank` must return one whose length is 0.",
        ),
        (
            "Kind.moved = lambda self, seconds: None",
            "failed in the control 'shuffled': AttributeError",
        ),
        (
            "Kind.controls = {'loud': lambda signal, context: signal.fixations}",
            "returned a value of type ndarray from the control 'loud'; it must return a Kind.",
        ),
    ],
    "input": [
        (
            "Transform.__call__ = lambda self, given, signal, window: given.text",
            "returned a str; it must return a HostInput, such as `dataclasses.replace(given,",
        ),
        (
            "Transform.__call__ = lambda self, given, signal, window: replace(given,"
            " frames=replace(given.frames, images=given.frames.images / 255))",
            "RGB must be a uint8 array of shape (frame, height, width, 3).",
        ),
        (
            "Transform.__call__ = lambda self, given, signal, window: replace(given,"
            " frames=replace(given.frames, images=given.frames.images[:1]))",
            "times; each frame needs its time.",
        ),
    ],
    "host": [
        (
            "MyHost.encode = lambda self, p, m, **more: Qwen25VL.encode(self, p, m, **more).inputs",
            "it must return an EncodedPrompt(inputs, grids).",
        ),
        (
            "MyHost.encode = lambda self, p, m, **more: replace(Qwen25VL.encode(self, p, m,"
            " **more), grids=())",
            "returned 0 grids from encode for 1 clips and pictures; it must return a tuple with a"
            " VisualGrid for each, in order.",
        ),
        (
            "MyHost.encode = lambda self, p, m, **more: replace(Qwen25VL.encode(self, p, m,"
            " **more), grids=tuple(replace(g, rows=g.rows + 1) for g in Qwen25VL.encode(self, p, m,"
            " **more).grids))",
            "Each clip needs as many as its grid has.",
        ),
    ],
}
CASES = [(kind, *mistake) for kind, mistakes in MISTAKES.items() for mistake in mistakes]


@pytest.fixture(scope="module")
def shared_folder(tmp_path_factory):
    """A folder with a small world, which all mistakes share."""
    folder = tmp_path_factory.mktemp("world")
    pipeline_of(folder, []).make_data()
    return folder


def pipeline_of(folder, overrides, cache=None):
    recipe = load_recipe(SMALL, [f"data.params.root={folder}/world", *overrides])
    return Pipeline(recipe, cache or folder / "cache")


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    """Install a plugin package with the code of a mistake; return what asks for its components."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delenv("MODULATE_PLUGINS", raising=False)

    def install(mistake):
        body = SOUND.replace("\n@hookimpl", f"\n{textwrap.dedent(mistake)}\n\n@hookimpl", 1)
        installed(tmp_path, "guilty", body, version="1.5")
        found = plugins.registry.__wrapped__()
        assert not found.plugins["guilty"].error, found.plugins["guilty"].error
        monkeypatch.setattr(plugins, "registry", lambda: found)

    yield install
    sys.modules.pop("guilty", None)


def use(shared_folder, kind, cache):
    """Do with a component what training and evaluation do."""
    pipeline = pipeline_of(shared_folder, PARTS[kind], cache)
    samples = pipeline.samples("test")
    prepared = pipeline.prepare(samples[0])
    pool = ShufflePool(samples)
    for control in ("blank", "shuffled", "loud"):
        if control != "loud" or kind == "signal":
            pipeline.control(control, prepared, pool)
    if kind == "input":
        pipeline.prepare(samples[0], "mine")
    modulation = pipeline.fresh_modulation()
    batch = pipeline.collate([prepared])
    with (
        modulation.attached(pipeline.model) as attachment,
        attachment.condition([prepared.clip_inputs()]),
        torch.no_grad(),
    ):
        pipeline.model(**batch.inputs)


@pytest.mark.parametrize("kind", [kind for kind in PARTS if kind != "signal"])
def test_a_sound_plugin_of_each_kind_works(kind, shared_folder, plugin, tmp_path):
    plugin("")
    use(shared_folder, kind, tmp_path / "cache")


@pytest.mark.parametrize(
    ("kind", "mistake", "text"), CASES, ids=[f"{kind}-{text[:40]}" for kind, _, text in CASES]
)
def test_a_mistake_is_named_with_its_plugin_and_what_to_do(
    kind, mistake, text, shared_folder, plugin, tmp_path
):
    plugin(mistake)
    with pytest.raises(ComponentError) as caught:
        use(shared_folder, kind, tmp_path / "cache")
    message = str(caught.value)
    name = {"dataset": "my_data"}.get(kind, f"my_{kind}")
    assert re.search(f"{KIND.get(kind, kind)} '{name}' of plugin 'guilty'", message), message
    assert text in message
    if " failed in " not in message and " failed in read" not in message:
        assert "(guilty 1.5)" in message


def test_there_are_many_mistakes_of_every_kind():
    assert len(CASES) >= 35 and all(len(mistakes) >= 3 for mistakes in MISTAKES.values())


def test_a_mended_backbone_works_at_once(shared_folder, plugin, tmp_path):
    """A wrong shape is never cached, so nobody has to delete the cache."""
    plugin("MyBackbone.d_features = 4")
    with pytest.raises(ComponentError, match="the last axis must be d_features, 4"):
        use(shared_folder, "backbone", tmp_path / "cache")
    assert not list((tmp_path / "cache").glob("*.safetensors"))
    plugins.registry().get("backbone", "my_backbone").d_features = 3
    use(shared_folder, "backbone", tmp_path / "cache")


def test_features_cached_under_a_fingerprint_that_did_not_change_are_replaced(
    shared_folder, plugin, tmp_path
):
    plugin("")
    use(shared_folder, "backbone", tmp_path / "cache")
    backbone = plugins.registry().get("backbone", "my_backbone")
    good = backbone.good
    backbone.d_features = 6
    backbone.good = lambda self, f, t: (torch.cat([good(self, f, t)[0]] * 2, -1), tuple(t))
    with pytest.warns(
        UserWarning, match="width 3 of the backbone 'my_backbone', which now makes 6, under one"
    ):
        use(shared_folder, "backbone", tmp_path / "cache")
    use(shared_folder, "backbone", tmp_path / "cache")


def test_a_training_that_diverges_is_no_mistake_of_the_plugin(shared_folder, plugin, tmp_path):
    plugin("")
    pipeline = pipeline_of(shared_folder, PARTS["modulator"], tmp_path / "cache")
    prepared = pipeline.prepare(pipeline.samples("test")[0])
    modulation = pipeline.fresh_modulation()
    with torch.no_grad():
        modulation.modulator.map.weight.fill_(float("inf"))
    with (
        modulation.attached(pipeline.model) as attachment,
        attachment.condition([prepared.clip_inputs()]),
    ):
        assert not pipeline.model(**pipeline.collate([prepared]).inputs).logits.isfinite().all()


def test_a_recipe_names_the_package_of_a_component_that_cannot_be_imported(
    tmp_path, monkeypatch, shared_folder
):
    code = "@hookimpl\ndef register_modulators(register):\n    register('lazy', 'nowhere:Lazy')\n"
    installed(tmp_path, "lazy_plugin", code)
    monkeypatch.syspath_prepend(str(tmp_path))
    found = plugins.registry.__wrapped__()
    monkeypatch.setattr(plugins, "registry", lambda: found)
    with pytest.raises(PluginError, match=r"modulator 'lazy' of plugin 'lazy_plugin' cannot be"):
        load_recipe(SMALL, ["modulator={name: lazy}"])
    assert pipeline_of(shared_folder, []).samples("test")

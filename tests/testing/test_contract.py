"""The suites can fail: each row of each suite refuses a component that breaks its promise."""

import inspect
import types
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import nn

import modulate
from modulate import (
    Backbone,
    BackboneContract,
    Dataset,
    DatasetContract,
    EncoderContract,
    FrameFeatures,
    InputContract,
    InputTransform,
    Modulator,
    ModulatorContract,
    Params,
    Projection,
    Sample,
    SampleClip,
    SignalContract,
    SignalError,
    SignalFeatures,
    hookimpl,
    plugins,
)
from modulate.interfaces.signal import Mark
from modulate.testing.contract import same
from modulate_gaze.heatmaps import HeatmapDur
from modulate_gaze.scanpath import Scanpath
from tests.testing.shipped import FIXATIONS


@pytest.fixture
def registered():
    """Register classes for the test: ``registered(hook, name, cls)``."""
    added = []

    def register(hook, name, cls):
        module = types.ModuleType(f"plugin_of_{name}")
        setattr(module, hook, hookimpl(lambda register: register(name, cls)))
        plugins.registry().add(module.__name__, module)
        added.append(module.__name__)

    yield register
    for name in added:
        plugins.registry().remove(name)


def refused(suite, row, text):
    with pytest.raises(AssertionError, match=text):
        getattr(suite(), row)()


def rows_of(suite):
    return {name for name, _ in inspect.getmembers(suite, callable) if name.startswith("test_")}


# --- signals


class Odd(Scanpath):
    """The base of kinds with one defect each."""

    kind = "odd"


def reading(cls, path):
    try:
        return cls(Scanpath.read(path).fixations)
    except SignalError as error:
        raise ValueError("unreadable") from error


def center(signal, context):
    """No control's docstring."""
    return signal


SIGNALS = {
    "test_it_is_registered_under_its_kind": ("kind", "other", "its `kind` is 'other'"),
    "test_it_is_read_from_a_file": ("read", classmethod(lambda c, p: c()), "has 0 events"),
    "test_a_file_of_something_else_is_a_signal_error": (
        "read",
        classmethod(reading),
        r"raise modulate\.SignalError, which names file and line",
    ),
    "test_within_returns_the_events_that_overlap": (
        "within",
        lambda self, start, end: self,
        r"within\(1e5, 2e5\) returns events of 0 to 4 s",
    ),
    "test_moved_shifts_all_times": ("moved", lambda self, s: self, r"moved\(64\) changes nothing"),
    "test_blank_is_empty": ("blank", lambda self: self, "`blank` has 4 events"),
    "test_it_never_changes": (
        "marks",
        lambda self, a, b: self.__dict__.update(n_resorted=self.n_resorted + 1) or (),
        "changed the signal itself",
    ),
    "test_augmented_is_one_of_its_kind": (
        "augmented",
        lambda self, rng: self.moved(__import__("random").random()),
        "draws from the `random` module",
    ),
    "test_controls_return_signals_of_the_kind": (
        "controls",
        {"center": center},
        "docstring of the control 'center' does not begin with 'Control: ",
    ),
    "test_marks_lie_on_the_frame": (
        "marks",
        lambda self, a, b: (Mark(640.0, 3.0, "pixels"),),
        "lies far outside the frame",
    ),
    "test_span_is_that_of_the_events": (
        "span",
        lambda self: (0.0, 1.0) if len(self) else None,
        "events lie outside the span",
    ),
}


@pytest.mark.parametrize("row", SIGNALS)
def test_each_row_for_signals_can_fail(row, registered):
    name, value, text = SIGNALS[row]
    registered("register_signals", "odd", type("Broken", (Odd,), {name: value}))
    suite = type("Suite", (SignalContract,), {"kind": "odd", "example": FIXATIONS})
    refused(suite, row, text)


def test_every_row_for_signals_is_tried():
    assert SIGNALS.keys() == rows_of(SignalContract)


# --- the rows that all other kinds share


class NoDescription(Params):
    dim: int = 8


class Lenient(Params):
    model_config: ClassVar = {"extra": "ignore"}


class Forgetful(Params):
    seen: list[int] = []

    def model_dump_json(self, **more):
        return '{"seen": [1]}'


@pytest.mark.parametrize(
    ("row", "params", "text"),
    [
        ("test_its_parameters_are_described", NoDescription, "'dim' has no description"),
        ("test_unknown_parameters_are_refused", Lenient, "accept unknown keys"),
        ("test_its_parameters_survive_being_saved", Forgetful, "after a way through JSON"),
    ],
)
def test_rows_on_parameters_can_fail(row, params, text, registered):
    registered("register_backbones", "odd", type("Broken", (Colors,), {"Params": params}))
    refused(suite_of(BackboneContract), row, text)


def test_a_name_that_is_not_registered_is_an_error():
    with pytest.raises(modulate.PluginError, match="Unknown backbone 'odd'"):
        suite_of(BackboneContract)().test_it_is_registered()


def suite_of(base, **attributes):
    return type("Suite", (base,), {"name": "odd", "example": FIXATIONS, **attributes})


# --- encoders


class Map(HeatmapDur):
    """A sound encoder, the base of broken ones."""

    calls = 0

    def __init__(self, params):
        super().__init__(params)
        self.unused = nn.Parameter(torch.ones(1)) if self.has_unused else None

    has_unused = False


def encode(change):
    def forward(self, signals, grids):
        self.calls += 1
        found = HeatmapDur.forward(self, signals, grids)
        return change(self, found, signals, grids)

    return forward


class HiddenWeights(Map):
    """Its direction is no parameter, so it is not saved."""

    def __init__(self, params):
        super().__init__(params)
        self.hidden = torch.randn(params.dim)

    def forward(self, signals, grids):
        found = super().forward(signals, grids)
        return replace(found, values=found.values * self.hidden)


ENCODERS = {
    "test_it_encodes_a_clip": (
        encode(lambda self, found, s, g: replace(found, values=found.values * 0)),
        "all values are 0, although the example has events",
    ),
    "test_a_blank_signal_is_not_active": (
        encode(lambda self, found, s, g: replace(found, active=found.active | True)),
        "steps of a blank signal are active",
    ),
    "test_it_fits_every_grid": (
        encode(lambda self, found, s, g: replace(found, values=found.values[:, :4])),
        "the shape must be",
    ),
    "test_clips_do_not_affect_each_other": (
        encode(lambda self, found, s, g: replace(found, values=found.values / len(s))),
        "are not those of each clip alone",
    ),
    "test_it_keeps_nothing_between_calls": (
        encode(lambda self, found, s, g: replace(found, values=found.values * self.calls)),
        "encoding a signal twice gives different values",
    ),
}


@pytest.mark.parametrize("row", ENCODERS)
def test_rows_for_encoders_can_fail(row, registered):
    forward, text = ENCODERS[row]
    registered("register_signal_encoders", "odd", type("Broken", (Map,), {"forward": forward}))
    refused(suite_of(EncoderContract, params={"dim": 8}), row, text)


@pytest.mark.parametrize(
    ("cls", "row", "text"),
    [
        (
            type("Unused", (Map,), {"has_unused": True}),
            "test_gradients_reach_every_weight",
            "no gradient reaches 'unused', so it never learns",
        ),
        (HiddenWeights, "test_its_weights_are_all_it_learned", "gives other values; register"),
    ],
)
def test_rows_on_the_weights_of_encoders_can_fail(cls, row, text, registered):
    registered("register_signal_encoders", "odd", cls)
    refused(suite_of(EncoderContract, params={"dim": 8}), row, text)


def test_a_weight_may_be_declared_unused(registered):
    registered("register_signal_encoders", "odd", type("Unused", (Map,), {"has_unused": True}))
    suite = suite_of(EncoderContract, params={"dim": 8}, unused=("unused",))
    suite().test_gradients_reach_every_weight()


# --- modulators


class Plain(Modulator):
    """A sound modulator, the base of broken ones."""

    Params = Params
    mixes_steps = False
    d_latent = 4

    def __init__(self, params, *, d_features, d_signal, n_layers):
        super().__init__()
        self.n_layers = n_layers
        self.map = nn.Linear(d_features + d_signal, 4)
        self.calls = 0

    def forward(self, features, signal):
        self.calls += 1
        return [self.map(torch.cat([features, signal.values], -1))] * self.n_layers


class Mixing(Plain):
    def forward(self, features, signal):
        return super().forward(features - features.mean(0), signal)


class InPlace(Plain):
    def forward(self, features, signal):
        return super().forward(features.mul_(0.5), signal)


class Few(Plain):
    def forward(self, features, signal):
        return super().forward(features, signal)[:2]


class Dividing(Plain):
    def forward(self, features, signal):
        scaled = signal.values / signal.values.abs().amax()
        return super().forward(features, SignalFeatures(scaled, signal.active))


class Loud(Plain):
    def writer(self, layer, d_model):
        writer = Projection(self.d_latent, d_model)
        nn.init.ones_(writer.weight)
        return writer


class Dead(Plain):
    def writer(self, layer, d_model):
        return Two(self.d_latent, d_model)


class Two(modulate.Writer):
    """Two zeros in a row."""

    def __init__(self, d_latent, d_model):
        super().__init__()
        self.first = nn.Parameter(torch.zeros(d_model, d_latent))
        self.gate = nn.Parameter(torch.zeros(()))

    def forward(self, latents, hidden, memory):
        return self.gate * latents @ self.first.T


class Half(Plain):
    def writer(self, layer, d_model):
        return type("W", (Projection,), {"forward": lambda s, z, h, m: (z @ s.weight.T).to(h)})(
            self.d_latent, d_model
        )


class Idle(Plain):
    def __init__(self, params, **more):
        super().__init__(params, **more)
        self.idle = nn.Parameter(torch.ones(3))


class Unsaved(Plain):
    def __init__(self, params, **more):
        super().__init__(params, **more)
        self.scale = torch.randn(4)

    def forward(self, features, signal):
        return [self.scale * layer for layer in super().forward(features, signal)]


class OddMixture(Plain):
    """A projection of its own that writes mixtures otherwise."""

    def forward(self, features, signal):
        (latents, *_) = super().forward(features, signal)
        weights = torch.softmax(features[..., :1] * torch.ones(2), -1)
        return [modulate.Mixture(weights, latents[:, :2])] * self.n_layers

    def writer(self, layer, d_model):
        def write(self, mixture, amplitude):
            return 2 * Projection.write_mixture(self, mixture, amplitude)

        return type("W", (Projection,), {"write_mixture": write})(self.d_latent, d_model)


@pytest.mark.parametrize(
    ("cls", "row", "text"),
    [
        (Few, "test_it_gives_latents_for_each_layer", "returned the latents of 2 layers"),
        (Mixing, "test_steps_do_not_affect_each_other", "when it is computed alone"),
        (InPlace, "test_it_keeps_nothing_between_calls", "forward changed its arguments|twice"),
        (Dividing, "test_it_bears_an_empty_signal", "latents that are not finite"),
        (Loud, "test_new_writers_write_nothing", "writes other numbers than 0"),
        (Half, "test_new_writers_write_nothing", r"returns torch.bfloat16 for hidden states"),
        (Dead, "test_new_writers_can_learn", "has a gradient, so it stays 0"),
        (Idle, "test_gradients_reach_every_weight", r"no gradient reaches 'modulator\.idle'"),
        (Unsaved, "test_its_weights_are_all_it_learned", "writes other residuals; register"),
        (OddMixture, "test_mixtures_are_written_as_tokens_are", "a mixture is written otherwise"),
    ],
)
def test_rows_for_modulators_can_fail(cls, row, text, registered):
    registered("register_modulators", "odd", cls)
    refused(suite_of(ModulatorContract), row, text)


# --- backbones


class Colors(Backbone):
    """A sound backbone, the base of broken ones."""

    Params = Params
    d_features = 3
    made = 0

    def __init__(self, params):
        super().__init__()
        type(self).made += 1
        self.seen = 0

    def forward(self, frames, times):
        self.seen += len(frames)
        return FrameFeatures(self.cells(frames), tuple(times))

    def cells(self, frames):
        pictures = frames.permute(0, 3, 1, 2) / 255.0
        return nn.functional.adaptive_avg_pool2d(pictures, 2).permute(0, 2, 3, 1)

    def fingerprint(self):
        return "colors"


class OneSize(Colors):
    def cells(self, frames):
        return frames[:, :48:24, :64:32].float()[:, :2, :2].clone() if frames.shape[1] == 48 else 1


class Blind(Colors):
    def cells(self, frames):
        return super().cells(frames) * 0


class Counting(Colors):
    def cells(self, frames):
        return super().cells(frames) + self.seen


class Numbered(Colors):
    def fingerprint(self):
        return f"colors-{self.made}"


class Sized(Params):
    size: int = 1


@pytest.mark.parametrize(
    ("cls", "row", "text"),
    [
        (OneSize, "test_it_encodes_every_clip", "failed in forward"),
        (Blind, "test_it_looks_at_the_frames", "two random clips have the same features"),
        (Counting, "test_it_keeps_nothing_between_clips", "twice gives different features"),
        (Numbered, "test_its_fingerprint_names_the_features", "have different fingerprints"),
    ],
)
def test_rows_for_backbones_can_fail(cls, row, text, registered):
    registered("register_backbones", "odd", cls)
    refused(suite_of(BackboneContract), row, text)


def test_a_fingerprint_that_ignores_a_parameter_is_refused(registered):
    registered("register_backbones", "odd", type("Broken", (Colors,), {"Params": Sized}))
    suite = suite_of(BackboneContract, other_params={"size": 2})
    refused(suite, "test_its_fingerprint_names_the_features", "have the same fingerprint")


# --- data sets


class Root(Params):
    root: Path


class Videos(Dataset):
    """A sound data set, the base of broken ones."""

    Params = Root
    made = 0

    def __init__(self, params):
        self.root = params.root
        type(self).made += 1
        self.number = type(self).made

    def sample(self, split, video):
        return Sample(
            id=f"{split}-{video.stem}",
            task="dark",
            clips=(SampleClip(video, (0.0, 1.0), {"gaze": video.with_suffix(".csv")}),),
            question="Is it dark?",
            options=("yes", "no"),
            answer=0,
        )

    def samples(self, split):
        videos = sorted((self.root / split).glob("*.mp4"))
        return [self.sample(split, video) for video in videos]

    def fingerprint(self):
        return "videos"


def changed(change):
    def samples(self, split):
        return [replace(sample, **change(sample)) for sample in Videos.samples(self, split)]

    return samples


DATASETS = {
    "test_it_has_samples": ("samples", lambda self, split: [], "no split has a sample"),
    "test_ids_are_unique": ("samples", changed(lambda s: {"id": "one"}), "with the id"),
    "test_splits_share_no_file": (
        "samples",
        lambda self, split: [
            replace(sample, id=f"{split}{sample.id}") for sample in Videos.samples(self, "train")
        ],
        "split by video, or set `shares_files = True`",
    ),
    "test_samples_keep_their_order": (
        "samples",
        lambda self, split: changed(lambda s: {"question": f"{self.number}?"})(self, split),
        "differ between two instances; sort what a folder lists",
    ),
    "test_files_exist_and_windows_lie_in_them": (
        "samples",
        changed(lambda s: {"clips": (replace(s.clip, window=(90.0, 91.0)),)}),
        "does not begin within its video",
    ),
    "test_signals_can_be_read": (
        "samples",
        changed(lambda s: {"clips": (replace(s.clip, signals={"pupil": Path("p.csv")}),)}),
        "has a signal of the kind 'pupil': Unknown signal",
    ),
    "test_questions_can_be_trained_on": (
        "samples",
        changed(lambda s: {"options": ("yes", "yes")}),
        "offers an option twice",
    ),
    "test_prompts_hold_the_question": (
        "prompt",
        lambda self, sample, answer="letter": "Say it.",
        "does not hold its question",
    ),
    "test_its_fingerprint_names_the_data": (
        "fingerprint",
        lambda self: f"videos-{self.number}",
        "have different fingerprints",
    ),
    "test_published_results_need_no_files": (
        "reference",
        lambda self: (self.root / "table.json").read_text(),
        "failed in reference: FileNotFoundError",
    ),
    "test_other_data_can_take_its_place": (
        "with_root",
        classmethod(lambda cls, params, root: {"root": root}),
        "with_root returned dict",
    ),
}


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    for split in ("train", "val", "test"):
        video = DatasetContract.write_video(folder / split / f"{split}.mp4", seconds=1.5)
        video.with_suffix(".csv").write_text(FIXATIONS)
    return folder


@pytest.mark.parametrize("row", DATASETS)
def test_rows_for_data_sets_can_fail(row, registered, videos):
    name, value, text = DATASETS[row]
    registered("register_datasets", "odd", type("Broken", (Videos,), {name: value}))
    refused(suite_of(DatasetContract, params={"root": videos}), row, text)


def test_every_row_for_data_sets_is_tried():
    assert rows_of(DatasetContract) - rows_of(BackboneContract) == DATASETS.keys()


# --- inputs


def drawing(self, given, signal, window):
    given.frames.images[:, 0] = 255
    return replace(given, text=f"{len(signal)} fixations. {given.text}")


def counting(self, given, signal, window):
    self.calls = getattr(self, "calls", 0) + 1
    return replace(given, text=f"{self.calls}. {given.text}")


INPUTS = {
    "test_it_shows_the_signal": (lambda self, given, s, w: given, "the same as without"),
    "test_another_signal_gives_another_turn": (
        lambda self, given, s, w: replace(given, text=f"! {given.text}"),
        "a blank signal gives the same turn",
    ),
    "test_it_changes_nothing_that_it_is_given": (drawing, "copy the frames before drawing"),
    "test_it_keeps_the_question": (
        lambda self, given, s, w: replace(given, text=f"{len(s)} fixations"),
        "the question is lost",
    ),
    "test_it_keeps_nothing_between_calls": (counting, "give different results"),
}


@pytest.mark.parametrize("row", INPUTS)
def test_rows_for_inputs_can_fail(row, registered):
    call, text = INPUTS[row]
    cls = type(
        "Broken",
        (InputTransform,),
        {
            "Params": Params,
            "signal_kind": "gaze",
            "__init__": lambda self, params: None,
            "__call__": call,
        },
    )
    registered("register_inputs", "odd", cls)
    refused(suite_of(InputContract), row, text)


# --- comparing


@pytest.mark.parametrize(
    ("first", "second", "equal"),
    [
        (torch.ones(2), torch.ones(2), True),
        (torch.ones(2), torch.ones(2).double(), False),
        (torch.ones(2), torch.ones(3), False),
        (np.array(["a"]), np.array(["a"]), True),
        (np.array([1.0]), np.array([1.5]), False),
        ({"a": [1, (2.0, None)]}, {"a": [1, (2.0, None)]}, True),
        ({"a": [1]}, {"b": [1]}, False),
        ([1, 2], [1], False),
        (Scanpath([[0.1, 0.2, 1.0, 0.5]]), Scanpath([[0.1, 0.2, 1.0, 0.5]]), True),
        (Scanpath([[0.1, 0.2, 1.0, 0.5]]), Scanpath(), False),
        (1, "1", False),
    ],
)
def test_values_are_the_same_if_they_hold_the_same(first, second, equal):
    assert same(first, second) is equal

"""The GazeQwen resampler: released numbers in batched form, sharing, adding to features."""

import json
import re

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from modulate.errors import CheckpointError, RecipeError
from modulate.interfaces.components import SignalFeatures
from modulate.interfaces.visual_grid import VisualGrid
from modulate_gaze.coordinates import CoordPE
from modulate_gaze.released import read_released
from modulate_gaze.resampler import GazeResampler
from modulate_gaze.scanpath import Scanpath

GOLDEN = "tests/fixtures/gazeqwen_resampler.safetensors"
LAYERS = (6, 13, 20, 27)


@pytest.fixture(scope="module")
def golden():
    return load_file(GOLDEN)


@pytest.fixture(scope="module")
def state(golden):
    return {
        key.removeprefix("state_dict."): value
        for key, value in golden.items()
        if key.startswith("state_dict.")
    }


def make(n_layers=3, d_features=6, d_signal=8, **params):
    torch.manual_seed(0)
    return GazeResampler(
        GazeResampler.Params(**({"latents": 5, "blocks": 2, "width": 8} | params)),
        d_features=d_features,
        d_signal=d_signal,
        n_layers=n_layers,
    )


def signal(steps, tokens=4, d=8, to_features=False):
    torch.manual_seed(1)
    values = torch.randn(steps, tokens, d)
    values[0] = 0
    return SignalFeatures(values, values.any(-1).any(-1), to_features)


def read(resampler, features, guide):
    """Return every token's latents, layer by layer."""
    return [mixture.dense() for mixture in resampler(features, guide)]


def test_the_released_residuals_are_reproduced_for_all_steps_and_layers_at_once(golden, state):
    released = read_released(state, LAYERS)
    with safe_open(GOLDEN, "pt") as file:
        config, (_, rows, cols) = (
            json.loads(file.metadata()["config"]),
            map(int, file.metadata()["grid"].split(",")),
        )
    assert (released.params.latents, released.params.blocks, released.params.width) == (
        config["n_latents"],
        config["n_blocks"],
        config["d_latent"],
    )
    resampler = GazeResampler(
        released.params,
        d_features=released.d_features,
        d_signal=released.params.width,
        n_layers=len(LAYERS),
    )
    resampler.load_state_dict(released.resampler)
    times = tuple(golden["frame_times"].tolist())
    encoder = CoordPE(CoordPE.Params(dim=released.params.width))
    guide = encoder(
        [Scanpath(golden["scanpath"])],
        [VisualGrid(rows, cols, times, tuple((time, time) for time in times))],
    )
    assert guide.active.tolist() == [True, False, True]
    latents = read(resampler, golden["features"], guide)
    for index, layer in enumerate(LAYERS):
        residual = released.amplitude[index] * latents[index] @ released.outputs[index].T
        expected = golden[f"residual.layer{layer}"]
        error = (residual - expected).abs().max()
        assert (
            error < 1e-5 and error < 1e-4 * expected.abs().max()
        )  # the golden residuals are small themselves


def test_each_layer_and_step_computes_on_its_own():
    resampler = make()
    features = torch.randn(3, 4, 6)
    guide = signal(3)
    whole = read(resampler, features, guide)
    assert len(whole) == 3 and all(latents.shape == (3, 4, 8) for latents in whole)
    for step in range(3):
        alone = read(
            resampler,
            features[step : step + 1],
            SignalFeatures(guide.values[step : step + 1], guide.active[step : step + 1]),
        )
        for a, b in zip(alone, whole, strict=True):
            assert torch.allclose(a[0], b[step], atol=1e-6)


def test_per_layer_copies_differ_and_are_trained_apart():
    resampler = make()
    resampler.blocks[
        0
        # at unit scale the sum over channels would hardly depend on the inputs
    ].norm.weight.data.normal_()
    outputs = read(resampler, torch.randn(2, 4, 6), signal(2))
    assert not torch.allclose(outputs[0], outputs[1], atol=1e-3)
    outputs[1].square().sum().backward()
    for name, parameter in resampler.named_parameters():
        moved = parameter.grad.flatten(1).abs().amax(1)
        assert moved[0] == moved[2] == 0, name


def test_sharing_gives_every_layer_the_same_latents_from_one_copy():
    shared = make(sharing="shared")
    separate = make(sharing="per_layer")
    outputs = read(shared, torch.randn(2, 4, 6), signal(2))
    assert shared.shared_output and not separate.shared_output
    assert len(outputs) == 3 and torch.equal(outputs[0], outputs[2])
    count = [
        sum(parameter.numel() for parameter in module.parameters()) for module in (shared, separate)
    ]
    assert count[1] == 3 * count[0]


def test_the_papers_sizes_have_the_released_number_of_parameters():
    resampler = GazeResampler(GazeResampler.Params(), d_features=768, d_signal=256, n_layers=4)
    outputs = 4 * 256 * 3584
    amplitudes = 28
    assert (
        sum(parameter.numel() for parameter in resampler.parameters()) + outputs + amplitudes
        == 10_807_324
    )


def test_gaze_that_is_the_same_for_every_token_cannot_tell_tokens_apart_but_gates_them():
    resampler = make()
    features = torch.randn(1, 4, 6)
    features = features[:, :1].expand(-1, 4, -1)
    uniform = SignalFeatures(
        torch.randn(1, 1, 8).expand(-1, 4, -1), torch.ones(1, dtype=torch.bool)
    )
    out = read(resampler, features, uniform)[0]
    assert torch.allclose(out, out[:, :1].expand_as(out), atol=1e-6)
    assert not torch.allclose(out, read(resampler, features, signal(1))[0], atol=1e-6)


def test_a_step_without_gaze_still_gets_what_the_features_alone_say():
    resampler = make()
    features = torch.randn(2, 4, 6)
    assert read(resampler, features, signal(2))[0][0].abs().max() > 1e-3


def test_adding_to_the_features_equals_features_that_already_hold_the_signal():
    resampler = make(d_features=8)
    guide = signal(3, to_features=True)
    resampler.proj_in.weight.data.copy_(torch.eye(8).expand(3, 8, 8))
    features = torch.randn(3, 4, 8)
    by_hand = read(resampler, features + guide.values, SignalFeatures(guide.values, guide.active))
    for a, b in zip(read(resampler, features, guide), by_hand, strict=True):
        assert torch.allclose(a, b, atol=1e-6)
    assert not torch.allclose(
        by_hand[0],
        read(resampler, features, SignalFeatures(guide.values, guide.active))[0],
        atol=1e-3,
    )


def test_adding_features_of_another_width_is_refused():
    message = (
        "The encoder's features (dim 12) are to be added to the resampler's (width 8); set both to"
        " the same number, or the encoder's to_features to false."
    )
    with pytest.raises(RecipeError, match=re.escape(message)):
        make(d_signal=12)(torch.randn(2, 4, 6), signal(2, d=12, to_features=True))


def test_half_precision_inputs_and_autocast_still_compute_in_single_precision():
    resampler = make()
    features = torch.randn(2, 4, 6).bfloat16()
    guide = signal(2)
    expected = resampler(features.float(), guide)[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = resampler(features, guide)[0]
    assert torch.equal(found.weights, expected.weights) and torch.equal(
        found.vectors, expected.vectors
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda state: state.pop("q_projs.2.1.bias"),
            "The released resampler lacks 'q_projs.2.1.bias'.",
        ),
        (lambda state: state.pop("amplitude"), "The released resampler lacks 'amplitude'."),
        (
            lambda state: state.update(extra=torch.zeros(1)),
            "The released resampler has 1 tensors that are not known, the first is 'extra'.",
        ),
        (
            lambda state: state.pop("latents.3"),
            (
                "The released resampler has 3 modules of 2 blocks for the 4 layers (6, 13, 20, 27)."
                " Name one layer for each module."
            ),
        ),
        (
            lambda state: state.update({"latents.1": torch.zeros(6, 16)}),
            (
                "The released resampler's 'latents.0' and its likes differ in shape: [(5, 16), (6,"
                " 16), (5, 16), (5, 16)]."
            ),
        ),
        (
            lambda state: state.update(amplitude=torch.ones(24)),
            "Layer 27 is out of range: the released resampler has amplitudes for 24 layers.",
        ),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused(state, change, message):
    changed = dict(state)
    change(changed)
    with pytest.raises(CheckpointError, match=re.escape(message)):
        read_released(changed, LAYERS)


def test_the_older_layout_is_recognized():
    with pytest.raises(
        CheckpointError,
        match="It seems to be the older layout with one shared module, which is not supported",
    ):
        read_released({"proj_in.weight": torch.zeros(2, 2), "latents": torch.zeros(2, 2)}, LAYERS)

"""The four gaze encoders, against slow, plain loops."""

import math

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file

from modulate.errors import ConditioningError
from modulate.interfaces.visual_grid import VisualGrid, visual_grid
from modulate_gaze.coordinates import CoordPE, CoordRel
from modulate_gaze.heatmaps import HeatmapDur, HeatmapTau
from modulate_gaze.scanpath import Scanpath

GOLDEN = "tests/fixtures/gazeqwen_resampler.safetensors"
ALL = [CoordPE, CoordRel, HeatmapTau, HeatmapDur]
SCANPATHS = [
    Scanpath([(0.1, 0.2, 1.0, 0.6), (0.7, 0.9, 1.1, 0.5), (0.5, 0.5, 4.0, 2.0)]),
    Scanpath([(0.3, 1.2, 10.5, 0.8)]),
    Scanpath(),
]
GRIDS = [
    visual_grid([0, 1, 2, 3, 4, 5], 2, 3, 4),
    visual_grid([10, 10.4, 10.9, 14], 1, 3, 4),
    visual_grid([0, 1], 1, 3, 4),
]


def make(cls, **params):
    torch.manual_seed(0)
    return cls(cls.Params(**params))


def pe(x, y, dim, scale, temperature=10000.0):
    """Return DETR's encoding, number by number."""
    out = []
    for value in (x, y):
        for index in range(dim // 4):
            angle = value * scale / temperature ** (2 * index / (dim / 2))
            out += [math.sin(angle), math.cos(angle)]
    return torch.tensor(out)


def weights_at(scanpath, grid, step, mode):
    time, (start, finish) = grid.times[step], grid.spans[step]
    if mode == "midpoint":
        return [float(abs(time - t) <= d / 2 + 1e-6) for _, _, t, d in scanpath.fixations.tolist()]
    seconds = [
        min(t + d / 2, finish) - max(t - d / 2, start) for _, _, t, d in scanpath.fixations.tolist()
    ]
    return [second if second > 1e-6 else 0.0 for second in seconds]


def looped(value, d, mode):
    """Return weighted means of value(fixation, token center), and whether any was active."""
    steps = []
    active = []
    for scanpath, grid in zip(SCANPATHS, GRIDS, strict=True):
        for step in range(grid.steps):
            weights = weights_at(scanpath, grid, step, mode)
            total = sum(weights)
            active.append(total > 0)
            for centre in grid.centers():
                mean = torch.zeros(d)
                for weight, fixation in zip(weights, scanpath.fixations.tolist(), strict=True):
                    if total > 0:
                        mean = mean + weight / total * value(fixation, centre)
                steps.append(mean)
    return torch.stack(steps).view(len(active), -1, d), torch.tensor(active)


@pytest.mark.parametrize("mode", ["midpoint", "overlap"])
@pytest.mark.parametrize("scale", [1.0, 2 * math.pi])
def test_coord_pe_is_the_mean_encoding_of_the_active_fixations_at_every_token(mode, scale):
    values, active = looped(lambda f, _: pe(f[0], f[1], 16, scale), 16, mode)
    out = make(CoordPE, dim=16, scale=scale, active=mode)(SCANPATHS, GRIDS)
    assert torch.allclose(out.values, values, atol=1e-6)
    assert torch.equal(out.active, active) and 0 < active.sum() < len(active)


@pytest.mark.parametrize("mode", ["midpoint", "overlap"])
def test_coord_rel_is_the_mean_encoding_of_the_offset_from_each_token(mode):
    values, active = looped(lambda f, c: pe(f[0] - c[0], f[1] - c[1], 16, 2 * math.pi), 16, mode)
    out = make(CoordRel, dim=16, active=mode)(SCANPATHS, GRIDS)
    assert torch.allclose(out.values, values, atol=1e-6)
    assert torch.equal(out.active, active)
    assert out.to_features


@pytest.mark.parametrize("mode", ["midpoint", "overlap"])
def test_heatmap_dur_is_gaussians_weighted_by_seconds(mode):
    encoder = make(HeatmapDur, dim=8, sigma=0.2, active=mode, normalization="none")
    out = encoder(SCANPATHS, GRIDS)
    step = 0
    for scanpath, grid in zip(SCANPATHS, GRIDS, strict=True):
        for index in range(grid.steps):
            weights = weights_at(scanpath, grid, index, mode)
            if mode == "midpoint":
                weights = [
                    weight * duration
                    for weight, duration in zip(weights, scanpath.fixations[:, 3], strict=True)
                ]
            for token, (cx, cy) in enumerate(grid.centers()):
                heat = sum(
                    weight * math.exp(-((x - cx) ** 2 + (y - cy) ** 2) / (2 * 0.2**2))
                    for weight, (x, y, _, _) in zip(weights, scanpath.fixations, strict=True)
                )
                assert torch.allclose(
                    out.values[step, token], heat * encoder.projection.weight[:, 0], atol=1e-6
                )
            assert out.active[step].item() == (sum(weights) > 0)
            step += 1
    assert step == len(out.values) == 9


def test_heatmap_tau_fades_with_the_time_since_the_fixation():
    grid = visual_grid([0, 1, 2, 3, 4], 1, 1, 1)
    encoder = make(HeatmapTau, dim=4, sigma=0.3, tau=0.7, active="midpoint")
    heat = (
        encoder([Scanpath([(0.5, 0.5, 1.0, 0.5)])], [grid]).values[:, 0]
        / encoder.projection.weight[:, 0]
    )
    expected = [0.0, 1.0, *(math.exp(-(t - 1.25) / 0.7) for t in (2, 3, 4))]
    assert torch.allclose(heat, torch.tensor(expected)[:, None].expand(-1, 4), atol=1e-5)


def test_heatmap_tau_learns_its_time_constant():
    encoder = make(HeatmapTau, dim=4, tau=0.5)
    assert encoder.tau.item() == pytest.approx(0.5)
    out = encoder(SCANPATHS, GRIDS).values
    (out / encoder.projection.weight[:, 0]).sum().backward()
    assert encoder.log_tau.grad.item() > 0  # slower decay, more heat


@pytest.mark.parametrize("cls", [HeatmapTau, HeatmapDur])
def test_heatmaps_normalize_as_asked(cls):
    grid = VisualGrid(5, 5, (1.0,), ((0.0, 2.0),))
    pair = Scanpath([(0.1, 0.1, 0.5, 0.4), (0.9, 0.9, 1.5, 0.8)])

    def heat(normalization):
        encoder = make(cls, dim=4, sigma=0.05, normalization=normalization)
        return (encoder([pair], [grid]).values / encoder.projection.weight[:, 0])[0, :, 0]

    none, weight, peak = (heat(n) for n in ("none", "weight", "peak"))
    assert peak.max().item() == pytest.approx(1)
    assert (weight[0] + weight[24]).item() == pytest.approx(
        1, abs=1e-4
    )  # both fixations lie on token centres, far apart
    assert torch.allclose(none / none.max(), peak, atol=1e-6) and torch.allclose(
        weight / weight.max(), peak, atol=1e-6
    )
    if cls is HeatmapDur:  # in seconds: 0.4 and 0.8
        assert none[[0, 24]].tolist() == pytest.approx([0.4, 0.8], abs=1e-4)


@pytest.mark.parametrize("mode", ["midpoint", "overlap"])
@pytest.mark.parametrize("cls", ALL)
def test_steps_without_gaze_are_exactly_zero_and_the_others_are_not(cls, mode):
    out = make(cls, active=mode)(SCANPATHS, GRIDS)
    assert out.values.shape == (9, 12, 256) and out.values.dtype == torch.float32
    assert 0 < out.active.sum() < len(out.active)
    assert torch.equal((out.values != 0).any(-1).any(-1), out.active)


@pytest.mark.parametrize("cls", ALL)
def test_a_clip_alone_gives_what_it_gives_in_a_batch(cls):
    encoder = make(cls, dim=16)
    together = encoder(SCANPATHS, GRIDS).values
    alone = torch.cat(
        [
            encoder([scanpath], [grid]).values
            for scanpath, grid in zip(SCANPATHS, GRIDS, strict=True)
        ]
    )
    assert torch.allclose(together, alone, atol=1e-6)


@pytest.mark.parametrize("cls", ALL)
def test_empty_scanpaths_alone_give_nothing(cls):
    out = make(cls, dim=16)([Scanpath()], GRIDS[:1])
    assert out.values.shape == (3, 12, 16) and not out.values.any() and not out.active.any()


@pytest.mark.parametrize("cls", ALL)
def test_values_stay_in_single_precision_under_autocast(cls):
    encoder = make(cls, dim=16)
    expected = encoder(SCANPATHS, GRIDS).values
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(encoder(SCANPATHS, GRIDS).values, expected)


@pytest.mark.parametrize("cls", ALL)
def test_grids_of_different_sizes_are_refused(cls):
    with pytest.raises(
        ConditioningError,
        match=r"need grids of one size; got rows × columns \[\(2, 2\), \(3, 4\)\]",
    ):
        make(cls)(SCANPATHS[:2], [GRIDS[0], visual_grid([0], 1, 2, 2)])


@pytest.mark.parametrize("cls", [CoordPE, CoordRel])
def test_coordinate_encodings_need_a_width_divisible_by_four(cls):
    with pytest.raises(ValidationError, match="multiple of 4"):
        cls.Params(dim=30)


@pytest.mark.parametrize("cls", [CoordPE, CoordRel])
def test_coordinate_encodings_have_nothing_to_save(cls):
    assert not make(cls).state_dict()


def test_only_the_relative_and_heat_map_encoders_tell_tokens_apart():
    spread = {cls: make(cls)(SCANPATHS, GRIDS).values.std(1).max().item() for cls in ALL}
    assert spread[CoordPE] == 0 and min(spread[c] for c in ALL[1:]) > 0.1


def test_coord_pe_reproduces_the_released_encoding():
    golden = load_file(GOLDEN)
    grid = VisualGrid(1, 1, (1.0,), ((0.0, 2.0),))
    out = make(CoordPE, dim=16)([Scanpath(golden["scanpath"])], [grid])
    assert (out.values[0, 0] - golden["pe.t0"]).abs().max() < 1e-6

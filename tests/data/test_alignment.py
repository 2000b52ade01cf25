"""Alignment of features with a visual grid: linear in time, bilinear and smoothed in space."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import interpolate

from modulate import visual_grid
from modulate.data.alignment import align
from modulate.errors import PluginError
from modulate.interfaces.components import FrameFeatures
from modulate.interfaces.visual_grid import VisualGrid


def grid_of(times, rows, cols):
    """Return a grid with a step at each of ``times``."""
    return visual_grid(list(times), frames_per_step=1, rows=rows, cols=cols)


def values(steps, rows=2, cols=3, width=4):
    return torch.randn(steps, rows, cols, width, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("times", [(0.0, 0.25, 3.0, 3.5), (1.0,)])
def test_features_are_linear_in_time_and_constant_outside_their_range(times):
    asked = [0.0, 0.1, 0.25, 1.0, 2.9, 3.0, 3.4, 3.5, 9.0]
    raw = values(len(times))
    found = align(FrameFeatures(raw, times), grid_of(asked, 2, 3))
    expected = np.stack(
        [np.interp(asked, times, column) for column in raw.flatten(1).T.double().numpy()], axis=1
    )
    torch.testing.assert_close(
        found.flatten(1), torch.from_numpy(expected).float(), atol=1e-6, rtol=1e-5
    )


@pytest.mark.parametrize("shape", [(2, 3), (4, 6), (1, 3), (2, 2), (1, 6), (4, 2)])
@pytest.mark.parametrize("antialias", [True, False])
def test_space_is_bilinear_and_smoothed_if_either_side_has_fewer_tokens(shape, antialias):
    times = (0.0, 1.0)
    raw = values(2)
    found = align(FrameFeatures(raw, times), grid_of(times, *shape), antialias=antialias)
    fewer = shape[0] < 2 or shape[1] < 3
    expected = interpolate(
        raw.permute(0, 3, 1, 2),
        shape,
        mode="bilinear",
        align_corners=False,
        antialias=antialias and fewer,
    )
    torch.testing.assert_close(found, expected.flatten(2).transpose(1, 2), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("steps", [3, 5, 2])
def test_by_index_the_time_axis_is_stretched_whatever_its_times(steps):
    raw = values(3)
    found = align(FrameFeatures(raw, (0.0, 0.1, 9.0)), grid_of(range(steps), 2, 3), by="index")
    expected = interpolate(raw.flatten(1).T[None], steps, mode="linear", align_corners=False)[0].T
    torch.testing.assert_close(found.flatten(1), expected, atol=1e-6, rtol=1e-5)


def grid_at(times: list[float], rows: int, cols: int) -> VisualGrid:
    return VisualGrid(rows, cols, tuple(times), tuple((time, time) for time in times))


gaps = st.lists(st.floats(0.01, 3), min_size=1, max_size=8).map(
    lambda g: tuple(float(t) for t in np.cumsum(g))
)


@settings(deadline=None, max_examples=60)
@given(
    gaps,
    st.lists(st.floats(-2, 30), min_size=1, max_size=6, unique=True).map(sorted),
    st.sampled_from([(3, 4), (2, 2), (6, 9)]),
)
def test_features_linear_in_time_are_exact_at_any_step_times(
    times: tuple[float, ...], asked: list[float], shape: tuple[int, int]
) -> None:
    slope = torch.tensor([1.0, -2.0])
    base = torch.tensor([0.5, 3.0])
    values = torch.stack([base + slope * time for time in times])[:, None, None, :].expand(
        -1, 3, 4, -1
    )
    out = align(FrameFeatures(values, times), grid_at(asked, *shape))
    held = [min(max(t, times[0]), times[-1]) for t in asked]
    want = torch.stack([base + slope * t for t in held])[:, None, :].expand(
        -1, shape[0] * shape[1], -1
    )
    assert out.shape == want.shape
    torch.testing.assert_close(out, want, atol=1e-4, rtol=1e-5)


def test_steps_at_the_features_times_and_shape_return_them_unchanged_row_by_row() -> None:
    times = (0.0, 0.1, 2.0)
    features = FrameFeatures(values(3, 3, 4, 5), times)
    out = align(features, grid_at([0.0, 0.1, 2.0], 3, 4))
    assert torch.equal(out, features.values.reshape(3, 12, 5))


def test_uneven_times_are_used_instead_of_the_index() -> None:
    features = FrameFeatures(torch.tensor([0.0, 10.0, 20.0]).reshape(3, 1, 1, 1), (0.0, 1.0, 9.0))
    assert align(features, grid_at([0.5, 5.0], 1, 1)).flatten().tolist() == [5.0, 15.0]


def test_late_times_keep_their_precision() -> None:
    features = FrameFeatures(torch.tensor([0.0, 1.0]).reshape(2, 1, 1, 1), (100_000.0, 100_000.04))
    assert align(features, grid_at([100_000.01], 1, 1)).item() == pytest.approx(0.25, abs=1e-6)


def test_enlarging_aligns_pixel_centers_and_is_constant_at_the_edges() -> None:
    features = FrameFeatures(torch.tensor([[0.0, 1.0]]).reshape(1, 1, 2, 1), (0.0,))
    assert align(features, grid_at([7.0], 1, 4)).flatten().tolist() == pytest.approx(
        [0.0, 0.25, 0.75, 1.0]
    )


def test_shrinking_averages_features_instead_of_skipping_them() -> None:
    board = (torch.arange(8)[:, None] + torch.arange(8)[None]) % 2
    out = align(FrameFeatures(board.float().reshape(1, 8, 8, 1), (0.0,)), grid_at([0.0], 2, 2))
    torch.testing.assert_close(out, torch.full((1, 4, 1), 0.5), atol=0.02, rtol=0)
    spike = torch.zeros(1, 8, 8, 1)
    spike[0, 0, 0] = 1
    assert align(FrameFeatures(spike, (0.0,)), grid_at([0.0], 2, 2))[0, 0, 0] > 0.01


def test_rows_and_columns_are_not_swapped() -> None:
    rows = torch.arange(4.0)[:, None].expand(4, 6).reshape(1, 4, 6, 1)
    out = align(FrameFeatures(rows, (0.0,)), grid_at([0.0], 2, 3)).reshape(2, 3)
    assert torch.allclose(out[:, :1].expand(2, 3), out, atol=1e-5) and out[0, 0] < out[1, 0]


def test_half_precision_features_are_aligned_in_float32() -> None:
    features = FrameFeatures(
        torch.tensor([1.0, 1.0078125], dtype=torch.bfloat16).reshape(2, 1, 1, 1), (0.0, 1.0)
    )
    out = align(features, grid_at([0.5], 1, 1))
    assert out.dtype == torch.float32 and out.item() == 1.00390625


@pytest.mark.parametrize("times", [(0.0,), (0.5, 0.5), (0.6, 0.5)])
def test_features_whose_times_do_not_match_are_refused(times: tuple[float, ...]) -> None:
    with pytest.raises(
        PluginError, match=r"feature times must increase|with a time each; got shape"
    ):
        align(FrameFeatures(torch.zeros(2, 1, 1, 1), times), grid_at([0.0], 1, 1))


def test_space_is_smoothed_along_an_axis_that_shrinks_while_the_other_grows():
    generator = torch.Generator().manual_seed(4)
    values = torch.randn(1, 4, 2, 3, generator=generator)
    shrink = (
        torch.tensor([[3, 3, 1, 0], [0, 1, 3, 3]]) / 7
    )  # triangles two places wide, around the new centres
    grow = torch.tensor([[4, 0], [3, 1], [1, 3], [0, 4]]) / 4
    for rows_shrink in (True, False):
        given = values if rows_shrink else values.transpose(1, 2)
        rows, cols = (shrink, grow) if rows_shrink else (grow, shrink)
        found = align(FrameFeatures(given, (0.0,)), grid_at([0.0], len(rows), len(cols)))
        wanted = torch.einsum("ir,jc,trcd->tijd", rows, cols, given).reshape(
            1, len(rows) * len(cols), 3
        )
        assert torch.allclose(found, wanted, atol=1e-6)

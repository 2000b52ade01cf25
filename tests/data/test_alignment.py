"""Features brought onto a grid: linear in time between their own times, bilinear in space, smooth
where there are fewer tokens.
"""

import numpy as np
import pytest
import torch
from torch.nn.functional import interpolate

from modulate import visual_grid
from modulate.data.alignment import align
from modulate.interfaces.components import FrameFeatures


def grid_of(times, rows, cols):
    """A grid of steps at these times."""
    return visual_grid(list(times), frames_per_step=1, rows=rows, cols=cols)


def values(steps, rows=2, cols=3, width=4):
    return torch.randn(steps, rows, cols, width, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("times", [(0.0, 0.25, 3.0, 3.5), (1.0,)])
def test_time_is_linear_between_the_features_own_and_held_beyond(times):
    asked = [0.0, 0.1, 0.25, 1.0, 2.9, 3.0, 3.4, 3.5, 9.0]
    made = values(len(times))
    found = align(FrameFeatures(made, times), grid_of(asked, 2, 3))
    expected = np.stack(
        [np.interp(asked, times, column) for column in made.flatten(1).T.double().numpy()], axis=1
    )
    torch.testing.assert_close(
        found.flatten(1), torch.from_numpy(expected).float(), atol=1e-6, rtol=1e-5
    )


@pytest.mark.parametrize("shape", [(2, 3), (4, 6), (1, 3), (2, 2), (1, 6), (4, 2)])
@pytest.mark.parametrize("antialias", [True, False])
def test_space_is_bilinear_and_smooth_where_either_side_has_fewer_tokens(shape, antialias):
    times = (0.0, 1.0)
    made = values(2)
    found = align(FrameFeatures(made, times), grid_of(times, *shape), antialias=antialias)
    fewer = shape[0] < 2 or shape[1] < 3
    expected = interpolate(
        made.permute(0, 3, 1, 2),
        shape,
        mode="bilinear",
        align_corners=False,
        antialias=antialias and fewer,
    )
    torch.testing.assert_close(found, expected.flatten(2).transpose(1, 2), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("steps", [3, 5, 2])
def test_the_time_axis_is_stretched_whatever_its_times_where_that_is_asked_for(steps):
    made = values(3)
    found = align(FrameFeatures(made, (0.0, 0.1, 9.0)), grid_of(range(steps), 2, 3), by="index")
    expected = interpolate(made.flatten(1).T[None], steps, mode="linear", align_corners=False)[0].T
    torch.testing.assert_close(found.flatten(1), expected, atol=1e-6, rtol=1e-5)

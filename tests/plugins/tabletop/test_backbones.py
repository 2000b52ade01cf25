"""The two small backbones that ship: a recipe can name them, and their features are useful."""

import numpy as np
import pytest
import torch

from modulate import plugins
from modulate_tabletop.render import GRID
from modulate_tabletop.small_host.lessons import TINTS, random_lesson

STEPS = 4
SHIPPED = {
    "vjepa2_1": {"weights": "package:modulate_tabletop/vjepa/model.safetensors", "image_size": 128},
    "dinov2": {
        "weights": "package:modulate_tabletop/dinov2/model.safetensors",
        "dims": {"dim": 96, "depth": 4, "heads": 3},
        "image_size": 112,
    },
}


def features_of_places(backbone, rng, clips):
    """Features of each full place at each step, and the color of its object."""
    found = []
    colors = []
    for item in (random_lesson(rng, STEPS, False) for _ in range(clips)):
        values = backbone(
            torch.from_numpy(item.frames), [0.5 * index for index in range(2 * STEPS)]
        ).values
        # A backbone yields features for each frame, or for two frames together.
        last = values if len(values) == STEPS else values[1::2]
        cells = last.reshape(STEPS, GRID, 2, GRID, 2, -1).mean((2, 4)).flatten(1, 2)
        full = torch.from_numpy(item.kinds >= 0)
        found.append(cells[full])
        colors.append(torch.from_numpy(item.colors)[full])
    return torch.cat(found), torch.cat(colors)


@pytest.mark.parametrize("name", SHIPPED)
def test_a_linear_probe_reads_the_colors_of_places(name):
    component = plugins.get("backbone", name)
    backbone = component(component.Params.model_validate(SHIPPED[name])).eval()
    rng = np.random.default_rng(7)
    x, y = features_of_places(backbone, rng, 16)
    x_new, y_new = features_of_places(backbone, rng, 8)
    probe = torch.linalg.lstsq(
        torch.cat([x, torch.ones(len(x), 1)], 1), torch.nn.functional.one_hot(y, TINTS).float()
    ).solution
    right = (
        ((torch.cat([x_new, torch.ones(len(x_new), 1)], 1) @ probe).argmax(1) == y_new)
        .float()
        .mean()
    )
    assert right > 0.8, f"{right:.2f} of {len(y_new)} places; blind guessing gives {1 / TINTS:.2f}"

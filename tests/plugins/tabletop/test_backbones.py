"""The two small backbones that ship can be named in a recipe, and their features tell what stands
where.
"""

import numpy as np
import pytest
import torch

from modulate import plugins
from modulate_tabletop.lessons import TINTS, lesson
from modulate_tabletop.render import GRID

STEPS = 4
SHIPPED = {
    "vjepa2_1": {"weights": "package:modulate_tabletop/vjepa/model.safetensors", "image_size": 128},
    "dinov2": {
        "weights": "package:modulate_tabletop/dinov2/model.safetensors",
        "dims": {"dim": 96, "depth": 4, "heads": 3},
        "image_size": 112,
    },
}


def places(backbone, rng, clips):
    """Features of each full place at each step, and the colour of what stands there."""
    found = []
    colours = []
    for item in (lesson(rng, STEPS, False) for _ in range(clips)):
        values = backbone(torch.from_numpy(item.frames), [0.5 * i for i in range(2 * STEPS)]).values
        last = (
            values if len(values) == STEPS else values[1::2]
        )  # a frame's features, or those of two frames together
        cells = last.reshape(STEPS, GRID, 2, GRID, 2, -1).mean((2, 4)).flatten(1, 2)
        full = torch.from_numpy(item.kinds >= 0)
        found.append(cells[full])
        colours.append(torch.from_numpy(item.colours)[full])
    return torch.cat(found), torch.cat(colours)


@pytest.mark.parametrize("name", SHIPPED)
def test_a_linear_probe_reads_the_colours_of_places(name):
    component = plugins.get("backbone", name)
    backbone = component(component.Params.model_validate(SHIPPED[name])).eval()
    rng = np.random.default_rng(7)
    (x, y), (x_new, y_new) = places(backbone, rng, 16), places(backbone, rng, 8)
    probe = torch.linalg.lstsq(
        torch.cat([x, torch.ones(len(x), 1)], 1), torch.nn.functional.one_hot(y, TINTS).float()
    ).solution
    right = (
        ((torch.cat([x_new, torch.ones(len(x_new), 1)], 1) @ probe).argmax(1) == y_new)
        .float()
        .mean()
    )
    assert right > 0.8, f"{right:.2f} of {len(y_new)} places; blind guessing gives {1 / TINTS:.2f}"

"""The shipped host's tokenizer, and an assistant whose modulation's residuals are not zero."""

import pytest
import torch
from transformers import AutoTokenizer

from modulate import Modulation
from modulate.config.recipe import load_recipe
from modulate.config.usage import Usage
from modulate.inference.assistant import Assistant
from tests.paths import ROOT, SMALL
from tests.video_files import write_video


@pytest.fixture(scope="session")
def tokenizer():
    return AutoTokenizer.from_pretrained(ROOT / "plugins/modulate_tabletop/host")


@pytest.fixture(scope="module")
def assistant():
    recipe = load_recipe(SMALL, ["answer=word"])
    family, params = recipe.host.resolved("host")
    model, processor = family.load(params)
    backbone = recipe.backbone.build("backbone")
    torch.manual_seed(0)
    modulation = Modulation.for_host(
        model,
        encoder=recipe.encoder,
        modulator=recipe.modulator,
        injection=recipe.injection,
        d_features=backbone.d_features,
        backbone=recipe.backbone,
        usage=Usage.of(recipe),
    )
    for writer in modulation.out:
        torch.nn.init.normal_(writer.weight, std=0.5)
    return Assistant(model, processor, modulation)


@pytest.fixture(scope="module")
def four_seconds(tmp_path_factory):
    """A video of four seconds at 10 frames per second."""
    return write_video(tmp_path_factory.mktemp("assistant") / "v.mp4", seconds=4.0)

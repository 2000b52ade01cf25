"""The shipped host's tokenizer, and an assistant whose modulation's residuals are not zero."""

import pytest
from transformers import AutoTokenizer

from tests.paths import ROOT
from tests.tiny import assistant_of_shipped
from tests.video_files import write_video


@pytest.fixture(scope="session")
def tokenizer():
    return AutoTokenizer.from_pretrained(ROOT / "plugins/modulate_tabletop/host")


@pytest.fixture(scope="module")
def assistant():
    return assistant_of_shipped()


@pytest.fixture(scope="module")
def four_seconds(tmp_path_factory):
    """A video of four seconds at 10 frames per second."""
    return write_video(tmp_path_factory.mktemp("assistant") / "v.mp4", seconds=4.0)

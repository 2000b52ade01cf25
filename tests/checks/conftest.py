"""Fixtures for checks of a whole recipe."""

import shutil

import pytest

from modulate.checks.check import check
from modulate.config.recipe import load_recipe
from modulate_tabletop.make import make_world
from tests.checks.tables import GAZE
from tests.paths import SMALL
from tests.video_files import write_video


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    """A small tabletop world; tests must not change it."""
    root = tmp_path_factory.mktemp("check") / "world"
    make_world(root, train=2, val=1, test=2, seed=0, workers=1)
    return root


@pytest.fixture
def checked(world, tmp_path):
    """A function that checks the small recipe with overrides, by default on ``world``."""

    def run(*overrides, root=world, **more):
        return check(
            load_recipe(SMALL, [f"data.params.root={root}", *overrides]), tmp_path / "cache", **more
        )

    return run


@pytest.fixture(scope="session")
def six_clips(tmp_path_factory):
    """Six clips of 2 s, all different, with gaze; tests must not change them."""
    folder = tmp_path_factory.mktemp("six")
    for number, name in enumerate("abcdef"):
        write_video(folder / f"{name}.mp4", size=(64, 32 + 16 * number))
        (folder / f"{name}.csv").write_text(GAZE)
    return folder


@pytest.fixture
def clips(six_clips, tmp_path):
    """A copy of the six clips."""
    shutil.copytree(six_clips, tmp_path / "clips")
    return tmp_path / "clips"


def texts(report, level):
    """Return the texts of all findings of ``level``, one per line."""
    return "\n".join(finding.text for finding in report.findings if finding.level == level)


def samples_of(root):
    """Return all samples of the world at ``root``."""
    data = load_recipe(SMALL, [f"data.params.root={root}"]).data.build("dataset")
    return [sample for split in ("train", "val", "test") for sample in data.samples(split)]

"""Fixtures for checks of a whole recipe."""

import pytest

from modulate.checks.check import check
from modulate.config.recipe import load_recipe
from modulate_tabletop.make import make_world
from tests.paths import SMALL


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


def texts(report, level):
    """Return the texts of all findings of ``level``, one per line."""
    return "\n".join(finding.text for finding in report.findings if finding.level == level)


def samples_of(root):
    """Return all samples of the world at ``root``."""
    data = load_recipe(SMALL, [f"data.params.root={root}"]).data.build("dataset")
    return [sample for split in ("train", "val", "test") for sample in data.samples(split)]

"""Runs that several tests of reports share."""

import pytest
import torch

from modulate.config.recipe import load_recipe
from modulate.evaluation.evaluate import evaluate
from modulate.evaluation.predictions import Prediction
from modulate.inference.pipeline import Pipeline
from modulate.report.gallery import build_gallery
from modulate.report.runs import read_run
from modulate.runs.run import Run
from tests.report.helpers import (
    BLANK,
    EASY,
    HOSTILE,
    LORA,
    LORA_STAGE,
    SIGNAL,
    failed_prediction,
    write_run,
)


@pytest.fixture
def three_runs(tmp_path):
    """A signal run with both of its companions."""
    return [
        write_run(tmp_path, "ours-0", SIGNAL),
        write_run(tmp_path, "free-0", BLANK, "training.condition=blank"),
        write_run(tmp_path, "lora-0", LORA, "training.condition=none", LORA_STAGE),
    ]


@pytest.fixture
def hostile_run(tmp_path):
    """A run whose folder, task, condition, sample and error are hostile texts."""
    digits = {
        "signal": {EASY: "1" * 16, HOSTILE: "10" * 4},
        HOSTILE: {EASY: "0" * 16, HOSTILE: "0" * 8},
    }
    more = [
        failed_prediction("signal", HOSTILE, HOSTILE, HOSTILE),
        Prediction(HOSTILE, HOSTILE, "video9", HOSTILE, 0, 0, True, (1.0, 0.0), 0),
    ]
    folder = HOSTILE.replace("/", "")  # the one character that a folder's name cannot hold
    return write_run(tmp_path, "x", digits, "lora.rank=2", folder=folder, more=more)


@pytest.fixture(scope="session")
def gallery_run(tmp_path_factory):
    """A real run of the small host: (evaluated run, pipeline, modulation).

    Its modulation writes random residuals instead of trained ones.
    """
    root = tmp_path_factory.mktemp("gallery")
    settings = [
        "name=pointed",
        f"data.params.root={root}/world",
        "data.params.train=1",
        "data.params.val=1",
        "data.params.test=2",
        "data.params.max_per_split=8",
        "evaluation.conditions=[none, blank]",
        "evaluation.bootstrap=100",
    ]
    run = Run.create(load_recipe("gazeqwen_tiny", settings), root)
    pipeline = Pipeline(run.recipe, root / "cache")
    pipeline.make_data()
    modulation = pipeline.fresh_modulation()
    for writer in modulation.out:
        torch.nn.init.normal_(writer.weight, std=0.05)
    modulation.save_pretrained(run.weights)
    evaluate(run, pipeline, modulation)
    return read_run(run.folder), pipeline, modulation


@pytest.fixture(scope="session")
def built_gallery(gallery_run):
    """Three samples of that run, two steps of each."""
    evaluated, pipeline, _ = gallery_run
    return build_gallery(evaluated, pipeline, 3, most_steps=2)

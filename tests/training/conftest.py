"""One training of the tiny recipe, and runs that share its host, data and caches."""

import copy
import gc

import pytest
import torch
from accelerate.state import AcceleratorState

from modulate.evaluation.evaluate import evaluate
from modulate.inference.pipeline import Pipeline
from modulate.runs.run import Run
from modulate.training.trainer import train
from tests.training.runs import recipe_for


@pytest.fixture(scope="package", autouse=True)
def quick():
    """Exempt what is imported from accelerate's garbage collections, one before every stage."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="package")
def world(tmp_path_factory):
    """Return the folder of the data, the caches, and the run that nothing happens to."""
    return tmp_path_factory.mktemp("world")


@pytest.fixture(scope="package")
def whole(world):
    """Return a pipeline, a run that was trained without interruption, and its metrics."""
    recipe = recipe_for(world)
    pipeline = Pipeline(recipe, world / "cache")
    pipeline.make_data()
    run = Run.create(recipe, world / "runs")
    return pipeline, run, evaluate(run, pipeline, train(run, pipeline))


@pytest.fixture
def begin(whole, world, tmp_path):
    """Return a function that makes a run of the recipe with overrides, and its pipeline.

    All pipelines share one host and its caches.
    """

    def make(*overrides):
        twin = copy.copy(whole[0])
        twin.recipe = recipe_for(world, *overrides)
        return Run.create(twin.recipe, tmp_path / "runs"), twin

    return make


@pytest.fixture
def small_memory(whole):
    """Let a layer of the host, by default its last, run out of memory above so many rows."""
    handles = []

    def limit(rows, layer="lm_head"):
        def check(module, args):
            if args[0].shape[0] > rows:
                raise torch.OutOfMemoryError(
                    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity"
                    " of …"
                )

        handles.append(whole[0].model.get_submodule(layer).register_forward_pre_hook(check))

    yield limit
    for handle in handles:
        handle.remove()


@pytest.fixture
def new_process():
    """Let accelerate forget its precision, which is the first one that a process asks for."""
    kept = dict(AcceleratorState._shared_state)
    AcceleratorState._reset_state()
    yield
    AcceleratorState._reset_state()
    AcceleratorState._shared_state.update(kept)

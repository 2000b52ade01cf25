"""A recipe trains and evaluates every family on the tabletop world: data, prompts, gradients."""

import pytest
import torch

from modulate import Pipeline, Run, evaluate, load_recipe, plugins, train
from modulate.errors import HostError
from modulate.evaluation.predictions import read_predictions
from tests.contract.encodings import built
from tests.contract.processors import PROCESSORS
from tests.paths import SMALL

CONDITIONS = ("none", "blank", "shifted", "no_frames", "no_pixels", "host", "text_only")
"""PaliGemma's processor takes no text alone, and so not the last of them."""


@pytest.fixture(scope="module")
def shared_folder(tmp_path_factory):
    """The folder of the data, and of the features that all families share."""
    return tmp_path_factory.mktemp("world")


def recipe_for(name, shared_folder, folder):
    """Save a tiny host of a family with its processor, and return a recipe that loads it."""
    host = built(name)
    host.save_pretrained(folder)
    PROCESSORS[name]().save_pretrained(folder)
    conditions = CONDITIONS[:-1] if name == "paligemma" else CONDITIONS
    changes = [
        f"host.name={name if name in plugins.registry().names('host') else 'generic'}",
        f"host.params.path={folder}",
        f"data.params.root={shared_folder}/world",
        "data.params.max_per_split=4",
        "injection.layers=[0, 2]",
        "sampling.max_frames=4",
        "training.batch_size=2",
        "training.stages=[{name: joint, train: [modulator, lora], epochs: 1}]",
        f"evaluation.conditions={list(conditions)}",
    ]
    return load_recipe(SMALL, changes)


def skip_if_broken(name):
    """Skip Llama 4 where transformers' own class fails, as that of 5.24 does."""
    host = built(name)
    try:
        host(input_ids=torch.tensor([[1, 7, 8]]))
    except AttributeError as error:
        pytest.skip(f"the bare host of this transformers fails: {error}")


@pytest.mark.parametrize("name", PROCESSORS)
def test_a_recipe_trains_and_evaluates_a_family(name, shared_folder, tmp_path):
    skip_if_broken(name)
    recipe = recipe_for(name, shared_folder, tmp_path / "host")
    pipeline = Pipeline(recipe, shared_folder / "cache")
    pipeline.make_data()
    run = Run.create(recipe, tmp_path / "runs")
    modulation = train(run, pipeline)
    assert all(writer.weight.any() for writer in modulation.out)
    evaluate(run, pipeline, modulation)
    predictions = read_predictions(run.predictions("test"))
    assert predictions.keys() == {"signal", *recipe.evaluation.conditions}
    assert all(len(records) == 4 for records in predictions.values())
    assert not any(record.error for records in predictions.values() for record in records)


def scores(recipe, shared_folder, folder):
    """Return the logits of a modulation with random weights by condition and sample."""
    pipeline = Pipeline(recipe, shared_folder / "cache")
    pipeline.make_data()
    run = Run.create(recipe, folder)
    torch.manual_seed(0)
    modulation = pipeline.fresh_modulation()
    for writer in modulation.out:
        torch.nn.init.normal_(writer.weight, std=0.5)
    evaluate(run, pipeline, modulation)
    return {
        (condition, record.id): record.logits
        for condition, records in read_predictions(run.predictions("test")).items()
        for record in records
    }


@pytest.mark.parametrize("name", ["qwen3_vl", "gemma3", "video_llava", "lfm2_vl"])
def test_questions_on_one_clip_share_a_pass_or_the_recipe_is_refused(name, shared_folder, tmp_path):
    recipe = recipe_for(name, shared_folder, tmp_path / "host")
    settings = dict(conditions=("host",), batch_size=4)
    by = lambda batch_by: recipe.model_copy(
        update={
            "evaluation": recipe.evaluation.model_copy(update=settings | {"batch_by": batch_by})
        }
    )
    if name == "lfm2_vl":  # convolutions keep a state that cannot be repeated
        with pytest.raises(HostError, match=r"a cache that cannot be repeated .* batch_by to any"):
            scores(by("clip"), shared_folder, tmp_path / "runs")
        return
    apart = scores(by("any"), shared_folder, tmp_path / "apart")
    shared = scores(by("clip"), shared_folder, tmp_path / "shared")
    assert apart.keys() == shared.keys()
    assert all(shared[key] == pytest.approx(apart[key], abs=1e-3) for key in apart)

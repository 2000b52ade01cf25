"""Training and evaluation of whole options and of texts: gradients, parts, runs from end to end."""

import random
from functools import partial

import pytest
import torch

from modulate.config.recipe import load_recipe
from modulate.distributed.process_group import ProcessGroup
from modulate.errors import DataError
from modulate.evaluation.evaluate import evaluate
from modulate.evaluation.predictions import read_predictions
from modulate.evaluation.scoring import score, token_accuracy
from modulate.inference.pipeline import Pipeline
from modulate.modulation.attachment import ModulatedHost
from modulate.runs.run import Run
from modulate.training.augmentation import Augmentation
from modulate.training.data_loader import FailedSamples
from modulate.training.loss import BatchLoss
from modulate.training.optimizer import select
from modulate.training.processes import accelerator_for
from modulate.training.train_step import TrainStep
from modulate.training.trainer import train
from tests.training.runs import recipe_for

TASKS = "data.params.tasks=[past_scene_recall,past_non_fixated_object_identification]"
FORMS = {
    "likelihood": ("answer=likelihood", "likelihood=mean"),
    "text": ("answer=text", "evaluation.max_new_tokens=4"),
}


@pytest.fixture
def pipeline_of(world, whole):
    """Return a function that makes a pipeline of a form of answers."""

    def make(form, *overrides):
        recipe = recipe_for(world, TASKS, *FORMS[form], *overrides)
        pipeline = Pipeline(recipe, world / "cache")
        pipeline.make_data()
        return pipeline

    return make


def gradients(pipeline, batches):
    modulation = pipeline.fresh_modulation()
    torch.manual_seed(0)
    for projection in modulation.out:
        torch.nn.init.normal_(projection.weight, std=0.1)
    select(modulation, pipeline.recipe.training.stages[1])
    host = ModulatedHost(modulation.train(), pipeline.model)
    settings = pipeline.recipe.training
    folder = pipeline.extractor.feature_cache.folder
    step = TrainStep(
        BatchLoss(pipeline, accelerator_for(pipeline.recipe, pipeline.device, folder), host),
        Augmentation(settings, host.attachment.host, random.Random(0), ProcessGroup()),
        FailedSamples({}, 4, max_share=0.0),
        partial(pipeline.prepare, training=True),
        ProcessGroup(),
    )
    try:
        stats = step.accumulate(batches)
    finally:
        host.attachment.detach()
    return {name: p.grad for name, p in modulation.named_parameters()}, stats


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    assert sum(g is not None and g.abs().max() > 1e-5 for g in expected.values()) > 10
    assert {
        name: float(gradient.norm())
        for name, gradient in expected.items()
        if gradient is not None and (gradient - found[name]).norm() > 1e-3 * gradient.norm() + 1e-6
    } == {}


@pytest.mark.parametrize("form", FORMS)
def test_gradients_do_not_depend_on_batches_or_on_memory(form, pipeline_of, request):
    pipeline = pipeline_of(form, "training.augment=false")
    samples = pipeline.samples("train")
    expected, plain = gradients(pipeline, [[sample] for sample in samples])
    found, stats = gradients(pipeline, [samples[:3], samples[3:]])
    assert_same(found, expected)
    assert stats.loss == pytest.approx(plain.loss, rel=1e-4)
    assert stats.correct == pytest.approx(plain.correct) and set(stats.ids) == set(plain.ids)

    def check(module, args):
        if args[0].shape[0] > (4 if form == "likelihood" else 1):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    handle = pipeline.model.lm_head.register_forward_pre_hook(check)
    try:
        with pytest.warns(UserWarning, match="does not fit into memory"):
            found, stats = gradients(pipeline, [samples])
    finally:
        handle.remove()
    assert stats.split
    assert_same(found, expected)


@pytest.mark.parametrize("form", FORMS)
def test_questions_on_a_clip_have_the_same_gradients_in_one_pass_over_it(form, pipeline_of):
    changes = ("training.augment=false", "data.params.max_per_split=12")
    pipeline = pipeline_of(form, *changes)
    by_clip = {}
    for sample in pipeline.samples("train"):
        by_clip.setdefault((sample.clip.file, sample.clip.window), []).append(sample)
    questions = next(samples for samples in by_clip.values() if len(samples) > 1)
    expected, plain = gradients(pipeline, [[sample] for sample in questions])
    shared = pipeline_of(form, *changes, "training.batch_by=clip")
    found, stats = gradients(shared, [questions])
    assert_same(found, expected)
    assert stats.unshared_batches == 0
    assert (stats.loss, stats.active) == (pytest.approx(plain.loss, rel=1e-4), plain.active)


def test_a_text_s_loss_is_the_mean_over_its_tokens_and_smoothing_goes_over_the_vocabulary(
    pipeline_of,
):
    for smoothing in (0.0, 0.2):
        pipeline = pipeline_of("text", f"training.label_smoothing={smoothing}")
        sample = pipeline.samples("train")[0]
        _, stats = gradients(pipeline, [[sample]])
        prepared = pipeline.prepare(sample, training=True)
        (answer,) = prepared.answers
        modulation = pipeline.fresh_modulation()
        torch.manual_seed(0)
        for projection in modulation.out:
            torch.nn.init.normal_(projection.weight, std=0.1)
        inputs = dict(prepared.inputs)
        length = inputs["input_ids"].shape[1]
        inputs["input_ids"] = torch.cat([inputs["input_ids"], answer[None]], 1)
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        types = inputs["mm_token_type_ids"]
        inputs["mm_token_type_ids"] = torch.cat([types, types.new_zeros(1, len(answer))], 1)
        augmented = Augmentation(
            pipeline.recipe.training, pipeline.host, random.Random(0), ProcessGroup()
        ).condition([[prepared]])
        ((_, clips),) = augmented[0]
        with (
            modulation.eval().attached(pipeline.model) as attachment,
            attachment.condition([clips]),
        ):
            logits = pipeline.model(**inputs).logits[0, length - 1 : -1]
        expected = torch.nn.functional.cross_entropy(logits, answer, label_smoothing=smoothing)
        assert stats.loss == pytest.approx(expected.item(), rel=1e-4)


@pytest.mark.parametrize("form", FORMS)
def test_a_run_trains_validates_resumes_and_is_evaluated_under_every_condition(
    form, pipeline_of, tmp_path
):
    conditions = "evaluation.conditions=[none,blank,shuffled,host,text_only]"
    pipeline = pipeline_of(form, conditions, "evaluation.batch_size=3")
    run = Run.create(pipeline.recipe, tmp_path / "runs")
    losses = []
    modulation = train(run, pipeline, lambda progress: losses.append(progress.loss))
    assert all(map(torch.isfinite, torch.tensor(losses)))
    metrics = evaluate(run, pipeline, modulation)
    assert metrics["failed"] == []
    predictions = read_predictions(run.predictions("test"))
    assert list(predictions) == ["signal", "none", "blank", "shuffled", "host", "text_only"]
    for records in predictions.values():
        assert len(records) == 4
        assert all((record.text is not None) == (form == "text") for record in records)
    validations = [
        line
        for line in run.folder.joinpath("log.jsonl").read_text().splitlines()
        if "validation_accuracy" in line
    ]
    assert len(validations) == 3
    again = evaluate(run, pipeline, modulation)
    assert again == metrics


@pytest.mark.parametrize("form", FORMS)
def test_answers_do_not_depend_on_batches(form, pipeline_of):
    records = []
    for size in (1, 4):
        pipeline = pipeline_of(form, f"evaluation.batch_size={size}")
        with pipeline.fresh_modulation().eval().attached(pipeline.model) as attachment:
            records.append(score(pipeline, attachment, pipeline.samples("test"), "signal"))
    for alone, together in zip(*records, strict=True):
        assert alone.text == together.text and alone.prediction == together.prediction
        assert alone.logits == pytest.approx(together.logits, abs=2e-4)


def test_token_accuracy_is_the_share_of_right_tokens_without_generation(pipeline_of):
    pipeline = pipeline_of("text")
    samples = pipeline.samples("val")
    with pipeline.fresh_modulation().eval().attached(pipeline.model) as attachment:
        found = token_accuracy(pipeline, attachment, samples, "signal")
        shares = []
        for sample in samples:
            prepared = pipeline.prepare(sample)
            (answer,) = prepared.answers
            ids = torch.cat([prepared.inputs["input_ids"], answer[None]], 1)
            inputs = {
                **prepared.inputs,
                "input_ids": ids,
                "attention_mask": torch.ones_like(ids),
                "mm_token_type_ids": torch.cat(
                    [
                        prepared.inputs["mm_token_type_ids"],
                        torch.zeros(1, len(answer), dtype=torch.int64),
                    ],
                    1,
                ),
            }
            with attachment.condition([prepared.clip_inputs()]), torch.no_grad():
                best = pipeline.model(**inputs).logits[0, -len(answer) - 1 : -1].argmax(-1)
            shares.append(float((best == answer).float().mean()))
    assert found == pytest.approx(sum(shares) / len(shares))
    assert 0 < found < 1


def test_a_question_whose_answer_is_not_known_fails_where_it_is_used(whole, world):
    recipe = load_recipe("gazeqwen_tiny", [f"data.params.root={world}/tabletop"])
    assert recipe.answer == "word"
    pipeline = whole[0]
    sample = pipeline.samples("train")[0]
    unknown = type(sample)(
        "unknown", sample.task, sample.clips, sample.question, sample.options, None
    )
    with pytest.raises(DataError, match="right option is not known"):
        gradients(pipeline, [[unknown]])
    with pipeline.fresh_modulation().eval().attached(pipeline.model) as attachment:
        (record,) = score(pipeline, attachment, [unknown], "none")
    assert "right option is not known" in record.error

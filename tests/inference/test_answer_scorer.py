"""Scores of real samples' answers, against one plain forward for each answer."""

import pytest
import torch

from modulate.answers.likelihood import visual_end
from modulate.config.recipe import load_recipe
from modulate.errors import DataError
from modulate.inference.answer_scorer import AnswerScorer
from modulate.inference.pipeline import Pipeline
from tests.paths import SMALL

TASKS = "[past_scene_recall, past_non_fixated_object_identification]"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return tmp_path_factory.mktemp("answers")


def pipeline_for(world, *overrides):
    settings = [f"data.params.root={world}/world", f"data.params.tasks={TASKS}", *overrides]
    pipeline = Pipeline(load_recipe(SMALL, settings), world / "cache")
    pipeline.make_data()
    return pipeline


def conditioned(pipeline):
    modulation = pipeline.fresh_modulation()
    torch.manual_seed(0)
    for projection in modulation.out:
        torch.nn.init.normal_(projection.weight, std=0.3)
    return modulation.eval().attached(pipeline.model)


def ready_samples(pipeline, count=6):
    found = [pipeline.prepare(sample) for sample in pipeline.samples("test")[:count]]
    return [(prepared, prepared.clip_inputs()) for prepared in found]


def slow(pipeline, attachment, prepared, clips, answer):
    """The log-probability of each token of ``answer``, from one forward of its own."""
    inputs = dict(prepared.inputs)
    length = inputs["input_ids"].shape[1]
    inputs["input_ids"] = torch.cat([inputs["input_ids"], answer[None]], 1)
    for name, fill in (("attention_mask", 1), ("mm_token_type_ids", 0)):
        more = torch.full((1, len(answer)), fill)
        inputs[name] = torch.cat([inputs[name], more.to(inputs[name])], 1)
    with attachment.condition([clips]):
        logits = pipeline.model(**inputs).logits[0].log_softmax(-1)
    return torch.stack([logits[length - 1 + k, token] for k, token in enumerate(answer)])


@pytest.mark.parametrize("likelihood", ["sum", "mean"])
@torch.no_grad()
def test_options_of_two_words_score_as_in_forwards_of_their_own(likelihood, world):
    pipeline = pipeline_for(world, "answer=likelihood", f"likelihood={likelihood}")
    ready = ready_samples(pipeline)
    # Prompts of clips that begin with the video are shorter, and have groups of their own.
    assert all(len(answer) == 2 for prepared, _ in ready for answer in prepared.answers)
    with conditioned(pipeline) as attachment:
        scorer = AnswerScorer(pipeline, attachment.model, attachment.condition)
        groups = scorer.groups(ready, 0)
        ends = [
            {visual_end(prepared.inputs, scorer._visual_ids) for prepared, _ in group}
            for group in groups
        ]
        assert all(len(found) == 1 for found in ends)
        assert sorted(p.sample.id for g in groups for p, _ in g) == sorted(
            p.sample.id for p, _ in ready
        )
        for group in groups:
            scores = scorer.option_scores(group, 0)
            for (prepared, clips), row in zip(group, scores, strict=True):
                expected = [
                    getattr(slow(pipeline, attachment, prepared, clips, answer), likelihood)()
                    for answer in prepared.answers
                ]
                torch.testing.assert_close(row, torch.stack(expected), atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_questions_on_a_clip_score_the_same_in_one_pass_over_it(world):
    pipeline = pipeline_for(world, "answer=likelihood", "evaluation.batch_by=clip")
    by_clip = {}
    for sample in pipeline.samples("test"):
        by_clip.setdefault((sample.clip.file, sample.clip.window), []).append(sample)
    questions = next(samples for samples in by_clip.values() if len(samples) > 1)
    found = [pipeline.prepare(sample) for sample in questions]
    ready = [(prepared, prepared.clip_inputs()) for prepared in found]
    with conditioned(pipeline) as attachment:
        scorer = AnswerScorer(pipeline, attachment.model, attachment.condition)
        shared = scorer.shared(ready)
        assert shared > visual_end(ready[0][0].inputs, scorer._visual_ids)
        together = scorer.option_scores(ready, shared)
        for sample, row in zip(ready, together, strict=True):
            (alone,) = scorer.option_scores([sample], 0)
            torch.testing.assert_close(row, alone, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_the_first_tokens_of_options_have_the_logits_of_words(world):
    tasks = "data.params.tasks=[present_object_identification_easy]"
    words = pipeline_for(world, "answer=word", tasks)
    first = pipeline_for(world, "answer=likelihood", "likelihood=first", tasks)
    scores = []
    for pipeline in (words, first):
        with conditioned(pipeline) as attachment:
            scorer = AnswerScorer(pipeline, attachment.model, attachment.condition)
            scores.append(scorer.option_scores(ready_samples(pipeline), 0))
    assert torch.equal(*scores)


def test_options_that_begin_alike_cannot_be_told_apart_by_their_first_token(world):
    pipeline = pipeline_for(world, "answer=likelihood", "likelihood=first")
    failed = []
    for sample in pipeline.samples("test"):
        colors = [option.split()[0] for option in sample.options]
        if len(set(colors)) < len(colors):
            with pytest.raises(DataError, match="begin with the same token"):
                pipeline.prepare(sample)
            failed.append(sample.id)
    assert failed


@torch.no_grad()
def test_the_tokens_of_texts_score_as_in_forwards_of_their_own(world):
    pipeline = pipeline_for(world, "answer=text")
    ready = ready_samples(pipeline)
    end = pipeline.processor.tokenizer.eos_token_id
    with conditioned(pipeline) as attachment:
        scorer = AnswerScorer(pipeline, attachment.model, attachment.condition)
        scores = scorer.token_scores(ready, 0)
        for i, (prepared, clips) in enumerate(ready):
            (answer,) = prepared.answers
            right = prepared.sample.options[prepared.sample.answer]
            assert pipeline.processor.tokenizer.decode(answer[:-1]) == right
            assert answer[-1] == end and len(answer) == 3
            expected = slow(pipeline, attachment, prepared, clips, answer)
            torch.testing.assert_close(
                scores.log_probs[i, 0, : len(answer)], expected, atol=1e-4, rtol=1e-4
            )

"""The gallery's samples, answers and residuals, of a real host."""

from dataclasses import asdict

import numpy as np
import pytest
import torch
from torchvision.io import decode_jpeg

from modulate.config.recipe import override, validate
from modulate.errors import DataError
from modulate.evaluation.evaluate import evaluate
from modulate.evaluation.predictions import Prediction
from modulate.inference.pipeline import Pipeline
from modulate.interfaces.multi_signal import MultiSignal
from modulate.report.gallery import (
    OtherTokens,
    build_gallery,
    choose_samples,
    trace_layers,
)
from modulate.report.pictures import gallery_section
from modulate.report.runs import read_run
from modulate.runs.run import Run
from modulate_gaze.scanpath import Scanpath
from tests.report.helpers import EASY, HARD, ParsedPage, predictions
from tests.tiny import our_hooks


def test_the_gallery_shows_residuals_relative_to_the_hidden_states(gallery_run, built_gallery):
    _, pipeline, modulation = gallery_run
    shown = built_gallery.samples[0]
    prepared = pipeline.prepare(shown.sample)
    (own,) = prepared.clips
    (drawn,) = shown.clips
    inputs = pipeline.collate([prepared]).inputs
    first_layer = modulation.config.injection.layers[0]
    # LoRA on and no residual: the output of the first injected layer before anything is added.
    with torch.inference_mode(), modulation.attached(pipeline.model):
        output = pipeline.model(**inputs, output_hidden_states=True)
    states = output.hidden_states[first_layer + 1][0]
    visual_ids = torch.tensor(list(pipeline.host.visual_ids.values()))
    norms = states[torch.isin(prepared.inputs["input_ids"][0], visual_ids)].norm(dim=1)
    with torch.inference_mode():
        residual, blank_residual = (
            modulation.residual(0, modulation.latents(prepared.clip_inputs([signal])).layers[0])
            for signal in (own.signal, own.signal.blank())
        )
    shape = drawn.strength[0].shape
    strength = (residual.norm(dim=1) / norms).view(shape)
    effect = ((residual - blank_residual).norm(dim=1) / norms).view(shape)
    assert np.allclose(drawn.strength[0], strength, rtol=1e-3) and strength.max() > 0.01
    assert np.allclose(drawn.signal_effect[0], effect, rtol=1e-3, atol=1e-6) and effect.max() > 0
    assert shown.other_tokens == {0: OtherTokens(0, 0.0), 1: OtherTokens(0, 0.0)}
    assert shown.reproduced and not our_hooks(pipeline.model)


def test_the_gallery_shows_frames_with_the_signals_marks(gallery_run, built_gallery):
    shown = built_gallery.samples[0]
    (clip,) = gallery_run[1].prepare(shown.sample).clips
    first, last = shown.clips[0].steps
    assert (first.index, last.index) == (0, clip.grid.steps - 1)
    assert first.span == clip.grid.spans[0]
    assert first.marks == clip.signal.within(*first.span).marks(*first.span) and first.marks
    image = decode_jpeg(torch.frombuffer(bytearray(first.jpeg), dtype=torch.uint8))
    width, height = first.size
    assert image.shape[1:] == (height, width)


def test_answers_that_changed_since_the_evaluation_are_noticed(gallery_run):
    evaluated, pipeline, _ = gallery_run
    changed = read_run(evaluated.run.folder)
    changed.records["none"][:] = [
        Prediction(**{**asdict(record), "logits": [logit + 1 for logit in record.logits]})
        for record in changed.records["none"]
    ]
    assert not build_gallery(changed, pipeline, 1).samples[0].reproduced


def test_the_gallery_takes_every_kind_in_turn_and_spreads_over_tasks():
    records = {
        "signal": [
            *predictions("signal", "1" * 8 + "0" * 4, EASY),
            *predictions("signal", "1" * 4, HARD),
        ],
        "none": [*predictions("none", "0" * 8 + "0110", EASY), *predictions("none", "1001", HARD)],
    }
    without, kinds, chosen = choose_samples(records, 6)
    assert without == "none" and kinds == {
        "correct only with the signal": 10,
        "correct only without it": 2,
        "wrong either way": 2,
        "correct either way": 2,
    }
    assert [kind for _, kind in chosen] == [
        *kinds,
        "correct only with the signal",
        "correct only without it",
    ]
    assert chosen[0][0] == f"{EASY}/4" and chosen[4][0].startswith(HARD) and len(set(chosen)) == 6


def test_a_run_evaluated_only_with_its_signal_has_no_gallery():
    with pytest.raises(DataError, match="evaluated under none of `none`, `blank` and `host`"):
        choose_samples({"signal": predictions("signal", "1", EASY)}, 2)


def test_marks_are_where_the_signal_is():
    path = Scanpath([[0.25, 0.5, 1.0, 1.0], [0.75, 0.1, 5.0, 2.0]])
    assert [(mark.x, mark.y, mark.text) for mark in path.marks(0.0, 2.0)] == [
        (0.25, 0.5, "0.50–1.50 s")
    ]
    assert path.marks(2.0, 3.0) == ()
    both = MultiSignal({"gaze": path, "other": path})
    assert [mark.text for mark in both.marks(4.0, 4.5)] == [
        "gaze: 4.00–6.00 s",
        "other: 4.00–6.00 s",
    ]


@pytest.mark.parametrize("form", ["text", "likelihood"])
def test_answers_of_several_tokens_have_a_gallery_too(form, gallery_run, tmp_path):
    """Their residuals are those of the prompt, wherever their forwards begin and end."""
    evaluated, _, modulation = gallery_run
    settings = [
        f"answer={form}",
        "data.params.tasks=[past_scene_recall]",
        "data.params.max_per_split=4",
    ]
    tree = evaluated.recipe.model_dump(mode="json")
    for setting in settings:
        override(tree, setting)
    run = Run.create(validate(tree, form), tmp_path)
    pipeline = Pipeline(run.recipe, tmp_path / "cache")
    modulation.save_pretrained(run.weights)
    evaluate(run, pipeline, modulation)
    gallery = build_gallery(read_run(run.folder), pipeline, 2)
    assert all(shown.reproduced for shown in gallery.samples)
    sample = gallery.samples[0].sample
    prepared = pipeline.prepare(sample)
    # The residuals are those of a plain forward of the prompt.
    with (
        modulation.eval().attached(pipeline.model) as attachment,
        trace_layers(attachment) as trace,
        torch.inference_mode(),
        attachment.condition([prepared.clip_inputs()]),
    ):
        attachment.model(**pipeline.collate([prepared]).inputs)
    before, after = trace[0]
    strength = ((after - before).norm(dim=-1) / before.norm(dim=-1))[0]
    visual = torch.tensor(list(pipeline.host.visual_ids.values()))
    expected = strength[torch.isin(prepared.inputs["input_ids"][0], visual)]
    (clip,) = gallery.samples[0].clips
    assert np.allclose(clip.strength[0].ravel(), expected, rtol=1e-3, atol=1e-6)
    page = ParsedPage("".join(gallery_section(gallery)))
    assert page.open == []
    assert ("token F1" in page.text) == (form == "text")
    right = sample.options[sample.answer]
    assert (f"accepted: {right}" in page.text) == (form == "text") and right in page.text

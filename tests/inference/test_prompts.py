"""Prompts as inputs: true times in the grid whatever the processor is told, and answers' ids."""

import dataclasses

import numpy as np
import pytest

from modulate.errors import DataError
from modulate.inference.prompts import PromptEncoder
from modulate.interfaces.frames import Frames
from modulate.interfaces.messages import Picture, VideoClip
from modulate.interfaces.visual_grid import visual_grid
from tests.tiny import small_pipeline

TIMES = (0.0, 0.5, 2.0, 2.5)


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    return small_pipeline(tmp_path_factory.mktemp("prompts"))


def encoder(pipeline, **changes):
    sections = {}
    for key, value in changes.items():
        section, _, name = key.partition("__")
        if name:
            settings = getattr(pipeline.recipe, section).model_copy(update={name: value})
            sections[section] = settings
        else:
            sections[key] = value
    recipe = pipeline.recipe.model_copy(update=sections)
    return PromptEncoder(recipe, pipeline.host, pipeline.processor)


def test_the_grid_holds_true_times_whatever_the_processor_is_told(pipeline):
    clip = VideoClip(Frames(np.zeros((4, 64, 64, 3), np.uint8), TIMES), (0.0, 3.0))
    picture = Picture(np.zeros((64, 96, 3), np.uint8), (1.0, 2.0))
    content = [clip, picture, clip, "What?"]
    plain = encoder(pipeline).encode_sample(content)
    timed = encoder(pipeline, sampling__processor_fps=2.0).encode_sample(content)
    first, second, third = plain.grids
    assert first == third == visual_grid(TIMES, 2, first.rows, first.cols, (0.0, 3.0))
    assert second.spans == ((1.0, 2.0),) and second.cols > second.rows
    assert timed.grids == plain.grids
    assert timed.inputs.keys() == plain.inputs.keys()


def test_text_alone_has_no_visual_tokens(pipeline):
    encoded = encoder(pipeline).encode(["What?"])
    assert encoded.grids == () and "pixel_values_videos" not in encoded.inputs


def test_letters_are_those_offered_or_four(pipeline):
    sample = dataclasses.replace(pipeline.samples("test")[0], options=("cup", "pan"), answer=0)
    assert len(encoder(pipeline).answer_ids(sample, "What?")) == 2
    assert len(encoder(pipeline, letters="four").answer_ids(sample, "What?")) == 4


def test_a_word_of_several_tokens_is_refused_by_name(pipeline):
    sample = dataclasses.replace(pipeline.samples("test")[0], options=("a rare thing", "pan"))
    with pytest.raises(DataError, match="the answer 'a rare thing' is not one known token"):
        encoder(pipeline, answer="word").answer_ids(sample, "What?")

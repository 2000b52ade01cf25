"""The largest samples of a data set, of clips and of pictures, as prompts for estimates."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from modulate.checks.coverage import Probes
from modulate.checks.examples import examples
from modulate.interfaces.sample import SampleClip
from tests.samples import one_clip_sample
from tests.tiny import small_pipeline
from tests.video_files import write_video


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    return small_pipeline(tmp_path_factory.mktemp("examples"))


def test_the_largest_sample_by_pixels_of_all_its_clips_is_the_example(pipeline, tmp_path):
    video = write_video(tmp_path / "v.mp4", seconds=3.0)
    Image.fromarray(np.zeros((256, 192, 3), np.uint8)).save(tmp_path / "p.png")
    picture = SampleClip(tmp_path / "p.png", is_image=True)
    short = one_clip_sample("short", video, (0.0, 1.0))
    long = one_clip_sample("long", video, (0.0, 2.0))
    both = replace(short, id="both", clips=(short.clip, picture))
    damaged = one_clip_sample("damaged", tmp_path / "p.png", (0.0, 2.0))
    _, largest = examples(pipeline, {"test": [short, long, both, damaged]}, Probes())
    assert [clip.is_image for clip in largest.clips] == [False, True]
    assert largest.largest == largest.clips[1]
    assert largest.clips[1].frames == (1, 256, 192)
    first, second = largest.prompt.grids
    assert second.steps == 1 and second.rows > second.cols
    _, largest = examples(pipeline, {"test": [short, long]}, Probes())
    assert largest.clips[0].times == (0.0, 1.0, 2.0)
    assert largest.prompt.grids == (
        replace(first, spans=largest.prompt.grids[0].spans, times=largest.prompt.grids[0].times),
    )


def test_without_samples_a_clip_as_long_as_the_frame_cap_allows_is_assumed(pipeline):
    training, evaluation = examples(pipeline, {}, Probes())
    assert training == evaluation or training.clips == evaluation.clips
    (clip,) = evaluation.clips
    assert clip.frames[0] == pipeline.recipe.sampling.max_frames

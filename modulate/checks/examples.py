"""The largest clips of a data set as prompts for estimates, with noise in place of their pixels."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from modulate.checks.coverage import Probes
from modulate.checks.synthetic_data import ASSUMED
from modulate.data.feature_extractor import frame_times_of
from modulate.data.picture import picture_size
from modulate.errors import ModulateError
from modulate.hosts.encoding import EncodedPrompt
from modulate.inference.pipeline import Pipeline
from modulate.interfaces.frames import Frames
from modulate.interfaces.messages import Content, Picture, VideoClip, user_turn
from modulate.interfaces.sample import Sample, SampleClip

QUESTION = (
    "Question: What is the person looking at right now, while the kettle is on?\nOptions:\nA. The"
    " red cup\nB. A knife\nC. The sink\nD. Bread\n\nThe best option is:"
)
"""A prompt of typical length, for a recipe without data."""


@dataclass(frozen=True)
class ExampleClip:
    """A clip of an estimate.

    ``frames``: (frame, height, width). ``times``: of the frames, s.
    """

    frames: tuple[int, int, int]
    times: tuple[float, ...]
    window: tuple[float, float]
    is_image: bool = False

    @property
    def pixels(self) -> int:
        """Pixels of all its frames."""
        count, height, width = self.frames
        return count * height * width

    def noise(self) -> Content:
        """Return a clip or picture of this size."""
        images = np.random.default_rng(0).integers(0, 256, (*self.frames, 3), dtype=np.uint8)
        if self.is_image:
            return Picture(images[0], self.window)
        return VideoClip(Frames(images, self.times), self.window)


@dataclass(frozen=True)
class Example:
    """The prompt of an estimate.

    ``prompt``: the host's inputs (batch 1) and grids. ``clips``: what it shows, in order.
    """

    prompt: EncodedPrompt
    clips: tuple[ExampleClip, ...]

    @property
    def largest(self) -> ExampleClip:
        """The clip with the most pixels."""
        return max(self.clips, key=lambda clip: clip.pixels)


def examples(
    pipeline: Pipeline, samples: Mapping[str, Sequence[Sample]], probes: Probes
) -> tuple[Example, Example]:
    """Return the largest sample of training and the largest of all, in frames × pixels.

    Each comes with its prompt, and noise instead of its pixels. Without samples, typical values are
    assumed.
    """
    every = [sample for items in samples.values() for sample in items]
    largest = _largest(pipeline, every, probes, training=False)
    if pipeline.recipe.sampling.train_max_frames is None:
        return largest, largest
    return _largest(pipeline, samples.get("train", []), probes, training=True), largest


def _largest(
    pipeline: Pipeline, samples: Sequence[Sample], probes: Probes, training: bool
) -> Example:
    most_pixels = 0
    clips: tuple[ExampleClip, ...] = (_assumed_clip(pipeline, training),)
    text = QUESTION
    for sample in samples:
        try:
            found = tuple(_example(pipeline, clip, probes, training) for clip in sample.clips)
        # The check of signal coverage reports files that cannot be read.
        except ModulateError:
            continue
        pixels = sum(clip.pixels for clip in found)
        if pixels > most_pixels:
            most_pixels = pixels
            clips = found
            chosen = sample
    if most_pixels:
        text = pipeline.dataset.prompt(chosen, pipeline.recipe.answer)
    with pipeline.recipe.host.blame("host", "encode"):
        turn = user_turn(*(clip.noise() for clip in clips), text)
        return Example(pipeline.host.encode(pipeline.processor, turn), clips)


def _assumed_clip(pipeline: Pipeline, training: bool) -> ExampleClip:
    sampling = pipeline.recipe.sampling
    window = (0.0, (sampling.frame_cap(training) - 1) / sampling.rate(0.0))
    times = tuple(frame_times_of(sampling, window, training))
    return ExampleClip((len(times), *ASSUMED), times, window)


def _example(pipeline: Pipeline, clip: SampleClip, probes: Probes, training: bool) -> ExampleClip:
    times = tuple(pipeline.times(clip, training))
    if clip.is_image:
        return ExampleClip((1, *picture_size(clip.file)), times, clip.window, is_image=True)
    info = probes[clip.file]
    return ExampleClip((len(times), info.height, info.width), times, clip.window)

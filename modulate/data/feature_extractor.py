"""What the backbone sees of a recipe's data: samples, frames of their clips at true times, raw
features, and the caches of both. Knows no host.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch

from modulate.config.recipe import Recipe
from modulate.config.sections import Sampling
from modulate.data.clip_reader import ClipReader
from modulate.data.feature_cache import FeatureCache, FeatureKey
from modulate.errors import ComponentError, DataError, ModulateError
from modulate.interfaces.components import Backbone, Dataset, FrameFeatures, Sample
from modulate.interfaces.frames import Frames
from modulate.interfaces.visual_grid import VisualGrid, counted_on, sample_times
from modulate.utils.atomic_files import content_hash
from modulate.utils.out_of_memory import first_line, is_out_of_memory

T = TypeVar("T")

GRAY_CONDITIONS = frozenset({"no_frames", "no_pixels"})
"""Conditions of an evaluation that ask for features of gray frames."""


def gray_frames(frames: Frames) -> Frames:
    """Return mid-gray frames in place of ``frames``: what can be answered without seeing."""
    return replace(frames, images=np.full_like(frames.images, 127))


def frame_times_of(
    sampling: Sampling, window: tuple[float, float], training: bool = False
) -> list[float]:
    """Return the times (s) at which a clip of this ``window`` is looked at."""
    return sample_times(window, sampling.rate(window[1] - window[0]), sampling.frame_cap(training))


def apply_clock(
    sampling: Sampling, window: tuple[float, float], grid: VisualGrid, frames: int
) -> VisualGrid:
    """Return ``grid``, made of the ``frames`` frames of a clip of this ``window``, by the clock
    that is asked for.
    """
    if sampling.clock == "true":
        return grid
    start, end = window
    return counted_on(grid, start, math.ceil(frames / grid.steps) / sampling.rate(end - start))


def catch_sample_error(make: Callable[[], T], who: str = "") -> T | ModulateError:
    """Return what ``make`` makes of one sample, or the error that is this sample's alone: the
    others go on. ``who``: stands before what we say of it.

    Raises what is not: a component's defect, with which the next ones would fail alike, and
    whatever was not foreseen.
    """
    try:
        return make()
    except ComponentError:
        raise
    except ModulateError as error:
        return error
    except RuntimeError as error:  # of the backbone
        if not is_out_of_memory(error):
            raise
        return DataError(f"{who}its frames' features do not fit into memory ({first_line(error)}).")


class FrameCache:
    """Decoded frames in ``folder``, at most ``max_bytes``, kept as features are: by the content of
    the video and the times asked for.

    Callable as a :data:`modulate.data.clip_reader.FrameStore`.
    """

    def __init__(self, folder: Path, max_bytes: int, must_keep: bool = False) -> None:
        self.kept = FeatureCache(folder, max_bytes, memory_bytes=0, must_keep=must_keep)

    def __call__(self, video: Path, times: Sequence[float], decode: Callable[[], Frames]) -> Frames:
        """Return the frames of ``video`` shown at ``times``, from the disk or from ``decode``.

        Raises :class:`MissingFileError`.
        """

        def compute() -> FrameFeatures:
            found = decode()
            return FrameFeatures(torch.from_numpy(found.images), found.times)

        return _as_frames(self.kept.get_or_compute(self.key(video, times), compute))

    def find(self, video: Path, times: Sequence[float]) -> Frames | None:
        """Return the frames if they are kept.

        Raises :class:`MissingFileError` when there is no such video.
        """
        found = self.kept.find(self.key(video, times))
        return None if found is None else _as_frames(found)

    def key(self, video: Path, times: Sequence[float]) -> FeatureKey:
        """Return under what the frames of ``video`` shown at ``times`` are kept."""
        return FeatureKey(content_hash(video), tuple(times), "frames", "uint8")


def _as_frames(found: FrameFeatures) -> Frames:
    return Frames(found.values.numpy(), found.times)


class FeatureExtractor:
    """A recipe's data set and backbone, on ``device``.

    ``cache``: folder in which features, and frames where the recipe says so, are kept.
    ``must_keep``: what cannot be kept there is a :class:`StorageError` instead of a warning.
    """

    def __init__(
        self, recipe: Recipe, cache: Path, device: torch.device, must_keep: bool = False
    ) -> None:
        self.recipe = recipe
        self.device = device
        self.backbone: Backbone = (
            recipe.backbone.build("backbone").to(device).eval().requires_grad_(False)
        )
        self.dataset: Dataset = recipe.data.build("dataset")
        self.features = FeatureCache(
            cache, int(recipe.features.disk_gib * 2**30), must_keep=must_keep
        )
        frames = int(recipe.features.frames_gib * 2**30)
        self.frames = FrameCache(cache / "frames", frames, must_keep) if frames else None
        self.clips = ClipReader(store=self.frames)

    def make_data(self) -> None:
        """Let the data set make or check its files."""
        with self.recipe.data.blame("dataset", "prepare"):
            self.dataset.prepare()

    def samples(self, split: str) -> list[Sample]:
        """Return a split's samples, and remember which frames they will ask for, so that a video
        with many questions is decoded once.
        """
        with self.recipe.data.blame("dataset", "samples"):
            samples = self.dataset.samples(split)
        for sample in samples:
            self.clips.expect(sample.video, self.times(sample, training=split == "train"))
        return samples

    def times(self, sample: Sample, training: bool = False) -> list[float]:
        """Return the times (s) at which a sample's clip is looked at."""
        return frame_times_of(self.recipe.sampling, sample.window, training)

    def key(self, video: Path, shown: tuple[float, ...], gray: bool = False) -> FeatureKey:
        """Return under what features of a video's frames are kept, or of ``gray`` ones in their
        place; ``shown``: the frames' own times (s).
        """
        return FeatureKey(
            "blank" if gray else content_hash(video),
            shown,
            self.backbone.fingerprint(),
            self.recipe.features.dtype,
        )

    def raw_features(self, video: Path, frames: Frames, gray: bool = False) -> FrameFeatures:
        """Return the backbone's features of ``frames``, which are a video's, or ``gray``; kept
        ones, or computed and kept.
        """

        def compute() -> FrameFeatures:
            with torch.inference_mode(), self.recipe.backbone.blame("backbone", "forward"):
                return self.backbone(torch.from_numpy(frames.images).to(self.device), frames.times)

        return self.features.get_or_compute(self.key(video, frames.times, gray), compute)

"""Samples, clips and backbone features of a recipe, and the caches of frames and features.

Nothing here knows the host.
"""

import math
import warnings
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
from modulate.data.feature_shards import StoredTensor
from modulate.data.picture import read_picture
from modulate.data.video_groups import with_video_groups
from modulate.errors import ComponentError, DataError, ModulateError
from modulate.interfaces.components import Backbone, Dataset, FrameFeatures
from modulate.interfaces.frames import Frames
from modulate.interfaces.result_checks import (
    check_fingerprint,
    check_frame_features,
    check_samples,
)
from modulate.interfaces.sample import Sample, SampleClip
from modulate.interfaces.visual_grid import VisualGrid, sample_times, with_regular_steps
from modulate.utils.atomic_files import content_hash
from modulate.utils.out_of_memory import first_line, is_out_of_memory

T = TypeVar("T")

GRAY_CONDITIONS = frozenset({"no_frames", "no_pixels"})
"""Evaluation conditions that need features of gray frames."""

MID_GRAY = 127


def gray_frames(frames: Frames) -> Frames:
    """Return mid-gray frames of the same size and times as ``frames``."""
    return replace(frames, images=np.full_like(frames.images, MID_GRAY))


def frame_times_of(
    sampling: Sampling, window: tuple[float, float], training: bool = False
) -> list[float]:
    """Return the times (s) at which a clip of this ``window`` is sampled."""
    rate = sampling.rate(window[1] - window[0])
    return sample_times(window, rate, sampling.frame_cap(training))


def apply_clock(
    sampling: Sampling, window: tuple[float, float], grid: VisualGrid, frame_count: int
) -> VisualGrid:
    """Return the ``grid`` of a clip of ``frame_count`` frames, by the recipe's ``sampling.clock``.

    "true" keeps the grid's own times; "requested" counts steps from the start of the window.
    """
    if sampling.clock == "true":
        return grid
    start, end = window
    frames_per_step = math.ceil(frame_count / grid.steps)
    return with_regular_steps(grid, start, frames_per_step / sampling.rate(end - start))


def catch_sample_error(compute: Callable[[], T], prefix: str = "") -> T | ModulateError:
    """Return the result of ``compute`` for one sample, or the error that concerns this sample only.

    ``prefix``: put in front of an out-of-memory message. Raises :class:`ComponentError`, since a
    defective component would fail for the next sample too, and every unexpected exception.
    """
    try:
        return compute()
    except ComponentError:
        raise
    except ModulateError as error:
        return error
    except RuntimeError as error:
        # Only the backbone runs here, and its memory depends on the size of this sample's frames.
        if not is_out_of_memory(error):
            raise
        reason = first_line(error)
        return DataError(f"{prefix}its frames' features do not fit into memory ({reason}).")


class FrameCache:
    """Decoded frames on disk in ``folder``, at most ``max_bytes``.

    The key is the content of the video and the times asked for. Callable as a
    :data:`modulate.data.clip_reader.FrameStore`.

    ``require_disk``: see :class:`FeatureCache`.
    """

    def __init__(self, folder: Path, max_bytes: int, require_disk: bool = False) -> None:
        self.store = FeatureCache(folder, max_bytes, memory_bytes=0, require_disk=require_disk)

    def __call__(self, video: Path, times: Sequence[float], decode: Callable[[], Frames]) -> Frames:
        """Return the frames of ``video`` shown at ``times``: cached ones, or those of ``decode``.

        Raises :class:`MissingFileError`.
        """

        def compute() -> StoredTensor:
            frames = decode()
            return StoredTensor(torch.from_numpy(frames.images), frames.times)

        return _as_frames(self.store.get_or_compute(self.key(video, times), compute))

    def find(self, video: Path, times: Sequence[float]) -> Frames | None:
        """Return the frames if they are cached, else None.

        Raises :class:`MissingFileError` if there is no such video.
        """
        stored = self.store.find(self.key(video, times))
        return None if stored is None else _as_frames(stored)

    def key(self, video: Path, times: Sequence[float]) -> FeatureKey:
        """Return the cache key of the frames of ``video`` shown at ``times``."""
        return FeatureKey(content_hash(video), tuple(times), "frames", "uint8")


def _as_frames(stored: StoredTensor) -> Frames:
    return Frames(stored.values.numpy(), stored.coords)


class FeatureExtractor:
    """A recipe's data set and its frozen backbone, with the caches of frames and features.

    Args:
        recipe: names data set and backbone, and limits the caches.
        cache: folder of cached features, and of cached frames if the recipe asks for them.
        device: where the backbone runs.
        require_disk: raise :class:`StorageError` instead of warning if the disk refuses an entry.

    Attributes:
        dataset: the recipe's data set.
        backbone: the recipe's backbone on ``device``, frozen.
        feature_cache: raw features, on the backbone's own grid.
        frame_cache: decoded frames; None if ``features.frames_gib`` is 0.
        clip_reader: reads clips' frames, through ``frame_cache`` if there is one.
    """

    def __init__(
        self, recipe: Recipe, cache: Path, device: torch.device, require_disk: bool = False
    ) -> None:
        self.recipe = recipe
        self.device = device
        backbone: Backbone = recipe.backbone.build("backbone")
        self.backbone: Backbone = backbone.to(device).eval().requires_grad_(False)
        self.dataset: Dataset = recipe.data.build("dataset")
        feature_bytes = int(recipe.features.disk_gib * 2**30)
        self.feature_cache = FeatureCache(cache, feature_bytes, require_disk=require_disk)
        frame_bytes = int(recipe.features.frames_gib * 2**30)
        self.frame_cache = (
            FrameCache(cache / "frames", frame_bytes, require_disk) if frame_bytes else None
        )
        self.clip_reader = ClipReader(store=self.frame_cache)

    def make_data(self) -> None:
        """Let the data set make or check its files."""
        with self.recipe.data.blame("dataset", "prepare"):
            self.dataset.prepare()

    def samples(self, split: str) -> list[Sample]:
        """Return a split's samples, and announce their frames to the clip reader.

        A video with many questions is then decoded once for all of them. Samples without a group
        ``video`` get one: see :func:`with_video_groups`.
        """
        with self.recipe.data.blame("dataset", "samples"):
            samples = with_video_groups(check_samples(self.dataset.samples(split), split))
        for clip in (clip for sample in samples for clip in sample.clips):
            if not clip.is_image:
                self.clip_reader.expect(clip.file, self.times(clip, training=split == "train"))
        return samples

    def times(self, clip: SampleClip, training: bool = False) -> list[float]:
        """Return the times (s) at which a clip is sampled; a picture is a frame at 0 s."""
        if clip.is_image:
            return [0.0]
        return frame_times_of(self.recipe.sampling, clip.window, training)

    def frames(self, clip: SampleClip, training: bool = False) -> Frames:
        """Return a clip's frames at its sampled times; a picture is a single frame.

        Raises :class:`VideoError` and :class:`MissingFileError`.
        """
        return self.read(clip.file, self.times(clip, training), clip.is_image)

    def read(
        self,
        file: Path,
        times: Sequence[float],
        is_image: bool,
        reader: ClipReader | None = None,
    ) -> Frames:
        """Return the frames of a video shown at ``times`` (s), or a picture as a single frame.

        ``reader``: reads videos in place of :attr:`clip_reader`.
        """
        if is_image:
            return Frames(read_picture(file)[None], tuple(times))
        return (reader or self.clip_reader).read(file, times)

    def feature_key(self, file: Path, times: tuple[float, ...], gray: bool = False) -> FeatureKey:
        """Return the cache key of the features of a video's frames, or of a picture.

        ``times``: the frames' own presentation times (s). ``gray``: the frames are gray ones in
        their place.
        """
        with self.recipe.backbone.blame("backbone", "fingerprint"):
            fingerprint = check_fingerprint(self.backbone.fingerprint())
        # Gray frames look the same in every video, so their features are shared.
        content = "blank" if gray else content_hash(file)
        return FeatureKey(content, times, fingerprint, self.recipe.features.dtype)

    def raw_features(self, file: Path, frames: Frames, gray: bool = False) -> FrameFeatures:
        """Return the backbone's features of ``frames``, cached or computed now.

        ``gray``: ``frames`` are gray ones in place of those of ``file``.
        """

        def compute() -> StoredTensor:
            with torch.inference_mode(), self.recipe.backbone.blame("backbone", "forward"):
                images = torch.from_numpy(frames.images).to(self.device)
                # Checked before it is cached: what is cached is not computed again.
                features = check_frame_features(
                    self.backbone(images, frames.times), self.backbone, frames.times
                )
            return StoredTensor(features.values, features.times)

        key = self.feature_key(file, frames.times, gray)
        stored = self.feature_cache.get_or_compute(key, compute)
        if stored.values.shape[-1] != self.backbone.d_features:
            stored = self._replace_outdated(key, stored, compute)
        return FrameFeatures(stored.values, stored.coords)

    def _replace_outdated(
        self, key: FeatureKey, stored: StoredTensor, compute: Callable[[], StoredTensor]
    ) -> StoredTensor:
        """Compute features again that another version of the backbone cached under ``key``."""
        name = self.recipe.backbone.name
        warnings.warn(
            f"The cache holds features of width {stored.values.shape[-1]} of the backbone {name!r},"
            f" which now makes {self.backbone.d_features}, under one fingerprint. They are computed"
            " again. Change what `fingerprint` returns whenever the features change.",
            stacklevel=4,
        )
        self.feature_cache.remove(key)
        return self.feature_cache.get_or_compute(key, compute)

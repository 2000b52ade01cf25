"""Features of clips, and their frames, ahead of a training: what they will take on disk, and the
computing of what is missing.
"""

import copy
import shutil
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path

import torch
from torch import nn

from modulate.data.clip_reader import ClipReader, ShownTimes
from modulate.data.clip_shards import Clip
from modulate.data.feature_cache import DTYPES, FeatureKey
from modulate.data.feature_extractor import FeatureExtractor, catch_sample_error, gray_frames
from modulate.data.video import probe
from modulate.errors import DataError, MissingFileError, ModulateError, RecipeError, StorageError
from modulate.interfaces.components import FrameFeatures
from modulate.utils.atomic_files import format_bytes
from modulate.utils.interrupts import StopRequest
from modulate.utils.out_of_memory import free_cached_memory

AT_ONCE = 128
"""Frames of one video that are decoded in one go, for several clips, while they take no more than
``AT_ONCE_BYTES``.
"""
AT_ONCE_BYTES = 1 << 30
HEADER = 4 << 10
"""Bytes of a shard beside its values, at most, when its size is guessed at."""


@dataclass
class SpaceNeeded:
    """Bytes on disk, about: of features, and of frames."""

    features: int = 0
    frames: int = 0

    def __add__(self, other: "SpaceNeeded") -> "SpaceNeeded":
        return SpaceNeeded(self.features + other.features, self.frames + other.frames)


class SpaceEstimator:
    """What clips take on disk, found without decoding or computing: a twin of the backbone runs on
    tensors without memory. 0 where it cannot do that.
    """

    def __init__(self, extractor: FeatureExtractor) -> None:
        self.extractor = extractor
        tensors = [*extractor.backbone.parameters(), *extractor.backbone.buffers()]
        absent = {
            id(t): (
                nn.Parameter(t.to("meta"), False) if isinstance(t, nn.Parameter) else t.to("meta")
            )
            for t in tensors
        }
        self._twin = copy.deepcopy(
            extractor.backbone, absent
        )  # which takes these as copied already
        self._pictures: dict[Path, tuple[int, int]] = {}
        self._values: dict[tuple[int, int, int], int] = {}

    def of(self, clips: Sequence[Clip]) -> SpaceNeeded:
        """Return what these clips take; those whose video cannot be opened, nothing."""
        return sum((self._clip(clip) for clip in clips), SpaceNeeded())

    def _clip(self, clip: Clip) -> SpaceNeeded:
        if clip.video not in self._pictures:
            try:
                info = probe(clip.video)
                self._pictures[clip.video] = info.height, info.width
            except ModulateError:  # told of when the clip's turn comes
                self._pictures[clip.video] = 0, 0
        height, width = self._pictures[clip.video]
        if not height:
            return SpaceNeeded()
        shape = len(clip.times), height, width
        if shape not in self._values:
            self._values[shape] = self._rehearsed(*shape)
        pixels = (
            len(clip.times) * height * width * 3 + HEADER
            if self.extractor.frame_cache is not None
            else 0
        )
        return SpaceNeeded(
            (1 + clip.gray) * (self._values[shape] + HEADER) if self._values[shape] else 0, pixels
        )

    def _rehearsed(self, frames: int, height: int, width: int) -> int:
        pictures = torch.empty(frames, height, width, 3, dtype=torch.uint8, device="meta")
        try:
            with (
                torch.no_grad(),
                self.extractor.recipe.backbone.blame("backbone", "a rehearsal without memory"),
            ):
                made: FrameFeatures = self._twin(pictures, tuple(map(float, range(frames))))
        except (
            ModulateError,
            RuntimeError,
            # an operation without a meta kernel, in a backbone that we do not know; or a clip that will
            # fail
        ):
            return 0
        return made.values.numel() * DTYPES[self.extractor.recipe.features.dtype].itemsize


def refuse_too_small(extractor: FeatureExtractor, need: SpaceNeeded) -> None:
    """Raise :class:`RecipeError` when the caches' bounds are below ``need``: what was computed
    first would be dropped before anything uses it.
    """
    for name, what, bytes_, most, other in (
        (
            "disk_gib",
            "features",
            need.features,
            extractor.feature_cache.max_bytes,
            "keep them as float16 (features.dtype)",
        ),
        (
            "frames_gib",
            "decoded frames",
            need.frames,
            extractor.frame_cache.store.max_bytes if extractor.frame_cache else 0,
            "set it to 0",
        ),
    ):
        if bytes_ > most:
            raise RecipeError(
                f"All {what} take about {format_bytes(bytes_)}, and features.{name} keeps {format_bytes(most)}: what"
                f" is computed first would be dropped before it is used. Raise features.{name} to"
                f" {bytes_ / 2**30 * 1.02:.3g} or more, or {other}."
            )


# --- the work


@dataclass
class FilledCounts:
    """What came of clips: how many were ``there``, how many were ``computed``; those that
    ``failed``, with their reasons; ``bytes`` of all on disk.
    """

    cached: int = 0
    computed: int = 0
    failed: list[tuple[Clip, str]] = field(default_factory=list)
    bytes: int = 0


class FeatureFiller:
    """Fills a recipe's caches with what ``extractor`` (with ``require_disk``) makes of clips.

    ``advance`` is called with the number of clips that are done; ``stop`` may ask to end, and is
    answered between clips.
    """

    def __init__(
        self,
        extractor: FeatureExtractor,
        advance: Callable[[int], None] = lambda n: None,
        stop: StopRequest | None = None,
    ) -> None:
        self.extractor = extractor
        self.advance = advance
        self.stop = stop or StopRequest()
        self.shown = ShownTimes(extractor.feature_cache.folder / "shown")
        self._kept: dict[Path, None] = {}

    def fill(self, clips: Sequence[Clip]) -> FilledCounts:
        """Compute what is missing of ``clips``, video by video, and return what came of all.

        What is there was read and checked, and is now used last.

        Raises :class:`StorageError` when the disk is full or drops what was computed;
        :class:`Interrupted`; :class:`ComponentError`.
        """
        done = FilledCounts()
        missing = []
        for clip in clips:
            self.stop.check()
            if self._is_there(clip):
                done.cached += 1
                self.advance(1)
            else:
                missing.append(clip)
        self._look_for_room(missing)
        for reader, clip in self._readers(missing):
            self.stop.check()
            self._compute(reader, clip, done)
            self.advance(1)
        for path in self._kept:
            size = _size(path)
            if not size:
                bound = (
                    "features.disk_gib"
                    if path.parent == self.extractor.feature_cache.folder
                    else "features.frames_gib"
                )
                raise StorageError(
                    f"{path} was dropped before it was used: the cache is too small. Raise {bound}"
                    " in the recipe."
                )
            done.bytes += size
        return done

    def _is_there(self, clip: Clip) -> bool:
        try:
            shown = self._shown(clip)
        except MissingFileError:  # told of when the clip's turn comes
            return False
        if shown is None or any(
            self.extractor.feature_cache.find(key) is None for key in self._keys(clip, shown)
        ):
            return False
        self._note(clip, shown)
        return True

    def _shown(self, clip: Clip) -> tuple[float, ...] | None:
        """Return the times of a clip's frames, if they are known, and kept where they are to be."""
        if self.extractor.frame_cache is not None:
            kept = self.extractor.frame_cache.find(clip.video, clip.times)
            return None if kept is None else kept.times
        return self.shown.find(clip.video, clip.times)

    def _keys(self, clip: Clip, shown: tuple[float, ...]) -> list[FeatureKey]:
        return [
            self.extractor.feature_key(clip.video, shown, gray)
            for gray in ((False, True) if clip.gray else (False,))
        ]

    def _note(self, clip: Clip, shown: tuple[float, ...]) -> None:
        self._kept |= dict.fromkeys(
            self.extractor.feature_cache.path(key) for key in self._keys(clip, shown)
        )
        if self.extractor.frame_cache is not None:
            self._kept[
                self.extractor.frame_cache.store.path(
                    self.extractor.frame_cache.key(clip.video, clip.times)
                )
            ] = None

    def _look_for_room(self, missing: Sequence[Clip]) -> None:
        """Refuse a disk without room for what is missing; tell when others' features will have to
        go.
        """
        caches = [
            self.extractor.feature_cache,
            *([self.extractor.frame_cache.store] if self.extractor.frame_cache is not None else []),
        ]
        need = SpaceEstimator(self.extractor).of(missing)
        for cache, more in zip(caches, (need.features, need.frames), strict=False):
            kept = sum(_size(path) for path in cache.folder.glob("*.safetensors"))
            if more and kept + more > cache.max_bytes:
                warnings.warn(
                    f"{cache.folder} holds {format_bytes(kept)} and {format_bytes(more)} are to come, of at most"
                    f" {format_bytes(cache.max_bytes)}: what other recipes used longest ago will be dropped."
                    " Raise the bound in the recipe's `features`, or take another --cache, to keep"
                    " both.",
                    stacklevel=3,
                )
        folder = next(
            p
            for p in (caches[0].folder.absolute(), *caches[0].folder.absolute().parents)
            if p.is_dir()
        )
        free = shutil.disk_usage(folder).free
        more = need.features + need.frames
        if more > free:
            raise StorageError(
                f"{format_bytes(more)} are still to be written, and the disk of {folder} has {format_bytes(free)}"
                " left. Free some, or name another --cache."
            )

    def _readers(self, missing: Sequence[Clip]) -> Iterator[tuple[ClipReader, Clip]]:
        """Yield clips, each with what reads it: clips of one video that follow each other share a
        reader, which decodes their frames in one go.
        """
        for video, group in groupby(missing, key=lambda clip: clip.video):
            own = list(group)
            while own:
                reader = ClipReader(AT_ONCE_BYTES, self.extractor.frame_cache, AT_ONCE_BYTES)
                wanted = set(own[0].times)
                n = 1
                while n < len(own) and len(wanted | set(own[n].times)) <= AT_ONCE:
                    wanted |= set(own[n].times)
                    n += 1
                reader.expect(video, sorted(wanted))
                yield from ((reader, clip) for clip in own[:n])
                own = own[n:]

    def _compute(self, reader: ClipReader, clip: Clip, done: FilledCounts) -> None:
        cache = self.extractor.feature_cache
        misses = cache.misses

        def make() -> None:
            frames = reader.read(clip.video, clip.times)
            for gray in (False, True) if clip.gray else (False,):
                self.extractor.raw_features(
                    clip.video, gray_frames(frames) if gray else frames, gray
                )
            if self.extractor.frame_cache is None:
                self.shown.note(clip.video, clip.times, frames.times)
            self._note(clip, frames.times)

        error = catch_sample_error(make)
        if isinstance(error, StorageError):  # a defect of the disk, and no bad clip
            raise error
        if error is not None:
            done.failed.append((clip, str(error)))
            free_cached_memory()
        elif cache.misses > misses:
            done.computed += 1
        else:  # another clip shows the same frames
            done.cached += 1


def _size(path: Path) -> int:
    """Return a file's bytes; 0 when another process has dropped it."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def refuse_failures(extractor: FeatureExtractor, clips: Sequence[Clip], done: FilledCounts) -> None:
    """Raise :class:`DataError` when more of the samples of ``clips`` have failed than the recipe
    allows.
    """
    failed = sum(len(clip.samples) for clip, _ in done.failed)
    total = sum(len(clip.samples) for clip in clips)
    allowed = extractor.recipe.evaluation.max_failed_share
    if failed > allowed * total:
        clip, reason = done.failed[0]
        raise DataError(
            f"The clips of {failed} of {total} samples failed, more than max_failed_share {allowed}"
            f" allows. First: {clip.samples[0]}: {reason}"
        )

"""Features and frames computed ahead of a training: their size on disk, and the missing ones."""

import copy
import shutil
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path

import torch
from torch import Tensor, nn

from modulate.data.clip_reader import ClipReader, ShownTimes
from modulate.data.clip_shards import Clip
from modulate.data.feature_cache import DTYPES, FeatureCache, FeatureKey
from modulate.data.feature_extractor import FeatureExtractor, catch_sample_error, gray_frames
from modulate.data.picture import picture_size
from modulate.data.video import probe
from modulate.errors import DataError, MissingFileError, ModulateError, RecipeError, StorageError
from modulate.interfaces.components import FrameFeatures
from modulate.utils.atomic_files import format_bytes
from modulate.utils.interrupts import StopRequest
from modulate.utils.out_of_memory import free_cached_memory

FRAMES_AT_ONCE = 128
"""Most frames of one video that are decoded together for several clips."""

BYTES_AT_ONCE = 1 << 30
"""Most bytes of such frames; larger clips are decoded one by one."""

HEADER_BYTES = 4 << 10
"""Upper estimate of the bytes in a shard besides its values."""


# --- space on disk


@dataclass
class SpaceNeeded:
    """Estimated bytes on disk, of features and of frames."""

    features: int = 0
    frames: int = 0

    def __add__(self, other: "SpaceNeeded") -> "SpaceNeeded":
        return SpaceNeeded(self.features + other.features, self.frames + other.frames)


class SpaceEstimator:
    """Estimates the size of clips on disk without decoding or computing anything.

    A copy of the backbone on meta tensors gives the shape of its features. A backbone that cannot
    run on meta tensors counts as 0 bytes.
    """

    def __init__(self, extractor: FeatureExtractor) -> None:
        self.extractor = extractor
        self._meta_backbone = _on_meta(extractor.backbone)
        self._frame_sizes: dict[Path, tuple[int, int]] = {}
        self._feature_bytes: dict[tuple[int, int, int], int] = {}

    def of(self, clips: Sequence[Clip]) -> SpaceNeeded:
        """Return the space that ``clips`` need; a clip whose video cannot be opened needs none."""
        return sum((self._of_clip(clip) for clip in clips), SpaceNeeded())

    def _of_clip(self, clip: Clip) -> SpaceNeeded:
        height, width = self._frame_size(clip)
        if not height:
            return SpaceNeeded()
        count = len(clip.times)
        shape = (count, height, width)
        if shape not in self._feature_bytes:
            self._feature_bytes[shape] = self._bytes_of_features(*shape)
        values = self._feature_bytes[shape]
        features = (1 + clip.gray) * (values + HEADER_BYTES) if values else 0
        frames = 0
        if self.extractor.frame_cache is not None and not clip.is_image:
            frames = count * height * width * 3 + HEADER_BYTES
        return SpaceNeeded(features, frames)

    def _frame_size(self, clip: Clip) -> tuple[int, int]:
        """Return height and width of a clip's frames; (0, 0) if its file cannot be opened."""
        if clip.file not in self._frame_sizes:
            try:
                self._frame_sizes[clip.file] = _frame_size(clip)
            except ModulateError:  # reported when the clip is computed
                self._frame_sizes[clip.file] = 0, 0
        return self._frame_sizes[clip.file]

    def _bytes_of_features(self, count: int, height: int, width: int) -> int:
        frames = torch.empty(count, height, width, 3, dtype=torch.uint8, device="meta")
        times = tuple(map(float, range(count)))
        recipe = self.extractor.recipe
        try:
            with (
                torch.no_grad(),
                recipe.backbone.blame("backbone", "a dry run on meta tensors"),
            ):
                features: FrameFeatures = self._meta_backbone(frames, times)
        # A third-party backbone may use an operation without a meta kernel, and a clip that the
        # backbone refuses fails again when it is computed.
        except (ModulateError, RuntimeError):
            return 0
        return features.values.numel() * DTYPES[recipe.features.dtype].itemsize


def _frame_size(clip: Clip) -> tuple[int, int]:
    if clip.is_image:
        return picture_size(clip.file)
    info = probe(clip.file)
    return info.height, info.width


def _on_meta(module: nn.Module) -> nn.Module:
    """Return a copy of ``module`` on meta tensors, without copying its weights first."""

    def on_meta(tensor: Tensor) -> Tensor:
        meta = tensor.to("meta")
        return nn.Parameter(meta, False) if isinstance(tensor, nn.Parameter) else meta

    # deepcopy takes the objects in its memo for copies already made.
    memo = {id(tensor): on_meta(tensor) for tensor in [*module.parameters(), *module.buffers()]}
    return copy.deepcopy(module, memo)


def refuse_too_small(extractor: FeatureExtractor, need: SpaceNeeded) -> None:
    """Raise :class:`RecipeError` if a cache's limit is below ``need``.

    The entries computed first would be evicted before anything uses them.
    """
    frame_cache = extractor.frame_cache
    frame_limit = frame_cache.store.max_bytes if frame_cache is not None else 0
    _refuse_limit(
        "disk_gib",
        "features",
        need.features,
        extractor.feature_cache.max_bytes,
        "keep them as float16 (features.dtype)",
    )
    _refuse_limit("frames_gib", "decoded frames", need.frames, frame_limit, "set it to 0")


def _refuse_limit(key: str, content: str, needed: int, limit: int, alternative: str) -> None:
    if needed <= limit:
        return
    raise RecipeError(
        f"All {content} take about {format_bytes(needed)}, and features.{key} keeps"
        f" {format_bytes(limit)}: what is computed first would be dropped before it is used. Raise"
        f" features.{key} to {needed / 2**30 * 1.02:.3g} or more, or {alternative}."
    )


# --- computing


@dataclass
class FilledCounts:
    """The outcome of filling the caches.

    Attributes:
        cached: number of clips that were complete before.
        computed: number of clips computed now.
        failed: clips that failed, with the reason.
        bytes: size on disk of all entries of the clips.
    """

    cached: int = 0
    computed: int = 0
    failed: list[tuple[Clip, str]] = field(default_factory=list)
    bytes: int = 0


class FeatureFiller:
    """Fills a recipe's caches with the features, and the frames, of clips.

    Args:
        extractor: made with ``require_disk``.
        advance: called with the number of clips that are done.
        stop: may ask to end, which is obeyed between clips.
    """

    def __init__(
        self,
        extractor: FeatureExtractor,
        advance: Callable[[int], None] = lambda count: None,
        stop: StopRequest | None = None,
    ) -> None:
        self.extractor = extractor
        self.advance = advance
        self.stop = stop or StopRequest()
        self.shown_times = ShownTimes(extractor.feature_cache.folder / "shown")
        # Files of all entries so far, in order; a dict serves as an ordered set.
        self._files: dict[Path, None] = {}

    def fill(self, clips: Sequence[Clip]) -> FilledCounts:
        """Compute what ``clips`` lack, video by video, and return the outcome for all of them.

        Entries that exist are read, checked, and marked as used most recently.

        Raises:
            StorageError: the disk is full, or an entry was evicted.
            Interrupted: ``stop`` asked to end.
            ComponentError: a component is defective.
        """
        counts = FilledCounts()
        missing = []
        for clip in clips:
            self.stop.check()
            if self._is_cached(clip):
                counts.cached += 1
                self.advance(1)
            else:
                missing.append(clip)
        self._check_room(missing)
        for reader, clip in self._with_readers(missing):
            self.stop.check()
            self._compute(reader, clip, counts)
            self.advance(1)
        counts.bytes = self._bytes_on_disk()
        return counts

    def _is_cached(self, clip: Clip) -> bool:
        try:
            shown = self._find_shown_times(clip)
        except MissingFileError:  # reported when the clip is computed
            return False
        if shown is None:
            return False
        if any(self.extractor.feature_cache.find(key) is None for key in self._keys(clip, shown)):
            return False
        self._remember_files(clip, shown)
        return True

    def _find_shown_times(self, clip: Clip) -> tuple[float, ...] | None:
        """Return the presentation times of a clip's frames, or None if they must be decoded.

        Feature keys hold presentation times, which only decoding tells; a note of an earlier run,
        or the cached frames, save it.
        """
        if clip.is_image:
            return clip.times
        if self.extractor.frame_cache is not None:
            frames = self.extractor.frame_cache.find(clip.file, clip.times)
            return None if frames is None else frames.times
        return self.shown_times.find(clip.file, clip.times)

    def _keys(self, clip: Clip, shown: tuple[float, ...]) -> list[FeatureKey]:
        variants = (False, True) if clip.gray else (False,)
        return [self.extractor.feature_key(clip.file, shown, gray) for gray in variants]

    def _remember_files(self, clip: Clip, shown: tuple[float, ...]) -> None:
        for key in self._keys(clip, shown):
            self._files[self.extractor.feature_cache.path(key)] = None
        frame_cache = self.extractor.frame_cache
        if frame_cache is not None and not clip.is_image:
            self._files[frame_cache.store.path(frame_cache.key(clip.file, clip.times))] = None

    def _bytes_on_disk(self) -> int:
        """Return the size of all entries.

        Raises :class:`StorageError` if one was evicted meanwhile: the training would compute it
        again, and evict another.
        """
        total = 0
        for path in self._files:
            size = _size(path)
            if not size:
                is_feature = path.parent == self.extractor.feature_cache.folder
                key = "features.disk_gib" if is_feature else "features.frames_gib"
                raise StorageError(
                    f"{path} was dropped before it was used: the cache is too small. Raise {key}"
                    " in the recipe."
                )
            total += size
        return total

    def _check_room(self, missing: Sequence[Clip]) -> None:
        """Raise :class:`StorageError` if the disk has no room for ``missing``.

        Warns if entries of other recipes will be evicted.
        """
        need = SpaceEstimator(self.extractor).of(missing)
        feature_cache = self.extractor.feature_cache
        _warn_of_eviction(feature_cache, need.features)
        if self.extractor.frame_cache is not None:
            _warn_of_eviction(self.extractor.frame_cache.store, need.frames)
        # The folder itself may not exist yet, so the nearest one that does tells the disk.
        folder = feature_cache.folder.absolute()
        existing = next(path for path in (folder, *folder.parents) if path.is_dir())
        free = shutil.disk_usage(existing).free
        needed = need.features + need.frames
        if needed > free:
            raise StorageError(
                f"{format_bytes(needed)} are still to be written, and the disk of {existing} has"
                f" {format_bytes(free)} left. Free some, or name another --cache."
            )

    def _with_readers(self, missing: Sequence[Clip]) -> Iterator[tuple[ClipReader, Clip]]:
        """Yield each clip with its reader.

        Consecutive clips of one video share a reader, which decodes their frames together.
        """
        for video, group in groupby(missing, key=lambda clip: clip.file):
            clips = list(group)
            while clips:
                count, times = _decoded_together(clips)
                reader = ClipReader(BYTES_AT_ONCE, self.extractor.frame_cache, BYTES_AT_ONCE)
                reader.expect(video, times)
                for clip in clips[:count]:
                    yield reader, clip
                clips = clips[count:]

    def _compute(self, reader: ClipReader, clip: Clip, counts: FilledCounts) -> None:
        cache = self.extractor.feature_cache
        misses_before = cache.misses
        error = catch_sample_error(lambda: self._store(reader, clip))
        if isinstance(error, StorageError):  # of the disk, not of this clip
            raise error
        if error is not None:
            counts.failed.append((clip, str(error)))
            free_cached_memory()
        elif cache.misses > misses_before:
            counts.computed += 1
        else:  # another clip shows the same frames
            counts.cached += 1

    def _store(self, reader: ClipReader, clip: Clip) -> None:
        frames = self.extractor.read(clip.file, clip.times, clip.is_image, reader)
        self.extractor.raw_features(clip.file, frames)
        if clip.gray:
            self.extractor.raw_features(clip.file, gray_frames(frames), gray=True)
        if self.extractor.frame_cache is None and not clip.is_image:
            self.shown_times.note(clip.file, clip.times, frames.times)
        self._remember_files(clip, frames.times)


def _decoded_together(clips: Sequence[Clip]) -> tuple[int, list[float]]:
    """Return how many of the first ``clips`` are decoded together, and their times (s)."""
    times = set(clips[0].times)
    count = 1
    while count < len(clips) and len(times | set(clips[count].times)) <= FRAMES_AT_ONCE:
        times |= set(clips[count].times)
        count += 1
    return count, sorted(times)


def _warn_of_eviction(cache: FeatureCache, needed: int) -> None:
    present = sum(_size(path) for path in cache.folder.glob("*.safetensors"))
    if needed and present + needed > cache.max_bytes:
        warnings.warn(
            f"{cache.folder} holds {format_bytes(present)} and {format_bytes(needed)} are to come,"
            f" of at most {format_bytes(cache.max_bytes)}: the least recently used entries of other"
            " recipes will be dropped. Raise the limit in the recipe's `features`, or use another"
            " --cache, to keep both.",
            stacklevel=4,
        )


def _size(path: Path) -> int:
    """Return a file's bytes; 0 if another process has removed it."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def refuse_failures(
    extractor: FeatureExtractor, clips: Sequence[Clip], counts: FilledCounts
) -> None:
    """Raise :class:`DataError` if more samples of ``clips`` have failed than the recipe allows."""
    # Samples, not clips: a sample may need several clips.
    failed = len({sample for clip, _ in counts.failed for sample in clip.samples})
    total = len({sample for clip in clips for sample in clip.samples})
    allowed = extractor.recipe.evaluation.max_failed_share
    if failed > allowed * total:
        clip, reason = counts.failed[0]
        raise DataError(
            f"The clips of {failed} of {total} samples failed, more than max_failed_share {allowed}"
            f" allows. First: {clip.samples[0]}: {reason}"
        )

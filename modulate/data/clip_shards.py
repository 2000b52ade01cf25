"""The clips that a recipe needs, and the part of them that one of several processes takes."""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path

from modulate.data.feature_extractor import GRAY_CONDITIONS, FeatureExtractor
from modulate.errors import RecipeError
from modulate.interfaces.sample import Sample

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Clip:
    """The frames that one or more samples show.

    Attributes:
        file: the video or the picture.
        times: times (s) at which the clip is sampled.
        gray: whether an evaluation needs features of gray frames too.
        samples: ids of the samples.
        is_image: whether ``file`` is a picture.
    """

    file: Path
    times: tuple[float, ...]
    gray: bool
    samples: tuple[str, ...]
    is_image: bool = False


def planned_clips(extractor: FeatureExtractor, splits: Sequence[str] = SPLITS) -> list[Clip]:
    """Return the clips that training and evaluation need in these splits."""
    with extractor.recipe.data.blame("dataset", "samples"):
        samples = {split: extractor.dataset.samples(split) for split in splits}
        return required_clips(extractor, samples)


def required_clips(
    extractor: FeatureExtractor, samples: Mapping[str, Sequence[Sample]]
) -> list[Clip]:
    """Return the clips that training and evaluation need, each once, sorted by file and times.

    ``samples``: by split. The split "train" is sampled as in training, all others as in an
    evaluation. Gray frames are needed in every split but "train" and "val", if the recipe has a
    condition that shows them.
    """
    gray_needed = bool(GRAY_CONDITIONS & set(extractor.recipe.evaluation.conditions))
    clips: dict[tuple[Path, tuple[float, ...], bool], Clip] = {}
    for split, split_samples in samples.items():
        gray = gray_needed and split not in ("train", "val")
        shown = [(of, clip) for of in split_samples for clip in of.clips]
        for of, source in shown:
            times = tuple(extractor.times(source, training=split == "train"))
            key = (source.file, times, source.is_image)
            clip = clips.get(key) or Clip(source.file, times, False, (), source.is_image)
            # A sample may show the same clip twice.
            ids = dict.fromkeys((*clip.samples, of.id))
            clips[key] = replace(clip, gray=clip.gray or gray, samples=tuple(ids))
    return sorted(clips.values(), key=_order)


def _order(clip: Clip) -> tuple[str, tuple[float, ...]]:
    return str(clip.file), clip.times


@dataclass(frozen=True)
class Shard:
    """One process's part of the clips: part ``number`` (from 1) of ``of``."""

    number: int = 1
    of: int = 1

    @classmethod
    def from_environment(cls, text: str | None = None) -> "Shard":
        """Return this process's part of the shard ``text``, such as 3/8; by default of everything.

        Launchers set RANK and WORLD_SIZE, by which the shard is divided again. Raises
        :class:`RecipeError` if ``text`` or either variable is invalid.
        """
        match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text or "1/1")
        if match is None or not 1 <= int(match[1]) <= int(match[2]):
            raise RecipeError(
                f"--shard is NUMBER/OF, from 1/OF to OF/OF, for example 3/8; got {text!r}."
            )
        rank = os.environ.get("RANK", "0")
        size = os.environ.get("WORLD_SIZE", "1")
        if not (rank.isdecimal() and size.isdecimal() and int(rank) < int(size)):
            raise RecipeError(
                f"The launcher's environment says RANK={rank} and WORLD_SIZE={size}; a rank is from"
                " 0 to WORLD_SIZE − 1. Unset both, or use --shard."
            )
        number = (int(match[1]) - 1) * int(size) + int(rank) + 1
        return cls(number, int(match[2]) * int(size))

    def clips(self, clips: Sequence[Clip]) -> list[Clip]:
        """Return this part of ``clips``: whole videos, so that each is decoded by one process.

        All parts have about the same number of frames. Every process computes the same division.
        """
        videos: dict[Path, list[Clip]] = {}
        for video, group in groupby(sorted(clips, key=_order), key=lambda clip: clip.file):
            videos[video] = list(group)
        frames = {video: sum(len(clip.times) for clip in group) for video, group in videos.items()}
        # Longest first, each to the part with the fewest frames so far.
        loads = [0] * self.of
        own = []
        for video in sorted(videos, key=lambda video: (-frames[video], str(video))):
            lightest = loads.index(min(loads))
            loads[lightest] += frames[video]
            if lightest == self.number - 1:
                own.append(video)
        return [clip for video in sorted(own, key=str) for clip in videos[video]]

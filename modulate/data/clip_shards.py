"""Which clips a recipe asks for, and which of them one process takes of many that need not know of
each other.
"""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path

from modulate.data.feature_extractor import GRAY_CONDITIONS, FeatureExtractor
from modulate.errors import RecipeError
from modulate.interfaces.components import Sample

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Clip:
    """What samples see: frames of ``video`` shown at ``times`` (s); ``gray``: in the evaluation
    also gray ones in their place. ``samples``: their ids.
    """

    video: Path
    times: tuple[float, ...]
    gray: bool
    samples: tuple[str, ...]


def planned(extractor: FeatureExtractor, splits: Sequence[str] = SPLITS) -> list[Clip]:
    """Return the clips that a training and an evaluation ask for in these splits
    (:func:`clips_of`).
    """
    with extractor.recipe.data.blame("dataset", "samples"):
        return clips_of(extractor, {split: extractor.dataset.samples(split) for split in splits})


def clips_of(extractor: FeatureExtractor, samples: Mapping[str, Sequence[Sample]]) -> list[Clip]:
    """Return the clips that a training and an evaluation ask for, each once, those of a video
    together. ``samples``: by split.

    "train" is seen as in training, every other split as in an evaluation; gray frames in every
    split but "train" and "val", if a condition asks for them.
    """
    asked = bool(GRAY_CONDITIONS & set(extractor.recipe.evaluation.conditions))
    found: dict[tuple[Path, tuple[float, ...]], Clip] = {}
    for split, items in samples.items():
        for sample in items:
            gray = asked and split not in ("train", "val")
            key = sample.video, tuple(extractor.times(sample, training=split == "train"))
            same = found.get(key) or Clip(*key, False, ())
            found[key] = replace(same, gray=same.gray or gray, samples=(*same.samples, sample.id))
    return sorted(found.values(), key=lambda clip: (str(clip.video), clip.times))


@dataclass(frozen=True)
class Share:
    """The part of the clips that one process takes: the ``number``-th (from 1) of ``of``."""

    number: int = 1
    of: int = 1

    @classmethod
    def here(cls, text: str | None = None) -> "Share":
        """Return this process's share: that of its rank (environment RANK and WORLD_SIZE, as
        launchers set them) of the share ``text``, such as 3/8.

        Raises :class:`RecipeError` when either makes no sense.
        """
        outer = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text or "1/1")
        if outer is None or not 1 <= int(outer[1]) <= int(outer[2]):
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
        return cls((int(outer[1]) - 1) * int(size) + int(rank) + 1, int(outer[2]) * int(size))

    def clips(self, clips: Sequence[Clip]) -> list[Clip]:
        """Return this share's clips: whole videos, dealt so that all shares have about as many
        frames; the same for whoever asks.
        """
        videos = {
            video: list(group)
            for video, group in groupby(
                sorted(clips, key=lambda c: (str(c.video), c.times)), key=lambda c: c.video
            )
        }
        size = {video: sum(len(clip.times) for clip in group) for video, group in videos.items()}
        load = [0] * self.of
        own = []
        for video in sorted(videos, key=lambda v: (-size[v], str(v))):
            least = load.index(min(load))
            load[least] += size[video]
            if least == self.number - 1:
                own.append(video)
        return [clip for video in sorted(own, key=str) for clip in videos[video]]

"""Which videos are for training, validation and testing. No torch here."""

import random
from collections.abc import Mapping, Sequence
from pathlib import Path

from modulate.errors import DataError, MissingFileError, near_matches
from modulate.parse import read_json
from modulate.paths import checked_name
from modulate_streamgaze.questions import video_stem

SPLITS = ("train", "val", "test")
UNUSED = "unused"


def gazeqwen_split(names: Sequence[str]) -> dict[str, str]:
    """Return {video stem: split} by the rule of the released GazeQwen code.

    Unique base names (with suffix) are sorted and shuffled with seed 42; the first int(0.7 n) train, the next int(0.15 n) validate, the
    rest test: 199 / 42 / 44 of StreamGaze's 285 videos. Viewers are not kept apart: most of EGTEA's test viewers are in training too.
    """
    order = sorted(set(names))
    random.Random(42).shuffle(order)
    cuts = int(0.7 * len(order)), int(0.7 * len(order)) + int(0.15 * len(order))
    return {video_stem(name): "train" if i < cuts[0] else "val" if i < cuts[1] else "test" for i, name in enumerate(order)}


def file_split(path: Path, names: Sequence[str]) -> dict[str, str]:
    """Return {video stem: split} as a JSON file says: {"train": [stems or base names], "val": …, "test": …, "unused": …}.

    Every video of the questions must be in exactly one list, so that none is lost or shared by accident; "unused" is for those left out
    on purpose. Raises :class:`MissingFileError` or :class:`DataError`.
    """
    lists, known, split = _read(path), {video_stem(name) for name in names}, dict[str, str]()
    for key, listed in lists.items():
        for name in listed:
            stem = video_stem(checked_name(name, f"{path.name}, {key!r}"))
            if stem not in known:
                raise DataError(f"{path.name}, {key!r}: {name!r} names no video of the questions. {_near(stem, known)}")
            if stem in split:
                raise DataError(f"{path.name}: video {name!r} is listed twice, in {split[stem]!r} and {key!r}; keep one of them.")
            split[stem] = key
    if lost := sorted(known - set(split)):
        raise DataError(f"{path.name} leaves out {len(lost)} of {len(known)} videos: {', '.join(lost[:3])}; list them, under {UNUSED!r} if on purpose.")
    return split


def _read(path: Path) -> Mapping[str, list[str]]:
    if not path.exists():
        raise MissingFileError(f"Split file {path} does not exist; name an existing file, or use split: gazeqwen.")
    data = read_json(path, "Split file")
    allowed = (*SPLITS, UNUSED)
    if not isinstance(data, dict) or not all(isinstance(v, list) and all(isinstance(n, str) for n in v) for v in data.values()):
        raise DataError(f"{path} must map {', '.join(allowed)} to lists of video names.")
    for key in data:
        if key not in allowed:
            raise DataError(f"{path.name}: unknown split {key!r}. {near_matches(key, allowed)}")
    return data


def _near(stem: str, known: set[str]) -> str:
    # all 285 names would bury the message
    hint = near_matches(stem, known)
    return hint if len(known) <= 8 else f"{hint.partition('Known: ')[0]}There are {len(known)} videos.".strip()

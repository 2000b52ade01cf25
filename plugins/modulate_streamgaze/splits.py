"""Assign videos to training, validation and test; imports no torch."""

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from modulate.errors import DataError, MissingFileError, near_matches, shown
from modulate.utils.paths import checked_name
from modulate.utils.safe_load import parse_json, read_json
from modulate_streamgaze.questions import video_stem

SPLITS = ("train", "val", "test")
ALL = "all"
"""Not a split itself: stands for the videos of all splits."""

UNUSED = "unused"


def gazeqwen_split(names: Sequence[str]) -> dict[str, str]:
    """Return {video stem: split} by the rule of the released GazeQwen code.

    Unique base names (with suffix) are sorted and shuffled with seed 42. The first int(0.7 n) are
    for training, the next int(0.15 n) for validation, all others for test: 199 / 42 / 44 of
    StreamGaze's 285 videos. The split ignores participants: most of EGTEA's test participants are
    in training, too.
    """
    order = sorted(set(names))
    random.Random(42).shuffle(order)
    n_train = int(0.7 * len(order))
    n_val = int(0.15 * len(order))
    labels = ["train"] * n_train + ["val"] * n_val
    labels += ["test"] * (len(order) - len(labels))
    return {video_stem(name): label for name, label in zip(order, labels, strict=True)}


def file_split(path: Path, names: Sequence[str]) -> dict[str, str]:
    """Return {video stem: split} from a JSON file.

    The file is {"train": [stems or base names], "val": …, "test": …, "unused": …}. Every video of
    the questions must be in exactly one list, so that none is lost or shared by accident; "unused"
    lists the deliberately excluded ones. Raises :class:`MissingFileError` or :class:`DataError`.
    """
    if not path.exists():
        raise MissingFileError(
            f"Split file {path} does not exist; name an existing file, or use split: gazeqwen."
        )
    return _split(read_json(path, "Split file"), path, names)


def parse_split(data: bytes, path: Path, names: Sequence[str]) -> dict[str, str]:
    """Return the split in ``data``, the bytes of the file ``path``; see :func:`file_split`.

    Raises :class:`DataError`.
    """
    return _split(parse_json(data, str(path)), path, names)


def _split(data: Any, path: Path, names: Sequence[str]) -> dict[str, str]:
    lists = _lists(data, path)
    known = {video_stem(name) for name in names}
    split = dict[str, str]()
    for key, listed in lists.items():
        for name in listed:
            stem = video_stem(checked_name(name, f"{path.name}, {key!r}"))
            if stem not in known:
                raise DataError(
                    f"{path.name}, {key!r}: {shown(name)} names no video of the questions."
                    f" {_near(stem, known)}"
                )
            if stem in split:
                raise DataError(
                    f"{path.name}: video {shown(name)} is listed twice, in {split[stem]!r} and"
                    f" {key!r}; keep one of them."
                )
            split[stem] = key
    lost = sorted(known - set(split))
    if lost:
        raise DataError(
            f"{path.name} leaves out {len(lost)} of {len(known)} videos: {', '.join(lost[:3])};"
            f" list them, under {UNUSED!r} if on purpose."
        )
    return split


def _lists(data: Any, path: Path) -> Mapping[str, list[str]]:
    allowed = (*SPLITS, UNUSED)
    if not isinstance(data, dict) or not all(
        isinstance(v, list) and all(isinstance(n, str) for n in v) for v in data.values()
    ):
        raise DataError(f"{path} must map {', '.join(allowed)} to lists of video names.")
    for key in data:
        if key not in allowed:
            raise DataError(
                f"{path.name}: unknown split {shown(key)}. {near_matches(key, allowed)}"
            )
    return data


def _near(stem: str, known: set[str]) -> str:
    hint = near_matches(stem, known)
    if len(known) <= 8:
        return hint
    # A list of all 285 names would bury the message.
    return f"{hint.partition('Known: ')[0]}There are {len(known)} videos.".strip()


# --- whole groups

SHARES = (0.7, 0.15, 0.15)


def participant_split(people: Mapping[str, str], seed: int) -> dict[str, str]:
    """Return {video stem: split}, as close to 70/15/15 as whole participants allow.

    ``people``: {video stem: participant}. No participant is in two splits, and a seed always gives
    the same split. Raises :class:`DataError` if there are fewer than three participants.
    """
    members = _members(people)
    if len(members) < len(SPLITS):
        raise DataError(
            f"A split by participant needs at least {len(SPLITS)} participants; the {len(people)}"
            f" videos have {len(members)}."
        )
    return _named(members, _assign_groups(members, SHARES, seed))


def source_split(
    sources: Mapping[str, str], people: Mapping[str, str], test_source: str | None, seed: int
) -> dict[str, str]:
    """Return {video stem: split} with all videos of ``test_source`` in the test split.

    About 15 % of the other videos are for validation, the others for training. ``sources``: {video
    stem: data set}; ``people``: {video stem: participant}, where known. Training and validation
    share no participant; a video of an unknown participant counts as its own participant. Raises
    :class:`DataError` unless ``test_source`` is one of at least two sources.
    """
    found = {
        source: sum(each == source for each in sources.values())
        for source in sorted(set(sources.values()))
    }
    if test_source is None or test_source not in found:
        counts = ", ".join(f"{source} ({count} videos)" for source, count in found.items())
        raise DataError(
            f"split: source needs test_source, the data set that is held out; got {test_source!r}."
            f" These videos are of {counts}."
        )
    remaining = {
        stem: people.get(stem, stem) for stem, source in sources.items() if source != test_source
    }
    members = _members(remaining)
    if len(members) < 2:
        raise DataError(
            f"With {test_source!r} held out there are {len(remaining)} videos of {len(members)}"
            " participants left, too few to train and to validate."
        )
    test = {stem: "test" for stem, source in sources.items() if source == test_source}
    return {
        **test,
        **_named(members, _assign_groups(members, (SHARES[0] + SHARES[2], SHARES[1], 0.0), seed)),
    }


def _members(groups: Mapping[str, str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for stem in sorted(groups):
        found.setdefault(groups[stem], []).append(stem)
    return dict(sorted(found.items()))


def _named(members: Mapping[str, list[str]], assigned: Mapping[str, str]) -> dict[str, str]:
    return {stem: assigned[group] for group, stems in members.items() for stem in stems}


def _assign_groups(
    members: Mapping[str, list[str]], shares: Sequence[float], seed: int
) -> dict[str, str]:
    """Return {group: split} with numbers of videos as close to ``shares`` as possible.

    Minimizes the sum of absolute differences; no split is empty. The result is exact, by dynamic
    programming: after each group, all reachable pairs (videos in train, videos in val) are known.
    The seed chooses among the ways to the best pair.
    """
    rng = random.Random(seed)
    order = list(members)
    rng.shuffle(order)
    sizes = [len(members[group]) for group in order]
    total = sum(map(len, members.values()))
    # After each group: {videos in train: bit set; bit v means that v videos can be in val}.
    # A bit set makes "add a group to val" one shift for all pairs.
    reached: list[dict[int, int]] = [{0: 1}]
    for size in sizes:
        following: dict[int, int] = {}
        for train, bits in reached[-1].items():
            following[train + size] = following.get(train + size, 0) | bits
            following[train] = following.get(train, 0) | bits << size | (bits if shares[2] else 0)
        reached.append(following)
    ends = [(t, v) for t, bits in reached[-1].items() for v in range(total + 1) if bits >> v & 1]
    ends = [(t, v) for t, v in ends if t and v and (bool(total - t - v) == bool(shares[2]))]

    def distance(end: tuple[int, int]) -> float:
        counts = (*end, total - sum(end))
        return sum(abs(count - share * total) for count, share in zip(counts, shares, strict=True))

    train, val = min(ends, key=lambda end: (distance(end), end))
    # Walk back from the best pair, group by group, through pairs that were reachable.
    assigned: dict[str, str] = {}
    for index in reversed(range(len(order))):
        before = {"train": (train - sizes[index], val), "val": (train, val - sizes[index])} | (
            {"test": (train, val)} if shares[2] else {}
        )
        ways = [
            name for name, (t, v) in before.items() if v >= 0 and reached[index].get(t, 0) >> v & 1
        ]
        assigned[order[index]] = rng.choice(ways)
        train, val = before[assigned[order[index]]]
    return assigned

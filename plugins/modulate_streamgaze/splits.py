"""Which videos are for training, validation and testing. No torch here."""

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
"""Not a split: every video that is in one."""

UNUSED = "unused"


def gazeqwen_split(names: Sequence[str]) -> dict[str, str]:
    """Return {video stem: split} by the rule of the released GazeQwen code.

    Unique base names (with suffix) are sorted and shuffled with seed 42; the first int(0.7 n)
    train, the next int(0.15 n) validate, the rest test: 199 / 42 / 44 of StreamGaze's 285 videos.
    Viewers are not kept apart: most of EGTEA's test viewers are in training too.
    """
    order = sorted(set(names))
    random.Random(42).shuffle(order)
    cuts = int(0.7 * len(order)), int(0.7 * len(order)) + int(0.15 * len(order))
    return {
        video_stem(name): "train" if i < cuts[0] else "val" if i < cuts[1] else "test"
        for i, name in enumerate(order)
    }


def file_split(path: Path, names: Sequence[str]) -> dict[str, str]:
    """Return {video stem: split} as a JSON file says: {"train": [stems or base names], "val": …,
    "test": …, "unused": …}.

    Every video of the questions must be in exactly one list, so that none is lost or shared by
    accident; "unused" is for those left out on purpose. Raises :class:`MissingFileError` or
    :class:`DataError`.
    """
    if not path.exists():
        raise MissingFileError(
            f"Split file {path} does not exist; name an existing file, or use split: gazeqwen."
        )
    return _split(read_json(path, "Split file"), path, names)


def parse_split(data: bytes, path: Path, names: Sequence[str]) -> dict[str, str]:
    """Return what :func:`file_split` returns for a file ``path`` of these bytes.

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
    # all 285 names would bury the message
    hint = near_matches(stem, known)
    return (
        hint
        if len(known) <= 8
        else f"{hint.partition('Known: ')[0]}There are {len(known)} videos.".strip()
    )


# --- whole groups

SHARES = (0.7, 0.15, 0.15)


def participant_split(people: Mapping[str, str], seed: int) -> dict[str, str]:
    """Return {video stem: split}: 70/15/15 of the videos, or as near to it as whole participants
    allow; no participant is in two splits.

    ``people``: {video stem: participant}. Deterministic for one seed. Raises :class:`DataError`
    when there are fewer than three participants.
    """
    members = _members(people)
    if len(members) < len(SPLITS):
        raise DataError(
            f"A split by participant needs at least {len(SPLITS)} participants; the {len(people)}"
            f" videos have {len(members)}."
        )
    return _named(members, _deal(members, SHARES, seed))


def source_split(
    sources: Mapping[str, str], people: Mapping[str, str], test_source: str | None, seed: int
) -> dict[str, str]:
    """Return {video stem: split}: all of ``test_source`` tests, of the others about 15 % validate
    and the rest train.

    ``sources``: {video stem: data set}; ``people``: {video stem: participant}, where known:
    training and validation share no participant, and a video of nobody known counts as a
    participant of its own. Raises :class:`DataError` unless ``test_source`` is one of at least two
    sources.
    """
    found = {
        source: sum(s == source for s in sources.values())
        for source in sorted(set(sources.values()))
    }
    if test_source is None or test_source not in found:
        counts = ", ".join(f"{source} ({n} videos)" for source, n in found.items())
        raise DataError(
            f"split: source needs test_source, the data set that is held out; got {test_source!r}."
            f" These videos are of {counts}."
        )
    rest = {
        stem: people.get(stem, stem) for stem, source in sources.items() if source != test_source
    }
    members = _members(rest)
    if len(members) < 2:
        raise DataError(
            f"With {test_source!r} held out there are {len(rest)} videos of {len(members)}"
            " participants left, too few to train and to validate."
        )
    test = {stem: "test" for stem, source in sources.items() if source == test_source}
    return {
        **test,
        **_named(members, _deal(members, (SHARES[0] + SHARES[2], SHARES[1], 0.0), seed)),
    }


def _members(groups: Mapping[str, str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for stem in sorted(groups):
        found.setdefault(groups[stem], []).append(stem)
    return dict(sorted(found.items()))


def _named(members: Mapping[str, list[str]], dealt: Mapping[str, str]) -> dict[str, str]:
    return {stem: dealt[group] for group, stems in members.items() for stem in stems}


def _deal(members: Mapping[str, list[str]], shares: Sequence[float], seed: int) -> dict[str, str]:
    """Return {group: split} whose numbers of videos are as near to ``shares`` as can be (least sum
    of absolute differences), none empty.

    Exact: every pair of sizes that can be reached is known, group by group; which of the ways to
    the best pair is taken, the seed decides.
    """
    rng = random.Random(seed)
    order = list(members)
    rng.shuffle(order)
    sizes = [len(members[group]) for group in order]
    total = sum(map(len, members.values()))
    reached: list[dict[int, int]] = [
        {0: 1}
    ]  # after each group: {videos that train: bit v set where v videos can validate}
    for size in sizes:
        following: dict[int, int] = {}
        for train, bits in reached[-1].items():
            following[train + size] = following.get(train + size, 0) | bits
            following[train] = following.get(train, 0) | bits << size | (bits if shares[2] else 0)
        reached.append(following)
    ends = [(t, v) for t, bits in reached[-1].items() for v in range(total + 1) if bits >> v & 1]
    ends = [(t, v) for t, v in ends if t and v and (bool(total - t - v) == bool(shares[2]))]
    train, val = min(
        ends,
        key=lambda end: (
            sum(abs(n - s * total) for n, s in zip((*end, total - sum(end)), shares, strict=True)),
            end,
        ),
    )
    dealt: dict[str, str] = {}
    for i in reversed(range(len(order))):
        before = {"train": (train - sizes[i], val), "val": (train, val - sizes[i])} | (
            {"test": (train, val)} if shares[2] else {}
        )
        ways = [name for name, (t, v) in before.items() if v >= 0 and reached[i].get(t, 0) >> v & 1]
        dealt[order[i]] = rng.choice(ways)
        train, val = before[dealt[order[i]]]
    return dealt

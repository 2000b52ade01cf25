"""Shards: the clips that one of several processes takes."""

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modulate.data.clip_shards import Clip, Shard
from modulate.errors import RecipeError


def clips():
    """Return clips of three frames from videos of 30, 21 and 9 frames."""
    return [
        Clip(Path(name), (float(index), index + 0.25, index + 0.5), False, (f"{name}{index}",))
        for name, count in (("b", 3), ("a", 10), ("c", 7))
        for index in range(count)
    ]


def test_shards_take_whole_videos_and_together_every_clip_once_in_order():
    shards = [Shard(number, 2).clips(clips()) for number in (1, 2)]
    assert [sorted({str(clip.file) for clip in shard}) for shard in shards] == [["a"], ["b", "c"]]
    assert shards[0] + shards[1] == sorted(clips(), key=lambda clip: (str(clip.file), clip.times))
    assert Shard().clips(clips()) == shards[0] + shards[1]
    assert (
        Shard(3, 4).clips(clips()) == [clip for clip in shards[1] if clip.file == Path("b")]
        and Shard(4, 4).clips(clips()) == []
    )


def test_shards_are_balanced_by_frames_and_not_by_clips():
    long = [Clip(Path("long"), tuple(map(float, range(20))), False, ("x",))]
    found = [Shard(number, 2).clips([*clips(), *long]) for number in (1, 2)]
    assert [Counter(str(clip.file) for clip in shard) for shard in found] == [
        {"a": 10, "b": 3},
        {"c": 7, "long": 1},
    ]


clip_lists = st.lists(
    st.tuples(st.sampled_from("abcdefgh"), st.integers(1, 16)), min_size=1, max_size=30, unique=True
).map(
    lambda pairs: [
        Clip(Path(video), tuple(map(float, range(count))), False, (f"{video}{count}",))
        for video, count in pairs
    ]
)


@given(clip_lists, st.integers(1, 12), st.randoms())
def test_shards_cover_all_clips_once_by_whole_videos_and_evenly(clips, of, rng):
    shares = [Shard(index, of).clips(clips) for index in range(1, of + 1)]
    assert Counter(clip for share in shares for clip in share) == Counter(clips)
    rng.shuffle(clips)
    assert shares == [Shard(index, of).clips(clips) for index in range(1, of + 1)]
    videos = [{clip.file for clip in share} for share in shares]
    assert sum(map(len, videos)) == len({clip.file for clip in clips})
    frames = [sum(len(clip.times) for clip in share) for share in shares]
    largest = max(
        sum(len(clip.times) for clip in clips if clip.file == video)
        for video in {clip.file for clip in clips}
    )
    assert max(frames) <= sum(frames) / of + largest


@pytest.mark.parametrize(
    ("text", "rank", "size", "shard"),
    [
        (None, None, None, Shard(1, 1)),
        ("", None, None, Shard(1, 1)),
        ("3/8", None, None, Shard(3, 8)),
        ("8/8", None, None, Shard(8, 8)),
        (None, "0", "4", Shard(1, 4)),
        (None, "1", "4", Shard(2, 4)),
        (None, "3", "4", Shard(4, 4)),
        ("1/2", "3", "4", Shard(4, 8)),
        ("2/2", "0", "4", Shard(5, 8)),
        ("3/8", "1", "4", Shard(10, 32)),
    ],
)
def test_a_shard_is_divided_again_by_rank(monkeypatch, text, rank, size, shard):
    for name, value in (("RANK", rank), ("WORLD_SIZE", size)):
        monkeypatch.delenv(name, raising=False)
        if value is not None:
            monkeypatch.setenv(name, value)
    assert Shard.from_environment(text) == shard


@pytest.mark.parametrize(
    "text", ["0/8", "9/8", "3", "3/", "3/8/1", "1/8 ", "-1/8", "a/b", "1/1000000000"]
)
def test_an_invalid_shard_is_refused(text):
    with pytest.raises(
        RecipeError, match=r"--shard is NUMBER/OF, from 1/OF to OF/OF, for example 3/8; got '"
    ):
        Shard.from_environment(text)


@pytest.mark.parametrize(
    ("rank", "size"), [("4", "4"), ("-1", "4"), ("x", "4"), ("0", "x"), ("0", "0"), ("1", None)]
)
def test_a_contradictory_environment_is_refused(monkeypatch, rank, size):
    monkeypatch.setenv("RANK", rank)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    if size is not None:
        monkeypatch.setenv("WORLD_SIZE", size)
    with pytest.raises(
        RecipeError, match=f"RANK={rank} and WORLD_SIZE={size or 1}; a rank is from 0"
    ):
        Shard.from_environment()

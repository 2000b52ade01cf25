"""Controls: shuffling draws another video's sample, determined by seed and sample."""

from dataclasses import replace
from pathlib import Path

import pytest

from modulate.errors import DataError
from modulate.inference.controls import ShufflePool
from tests.samples import one_clip_sample, with_clip


def sample(name, video):
    return one_clip_sample(name, video)


def test_shuffling_draws_a_sample_of_another_video_by_seed_and_sample():
    samples = [sample(f"{video}{index}", video) for video in "abc" for index in range(4)]
    pool = ShufflePool(samples)
    drawn = {own.id: pool.draw(own, 0)[0] for own in samples}
    assert all(drawn[own.id].files.isdisjoint(own.files) for own in samples)
    assert drawn == {own.id: ShufflePool(samples).draw(own, 0)[0] for own in samples}
    assert drawn != {own.id: pool.draw(own, 1)[0] for own in samples}
    assert len({other.id for other in drawn.values()}) > 3


def test_a_sample_of_several_clips_gives_each_clip_a_draw_of_its_own():
    one, two, picture, other = (sample(name, name) for name in ("a", "b", "p", "q"))
    picture, other = (with_clip(s, is_image=True) for s in (picture, other))
    both = replace(one, id="both", clips=(*one.clips, *two.clips, *picture.clips))
    more = [replace(sample(f"{i}", f"v{i}"), id=f"{i}") for i in range(9)]
    pool = ShufflePool([both, one, two, other, *more])
    drawn = [pool.draw(both, 0, index) for index in range(3)]
    assert drawn[0] != drawn[1] and drawn[2] == (other, other.clip)
    assert {found.id for found, _ in drawn[:2]} <= {s.id for s in more}
    # Of a sample with several clips, one that has a signal.
    bare = replace(one.clip, file=Path("c"))
    gazed = replace(one.clip, file=Path("d"), signals={"gaze": Path("g")})
    several = replace(one, id="several", clips=(bare, gazed))
    assert ShufflePool([one, several]).draw(one, 0) == (several, gazed)


def test_shuffling_needs_samples_of_two_videos():
    samples = [sample("1", "a"), sample("2", "a")]
    with pytest.raises(DataError, match="Shuffling needs samples of at least two videos"):
        ShufflePool(samples).draw(samples[0], 0)

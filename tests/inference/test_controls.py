"""Controls: shuffling draws another video's sample, determined by seed and sample."""

import pytest

from modulate.errors import DataError
from modulate.inference.controls import ShufflePool
from tests.samples import one_clip_sample


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


def test_shuffling_needs_samples_of_two_videos():
    samples = [sample("1", "a"), sample("2", "a")]
    with pytest.raises(DataError, match="Shuffling needs samples of at least two videos"):
        ShufflePool(samples).draw(samples[0], 0)

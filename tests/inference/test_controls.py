"""Controls: shuffling draws another video's sample, determined by seed and sample."""

from pathlib import Path

import pytest

from modulate.errors import DataError
from modulate.inference.controls import ShufflePool
from modulate.interfaces.components import Sample


def sample(name, video):
    return Sample(name, "task", Path(video), (0.0, 1.0), "?", ("x",), 0, {})


def test_shuffling_draws_a_sample_of_another_video_by_seed_and_sample():
    samples = [sample(f"{video}{index}", video) for video in "abc" for index in range(4)]
    pool = ShufflePool(samples)
    drawn = {own.id: pool.draw(own, 0) for own in samples}
    assert all(drawn[own.id].video != own.video for own in samples)
    assert drawn == {own.id: ShufflePool(samples).draw(own, 0) for own in samples}
    assert drawn != {own.id: pool.draw(own, 1) for own in samples}
    assert len({other.id for other in drawn.values()}) > 3


def test_shuffling_needs_samples_of_two_videos():
    samples = [sample("1", "a"), sample("2", "a")]
    with pytest.raises(DataError, match="Shuffling needs samples of at least two videos"):
        ShufflePool(samples).draw(samples[0], 0)

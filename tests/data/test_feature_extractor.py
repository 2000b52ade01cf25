"""Sampling times, clocks, gray frames, and errors that concern one sample only."""

import numpy as np
import pytest
import torch

from modulate.config.sections import Sampling
from modulate.data.feature_extractor import (
    FrameCache,
    apply_clock,
    catch_sample_error,
    frame_times_of,
    gray_frames,
)
from modulate.errors import ComponentError, DataError, StorageError, VideoError
from modulate.interfaces.frames import Frames
from modulate.interfaces.visual_grid import visual_grid


def frames(n=3, seed=0):
    return Frames(
        np.random.default_rng(seed).integers(0, 255, (n, 4, 6, 3), np.uint8),
        tuple(float(index) for index in range(n)),
    )


def test_gray_frames_have_the_same_times_and_a_single_gray():
    gray = gray_frames(frames())
    assert (
        gray.times == (0.0, 1.0, 2.0)
        and gray.images.shape == (3, 4, 6, 3)
        and gray.images.dtype == np.uint8
        and (gray.images == 127).all()
    )


def test_a_clip_is_sampled_at_the_rate_for_its_length_up_to_the_frame_cap():
    sampling = Sampling(
        fps=({"up_to": 4.0, "fps": 2.0}, {"fps": 1.0}), max_frames=20, train_max_frames=3
    )
    assert frame_times_of(sampling, (10.0, 12.0)) == [10.0, 10.5, 11.0, 11.5, 12.0]
    assert frame_times_of(sampling, (10.0, 15.0)) == [10.0, 11.0, 12.0, 13.0, 14.0, 15.0]
    assert frame_times_of(sampling, (10.0, 12.0), training=True) == [10.0, 11.0, 12.0]


def test_the_true_clock_keeps_the_grid_and_the_requested_clock_counts_at_the_requested_rate():
    grid = visual_grid([0.0, 10.0, 20.0, 30.0, 40.0], 2, 2, 3, (0.0, 40.0))
    assert apply_clock(Sampling(), (0.0, 40.0), grid, 5) is grid
    counted = apply_clock(Sampling(clock="requested", fps=0.5), (3.0, 43.0), grid, 5)
    assert counted.spans == ((3.0, 7.0), (7.0, 11.0), (11.0, 15.0)) and (
        counted.rows,
        counted.cols,
    ) == (
        2,
        3,
    )  # two frames at half a frame a second


def failing(error):
    def make():
        raise error

    return make


def test_a_sample_s_result_or_its_own_error_is_returned():
    assert catch_sample_error(lambda: 3) == 3
    error = VideoError("cut off")
    assert catch_sample_error(failing(error)) is error
    found = catch_sample_error(
        failing(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")), "Sample a: "
    )
    assert (
        isinstance(found, DataError)
        and str(found)
        == "Sample a: its frames' features do not fit into memory (CUDA out of memory)."
    )


@pytest.mark.parametrize(
    "error", [ComponentError("a defect"), RuntimeError("shapes"), KeyError("x")]
)
def test_defects_and_unexpected_errors_are_raised(error):
    with pytest.raises(type(error)):
        catch_sample_error(failing(error))


def test_frames_are_cached_by_content_and_times(tmp_path):
    cache = FrameCache(tmp_path / "kept", 1 << 20)
    decoded = []
    video = tmp_path / "v.mp4"
    video.write_bytes(b"some video")

    def decode():
        decoded.append(1)
        return frames()

    assert cache.find(video, [0.1, 1.0, 2.2]) is None
    for _ in range(2):
        found = cache(video, [0.1, 1.0, 2.2], decode)
        assert np.array_equal(found.images, frames().images) and found.times == frames().times
    assert len(decoded) == 1
    kept = FrameCache(tmp_path / "kept", 1 << 20).find(video, [0.1, 1.0, 2.2])
    assert np.array_equal(kept.images, frames().images) and kept.times == frames().times
    assert cache.find(video, [0.1, 1.0]) is None
    video.write_bytes(b"another")
    assert cache.find(video, [0.1, 1.0, 2.2]) is None


def test_frames_that_cannot_be_cached_cause_a_warning_or_an_error_if_the_disk_is_required(tmp_path):
    video = tmp_path / "v.mp4"
    video.write_bytes(b"some video")
    with pytest.raises(StorageError, match="cannot be written"):
        FrameCache(video / "kept", 1 << 20, require_disk=True)(video, [0.0], lambda: frames(1))
    with pytest.warns(UserWarning, match="Features cannot be cached in"):
        assert FrameCache(video / "kept", 1 << 20)(video, [0.0], lambda: frames(1)).times == (0.0,)

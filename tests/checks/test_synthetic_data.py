"""Noise clips that replace missing data."""

import av

from modulate.checks.synthetic_data import NoiseDataset
from modulate.config.recipe import load_recipe


def test_noise_clips_are_as_long_as_the_frame_cap_allows_and_all_differ(tmp_path):
    recipe = load_recipe("gazeqwen_tiny", ["sampling={fps: 2.0, max_frames: 6}"])
    noise = NoiseDataset(recipe, tmp_path)
    assert noise.seconds == 3.0 and noise.fingerprint() == "noise"
    samples = noise.samples("train")
    assert (
        len({sample.id for sample in samples})
        == len({sample.clip.window for sample in samples})
        == 64
    )
    assert [sample.clip.window for sample in samples[:3]] == [
        (0.0, 3.0),
        (0.0, 2.999),
        (0.0, 2.998),
    ]
    assert [sample.answer for sample in samples[:5]] == [0, 1, 2, 3, 0]
    assert all(len(sample.options) == 4 for sample in samples)
    assert [sample.clip.file.name for sample in samples[:3]] == [
        "noise0.mp4",
        "noise1.mp4",
        "noise0.mp4",
    ]
    assert len(noise.videos) == 2
    assert sorted(tmp_path.iterdir()) == noise.videos
    for path in noise.videos:
        with av.open(str(path)) as file:
            assert file.streams.video[0].average_rate == 1
            frames = [frame.to_ndarray(format="gray") for frame in file.decode(video=0)]
        assert len(frames) == 5 and frames[0].shape == (960, 1280)
        cells = frames[0].reshape(30, 32, 40, 32)[:, 2:30, :, 2:30]
        assert (
            cells.std(axis=(1, 3)).mean() < 4 < 30 < cells.mean(axis=(1, 3)).std()
        )  # even inside, and different from cell to cell
        assert abs(frames[0].astype(int) - frames[1]).mean() > 20

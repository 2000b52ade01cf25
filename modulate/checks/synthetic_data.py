"""A dataset of noise clips, for measurements without data."""

from pathlib import Path
from typing import Any

import av
import numpy as np

from modulate.config.recipe import Recipe
from modulate.interfaces.components import Dataset
from modulate.interfaces.sample import Sample, SampleClip

ASSUMED = (960, 1280)
"""Assumed height and width of frames when there are no data: those of EGTEA Gaze+."""


class NoiseDataset(Dataset):
    """Clips of noise, as long as the frame cap allows."""

    def __init__(self, recipe: Recipe, folder: Path) -> None:
        sampling = recipe.sampling
        self.seconds = sampling.max_frames / sampling.rate(0.0)
        self.videos = [folder / f"noise{number}.mp4" for number in range(2)]
        for path in self.videos:
            write_noise(path, round(self.seconds) + 2)

    def samples(self, split: str) -> list[Sample]:
        """Return 64 samples whose clips differ in length, so that each needs its own features."""
        options = ("the red cup", "a knife", "the sink", "some bread")
        return [
            Sample(
                f"noise-{number}",
                "noise",
                (SampleClip(self.videos[number % 2], (0.0, self.seconds - 0.001 * number)),),
                "What is looked at right now?",
                options,
                number % 4,
            )
            for number in range(64)
        ]

    def fingerprint(self) -> str:
        """Return the same value for every noise dataset."""
        return "noise"


def write_noise(path: Path, seconds: int) -> None:
    """Write a video of coarse noise with one frame per second."""
    height, width = ASSUMED
    rng = np.random.default_rng(0)
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("mpeg4", rate=1)
        stream.width = width
        stream.height = height
        stream.pix_fmt = "yuv420p"
        for _ in range(seconds):
            coarse = rng.integers(0, 256, (height // 32, width // 32, 3), dtype=np.uint8)
            pixels = coarse.repeat(32, 0).repeat(32, 1)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels)))
        container.mux(stream.encode())

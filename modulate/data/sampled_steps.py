"""The time steps that a recipe's sampling gives a clip, without decoding it or loading a host."""

from modulate.config.sections import Sampling
from modulate.data.feature_extractor import apply_clock, frame_times_of
from modulate.interfaces.visual_grid import VisualGrid, visual_grid


class SampledSteps:
    """Computes steps of clips, as if their videos had frames at exactly the requested times.

    ``frames_per_step``: number of frames that the host merges into one step (Qwen-VL: 2).
    """

    def __init__(self, sampling: Sampling, frames_per_step: int = 2) -> None:
        self.sampling = sampling
        self.frames_per_step = frames_per_step

    def __call__(self, window: tuple[float, float], training: bool = False) -> VisualGrid:
        """Return the steps of a clip, with one token each."""
        times = frame_times_of(self.sampling, window, training)
        grid = visual_grid(times, self.frames_per_step, 1, 1, window)
        return apply_clock(self.sampling, window, grid, len(times))

    @property
    def training_differs(self) -> bool:
        """Whether training samples clips in another way than an evaluation."""
        return self.sampling.train_max_frames is not None

    def __str__(self) -> str:
        sampling = self.sampling
        if isinstance(sampling.fps, float):
            rates = f"{sampling.fps:g}"
        else:
            rates = ", ".join(
                f"{rate.fps:g}" + (f" to {rate.up_to:g} s" if rate.up_to else "")
                for rate in sampling.fps
            )
        most = f"{sampling.max_frames}"
        if sampling.train_max_frames:
            most += f" ({sampling.train_max_frames} in training)"
        return (
            f"{rates} frames a second, at most {most}, {self.frames_per_step} to a step, clock:"
            f" {sampling.clock}"
        )

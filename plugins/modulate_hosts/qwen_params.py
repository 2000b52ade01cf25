"""How a recipe loads a host of the Qwen-VL families: host parameters, and the size of frames."""

from typing import Any

from pydantic import Field, model_validator

from modulate.hosts.loading import HostParams


class QwenParams(HostParams):
    """How a recipe loads a Qwen2-VL or Qwen2.5-VL host."""

    video_min_pixels: int | None = Field(
        None,
        gt=0,
        description=(
            "fewest pixels of a frame, enlarged if need be; null: as in the model's processor"
            " [Qwen2.5-VL: 3,136; qwen-vl-utils, which GazeQwen's code uses:"
            " 100,352]"
        ),
    )
    video_max_pixels: int | None = Field(
        None,
        gt=0,
        description=(
            "most pixels of a frame, shrunk if need be; 28 × 28 of them, over two frames, make one"
            " visual token. null: as in the model's processor"
            " [Qwen2.5-VL: 12,845,056; qwen-vl-utils, which GazeQwen's code uses: 602,112, 768"
            " tokens a step]"
        ),
    )

    @model_validator(mode="after")
    def _ordered(self) -> "QwenParams":
        low = self.video_min_pixels
        high = self.video_max_pixels
        if low is not None and high is not None and low > high:
            raise ValueError(
                f"video_min_pixels ({low}) must not be above video_max_pixels ({high})"
            )
        return self


def limit_pixels(processor: Any, params: HostParams) -> Any:
    """Set the limits in ``params`` on the pixels of a frame in ``processor``, and return it."""
    if isinstance(params, QwenParams):
        video = processor.video_processor
        low = params.video_min_pixels or video.size["shortest_edge"]
        high = params.video_max_pixels or video.size["longest_edge"]
        # One limit alone may contradict the processor's other one; the given limits win.
        video.size = {"shortest_edge": min(low, high), "longest_edge": max(low, high)}
    return processor

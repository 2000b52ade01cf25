"""Qwen2-VL (arXiv 2409.12191): dynamic resolution, two frames a step, steps counted in M-RoPE whatever their time."""

from typing import Any

from modulate.hosts import EncodedPrompt, Host
from modulate.video import Frames
from modulate_hosts.qwen_video import Images, encode_video, mean_rate


class Qwen2VL(Host):
    """Qwen2-VL. The model itself has no clock; the grid has the frames' true times."""

    model_types = ("qwen2_vl",)

    def encode(self, processor: Any, text: str, frames: Frames, window: tuple[float, float], images: Images = ()) -> EncodedPrompt:
        """Encode one user turn."""
        return encode_video(self, processor, text, frames, window, mean_rate(frames.times), images)

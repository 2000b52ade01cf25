"""Qwen2.5-VL (arXiv 2502.13923): dynamic resolution, two frames a step, absolute time in M-RoPE."""

from typing import Any

from modulate.hosts import EncodedPrompt, Host
from modulate.video import Frames
from modulate_hosts.qwen_video import Images, encode_video, mean_rate


class Qwen25VL(Host):
    """Qwen2.5-VL, with prompts encoded at the frames' true times."""

    model_types = ("qwen2_5_vl",)

    def encode(self, processor: Any, text: str, frames: Frames, window: tuple[float, float], images: Images = ()) -> EncodedPrompt:
        """Encode one user turn; M-RoPE's temporal positions count true seconds, at the clip's mean frame rate."""
        return encode_video(self, processor, text, frames, window, mean_rate(frames.times), images)

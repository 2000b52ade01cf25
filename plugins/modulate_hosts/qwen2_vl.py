"""Qwen2-VL (arXiv 2409.12191): dynamic resolution, two frames a step, no time in M-RoPE."""

from typing import Any

from torch import nn

from modulate.hosts.host import EncodedPrompt, Host, HostParams
from modulate.interfaces.frames import Frames
from modulate_hosts import qwen_random
from modulate_hosts.qwen_params import QwenParams, limit_pixels
from modulate_hosts.qwen_video import Images, encode_video, mean_rate


class Qwen2VL(Host):
    """Qwen2-VL. The model itself only counts steps; the grid has the frames' true times."""

    model_types = ("qwen2_vl",)
    Params = QwenParams

    @classmethod
    def load(cls, params: HostParams) -> tuple[nn.Module, Any]:
        """Load model and processor, and limit the pixels of a frame as in ``params``."""
        model, processor = super().load(params)
        return model, limit_pixels(processor, params)

    @classmethod
    def narrow(cls, config: Any) -> Any:
        """Return ``config`` with the same layers, each as narrow as possible."""
        return qwen_random.narrow(config)

    def encode(
        self,
        processor: Any,
        text: str,
        frames: Frames,
        window: tuple[float, float],
        images: Images = (),
    ) -> EncodedPrompt:
        """Encode one user turn."""
        return encode_video(self, processor, text, frames, window, mean_rate(frames.times), images)

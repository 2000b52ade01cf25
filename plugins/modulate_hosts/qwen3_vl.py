"""Qwen3-VL (arXiv 2511.21631): the prompt states each step's time before its visual tokens."""

from typing import Any

from modulate.hosts.host import EncodedPrompt, Host
from modulate.interfaces.frames import Frames
from modulate_hosts import qwen_random
from modulate_hosts.qwen_video import Images, encode_video, milliseconds


class Qwen3VL(Host):
    """Qwen3-VL, with prompts encoded at the frames' true times."""

    model_types = ("qwen3_vl", "qwen3_vl_moe")

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
        """Encode one user turn; the prompt states each step's mean time in the video, to 0.1 s."""
        return encode_video(
            self, processor, text, frames, window, milliseconds(frames.times), images
        )

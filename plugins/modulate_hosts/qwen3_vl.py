"""Qwen3-VL (arXiv 2511.21631): the prompt states each step's time before its visual tokens."""

from collections.abc import Sequence
from typing import Any

from modulate.hosts.host import EncodedPrompt, Host
from modulate.interfaces.messages import Message
from modulate_hosts import qwen_random
from modulate_hosts.qwen_video import encode, milliseconds


class Qwen3VL(Host):
    """Qwen3-VL, with prompts encoded at the frames' true times."""

    model_types = ("qwen3_vl", "qwen3_vl_moe")

    @classmethod
    def narrow(cls, config: Any) -> Any:
        """Return ``config`` with the same layers, each as narrow as possible."""
        return qwen_random.narrow(config)

    def encode(
        self, processor: Any, messages: Sequence[Message], *, add_generation_prompt: bool = True
    ) -> EncodedPrompt:
        """Encode a conversation; it states each step's mean time in the video, to 0.1 s."""
        return encode(self, processor, messages, add_generation_prompt, milliseconds)

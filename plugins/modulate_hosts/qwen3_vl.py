"""Qwen3-VL (arXiv 2511.21631): the prompt states each step's time before its visual tokens."""

from typing import Any

from modulate.hosts.host import Host
from modulate_hosts import qwen_random


class Qwen3VL(Host):
    """Qwen3-VL, with prompts encoded at the frames' true times."""

    model_types = ("qwen3_vl", "qwen3_vl_moe")

    @classmethod
    def narrow(cls, config: Any) -> Any:
        """Return ``config`` with the same layers, each as narrow as possible."""
        return qwen_random.narrow(config)

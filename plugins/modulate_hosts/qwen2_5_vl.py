"""Qwen2.5-VL (arXiv 2502.13923): dynamic resolution, two frames a step, true time in M-RoPE."""

from typing import Any

from torch import nn

from modulate.hosts.host import Host
from modulate.hosts.loading import HostParams
from modulate_hosts import qwen_random
from modulate_hosts.qwen_params import QwenParams, limit_pixels


class Qwen25VL(Host):
    """Qwen2.5-VL, with prompts encoded at the frames' true times."""

    model_types = ("qwen2_5_vl",)
    Params = QwenParams

    @classmethod
    def shipped_config(cls, path: str) -> Any:
        """Return the configuration that ships with this plugin for the hub id ``path``."""
        return qwen_random.shipped_config(path)

    @classmethod
    def stand_in_processor(cls, path: str, config: Any) -> Any:
        """Return a processor with exact numbers of visual tokens, approximate ones of text."""
        return qwen_random.processor(path)

    @classmethod
    def load(cls, params: HostParams) -> tuple[nn.Module, Any]:
        """Load model and processor, and limit the pixels of a frame as in ``params``."""
        model, processor = super().load(params)
        return model, limit_pixels(processor, params)

    @classmethod
    def narrow(cls, config: Any) -> Any:
        """Return ``config`` with the same layers, each as narrow as possible."""
        return qwen_random.narrow(config)

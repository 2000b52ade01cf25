"""Qwen2-VL (arXiv 2409.12191): dynamic resolution, two frames a step, no time in M-RoPE."""

from typing import Any

from torch import nn

from modulate.hosts.host import Host
from modulate.hosts.loading import HostParams
from modulate_hosts import qwen_random
from modulate_hosts.qwen_params import QwenParams, limit_pixels


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

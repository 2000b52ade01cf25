"""LLaVA (arXiv 2304.08485) and LLaVA-NeXT-Video: pictures shown whole."""

from typing import Any

from modulate.hosts.host import Host
from modulate.hosts.prompt_grids import Modality
from modulate.interfaces.messages import Visual


class Llava(Host):
    """LLaVA: it knows no videos, so that a clip is shown as one picture a frame."""

    model_types = ("llava",)

    def picture_settings(self, component: Any) -> dict[str, Any]:
        """Return arguments with which pictures are stretched, neither cropped nor padded."""
        settings = super().picture_settings(component)
        return settings | ({"do_pad": False} if hasattr(component, "do_pad") else {})


class LlavaNextVideo(Host):
    """LLaVA-NeXT-Video: a picture is shown as a clip of one frame.

    As a picture it would be cut into tiles (``anyres``) with a separator at the end of every line.
    """

    model_types = ("llava_next_video",)

    def modality(self, visual: Visual) -> Modality:
        """Return "video" for everything."""
        return "video"

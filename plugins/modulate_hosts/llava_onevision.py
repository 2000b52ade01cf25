"""LLaVA-OneVision (arXiv 2408.03326): a fixed number of tokens a frame, a separator at the end."""

from collections.abc import Sequence

from modulate.hosts.host import Host
from modulate.interfaces.visual_grid import VisualGrid


class LlavaOnevision(Host):
    """LLaVA-OneVision: a clip's last placeholder is the learned ``image_newline``, without a place.

    Serves videos, and images in prompts with several of them. A single image that is cut into
    patches (``anyres``) also has a separator at the end of every line: its placeholders do not fit
    a grid, and their number is refused.
    """

    model_types = ("llava_onevision",)

    def placeholders(self, grid: VisualGrid) -> Sequence[int]:
        """Return the grid's tokens, and −1 for the separator at the end."""
        return [*range(grid.tokens), -1]

"""LLaVA-OneVision (arXiv 2408.03326): a fixed number of tokens a frame, a separator at the end."""

from collections.abc import Sequence

from modulate.hosts.host import Host
from modulate.hosts.prompt_grids import Modality
from modulate.interfaces.messages import Visual
from modulate.interfaces.visual_grid import VisualGrid


class LlavaOnevision(Host):
    """LLaVA-OneVision: a clip's last placeholder is the learned ``image_newline``, without a place.

    A picture is encoded as a clip of one frame. As a picture it would be cut into patches
    (``anyres``) with a separator at the end of every line; inputs that are made in that way have
    placeholders that do not fit a grid, and their number is refused.
    """

    model_types = ("llava_onevision",)

    def modality(self, visual: Visual) -> Modality:
        """Return "video" for everything."""
        return "video"

    def placeholders(self, grid: VisualGrid) -> Sequence[int]:
        """Return the grid's tokens, and −1 for the separator at the end."""
        return [*range(grid.tokens), -1]

"""LLaVA-OneVision (arXiv 2408.03326): frames pooled to a fixed number of tokens, one separator
after every clip.
"""

from collections.abc import Sequence

from modulate.hosts.host import Host
from modulate.interfaces.visual_grid import VisualGrid


class LlavaOnevision(Host):
    """LLaVA-OneVision: the last placeholder of a clip is the learned ``image_newline``, which shows
    no place.

    Serves videos and the images of prompts with several of them. A single image that is cut into
    patches (``anyres``) has a separator at the end of every line as well: its placeholders do not
    fit a grid, and are refused by their number.
    """

    model_types = ("llava_onevision",)

    def placeholders(self, grid: VisualGrid) -> Sequence[int]:
        """Return the grid's tokens and −1 for the separator at the end."""
        return [*range(grid.tokens), -1]

"""Video-LLaVA (arXiv 2311.10122): the frames of a video keep their class token, images do not."""

from collections.abc import Sequence

from modulate.hosts.host import Host
from modulate.interfaces.visual_grid import VisualGrid


class VideoLlava(Host):
    """Video-LLaVA: of every video frame the first placeholder is the vision tower's class token,
    which shows no place.
    """

    model_types = ("video_llava",)

    def placeholders(self, grid: VisualGrid) -> Sequence[int]:
        """Return the grid's tokens, for clips of several steps with −1 before those of each step."""
        if grid.steps == 1:
            return range(grid.tokens)
        n = grid.tokens_per_step
        return [
            place for step in range(grid.steps) for place in (-1, *range(step * n, (step + 1) * n))
        ]

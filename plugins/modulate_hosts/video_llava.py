"""Video-LLaVA (arXiv 2311.10122): frames of a video keep their class token, images do not."""

from collections.abc import Sequence

from modulate.hosts.host import Host
from modulate.hosts.prompt_grids import Modality
from modulate.interfaces.messages import VideoClip, Visual
from modulate.interfaces.visual_grid import VisualGrid


class VideoLlava(Host):
    """Video-LLaVA: a video frame's first placeholder is the class token, which has no place."""

    model_types = ("video_llava",)

    def modality(self, visual: Visual) -> Modality:
        """Return "image" for pictures and clips of one frame, whose grids look the same."""
        frames = len(visual.frames.times) if isinstance(visual, VideoClip) else 1
        return "video" if frames > 1 else "image"

    def placeholders(self, grid: VisualGrid) -> Sequence[int]:
        """Return the grid's tokens; in a video, −1 comes before those of each frame."""
        if grid.steps == 1:
            return range(grid.tokens)
        per_step = grid.tokens_per_step
        places: list[int] = []
        for step in range(grid.steps):
            places += [-1, *range(step * per_step, (step + 1) * per_step)]
        return places

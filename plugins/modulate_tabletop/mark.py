"""An oracle for the small host: the mark it was trained on, drawn where the viewer looks."""

import math

import numpy as np

from modulate.interfaces.components import HostInput, InputTransform, Params
from modulate.interfaces.signal import Signal
from modulate_gaze.inputs import draw_on_frames
from modulate_tabletop.render import draw_mark


class TaughtMarkParams(Params):
    """``tabletop_mark`` has no parameters."""


class TaughtMark(InputTransform):
    """Draws the mark of the host's training beside the object looked at, on every frame.

    The mark is a white square with a dark rim. Its accuracy bounds what the host can answer when it
    sees where the viewer looked. The mark keeps its size in pixels, so on frames of another size
    than the world's it differs from training.
    """

    Params = TaughtMarkParams
    signal_kind = "gaze"

    def __init__(self, params: TaughtMarkParams) -> None:
        self.params = params

    def __call__(self, turn: HostInput, signal: Signal, window: tuple[float, float]) -> HostInput:
        """Return the turn with marked copies of the frames; each shows its nearest fixation."""
        return draw_on_frames(
            turn,
            signal,
            math.inf,
            lambda image, x, y: draw_mark(
                image, np.array([x * image.shape[1], y * image.shape[0]])
            ),
        )

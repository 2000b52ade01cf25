"""An oracle for the small host: the mark that it was taught, drawn where the viewer looks."""

import math

import numpy as np

from modulate.interfaces.components import HostInput, InputTransform, Params
from modulate.interfaces.signal import Signal
from modulate_gaze.inputs import drawn
from modulate_tabletop.render import draw_mark


class TaughtMarkParams(Params):
    """``tabletop_mark`` has no parameters."""


class TaughtMark(InputTransform):
    """Draws the mark of the host's training (a white square with a dark rim) beside what is looked
    at, on every frame: what the host can answer when it sees
    where one looked. On frames of another size than the world's it is drawn as large, which the
    host was not taught.
    """

    Params = TaughtMarkParams
    signal_kind = "gaze"

    def __init__(self, params: TaughtMarkParams) -> None:
        self.params = params

    def __call__(self, given: HostInput, signal: Signal, window: tuple[float, float]) -> HostInput:
        """Return the turn with marks on copies of the frames; a frame between two fixations shows
        the nearer one's.
        """
        return drawn(
            given,
            signal,
            math.inf,
            lambda image, x, y: draw_mark(
                image, np.array([x * image.shape[1], y * image.shape[0]])
            ),
        )

"""Which gaze positions are believable: shared by the scanpath itself and by the readers of files."""

OFF_SCREEN = (-0.5, 1.5)
"""Positions kept, in fractions of the frame.

Outside [0, 1] the viewer looked past the frame's edge, which head-worn eye trackers report as it
is.
"""

PIXELS_FROM = 2.0
"""From here on a coordinate is taken for pixels: twice a frame's size is no gaze that a scene
camera could relate to the frame.
"""

_SIDE = {"x": "width", "y": "height"}


def position_problem(axis: str, name: str, value: float) -> str:
    """Say what is wrong with a coordinate and what to do; empty when it is fine. ``axis``: "x" or
    "y"; ``name``: what the user calls it.
    """
    low, high = OFF_SCREEN
    if low <= value <= high:
        return ""
    if abs(value) >= PIXELS_FROM:
        return (
            f"{name} {value!r} looks like pixels; divide by the frame's {_SIDE[axis]} so that"
            " positions lie in [0, 1], origin top-left."
        )
    return (
        f"{name} {value!r} is too far off-screen: allowed are {low} to {high} of the frame's"
        f" {_SIDE[axis]}. Correct or remove the fixation."
    )

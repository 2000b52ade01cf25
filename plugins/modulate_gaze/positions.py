"""Plausible gaze positions; shared by the scanpath and by the readers of files."""

OFF_SCREEN = (-0.5, 1.5)
"""Range of accepted positions, fractions of the frame.

Outside [0, 1], the viewer looked past the frame's edge; head-worn eye trackers report that.
"""

PIXELS_FROM = 2.0
"""Coordinates from this value on are taken for pixels.

No scene camera could relate gaze at twice the frame's size to the frame.
"""

_SIDE = {"x": "width", "y": "height"}


def position_problem(axis: str, name: str, value: float) -> str:
    """Return a text on what is wrong with a coordinate and what to do, or "" if it is fine.

    ``axis`` is "x" or "y", ``name`` the coordinate's name in the user's file.
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

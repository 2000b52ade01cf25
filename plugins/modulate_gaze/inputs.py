"""Show gaze to the bare host in its ordinary input: on the frames, in the prompt, or as a map.

These are StreamGaze's baselines [arXiv 2512.01707]. Inputs are never modified: frames are copied
before marks are drawn.
"""

import re
import string
from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, field_validator

from modulate.errors import ConditioningError
from modulate.interfaces.components import HostInput, InputTransform, Params
from modulate.interfaces.frames import Frames
from modulate.interfaces.signal import Signal
from modulate_gaze.activity import INSTANT, ROUNDING
from modulate_gaze.scanpath import Scanpath

Color = tuple[int, int, int]
Unit = Literal["px", "width"]
FIELDS = ("x", "y", "px", "py", "start", "end", "duration")
SPEC = re.compile(r"\d?(\.\d)?[df]?", re.ASCII)


def scanpath(signal: Signal) -> Scanpath:
    """Return the signal as a scanpath; raise :class:`ConditioningError` for another kind."""
    if not isinstance(signal, Scanpath):
        raise ConditioningError(
            f"Inputs of gaze need a scanpath, got {type(signal).__name__}. Set the recipe's"
            " `signal` to gaze, or leave the input out."
        )
    return signal


# --- drawn on the frames


class GazeOverlayParams(Params):
    """Parameters of ``gaze_overlay``."""

    shape: Literal["dot", "circle", "both"] = Field(
        "both", description="mark at a fixation [StreamGaze: both]"
    )
    dot_radius: float = Field(
        8.0, gt=0, description="radius of the filled dot, in dot_unit [StreamGaze: 8 px]"
    )
    dot_unit: Unit = Field(
        "px",
        description=(
            "px: pixels of the video's own frames; width: fraction of their width [StreamGaze: px]"
        ),
    )
    dot_color: Color = Field((0, 255, 0), description="RGB, 0 to 255 [StreamGaze: green]")
    circle_radius: float = Field(
        0.156,
        gt=0,
        description=(
            "radius of the circle, in circle_unit [StreamGaze: 100 px EGTEA, 170 px Ego4D, 0.156 of"
            " the width elsewhere]"
        ),
    )
    circle_unit: Unit = Field(
        "width",
        description=(
            "px: pixels of the video's own frames; width: fraction of their width [StreamGaze: px"
            " or width, by source]"
        ),
    )
    circle_color: Color = Field((255, 0, 0), description="RGB, 0 to 255 [StreamGaze: red]")
    line: float = Field(3.0, gt=0, description="thickness of the circle's line, px [ours]")
    reach: float = Field(
        0.0,
        ge=0,
        description=(
            "a frame without a current fixation shows the one nearest in time, if it is at most so"
            " many seconds away. 0: it shows none, so that at low frame rates a fixation between"
            " two frames is never drawn [ours]"
        ),
    )

    @field_validator("dot_color", "circle_color")
    @classmethod
    def _bytes(cls, value: Color) -> Color:
        if not all(0 <= part <= 255 for part in value):
            raise ValueError("a color has three parts from 0 to 255")
        return value


class GazeOverlay(InputTransform):
    """Draws a mark at the gaze on every frame.

    The marks are the fixations at the frame's time, or else the nearest one within ``reach``.
    """

    Params = GazeOverlayParams
    signal_kind = "gaze"

    def __init__(self, params: GazeOverlayParams) -> None:
        self.params = params

    def __call__(self, turn: HostInput, signal: Signal, window: tuple[float, float]) -> HostInput:
        """Return the turn with marked copies of the frames.

        A mark beyond the frame's edge is visible only as far as it reaches into the frame.
        """
        return draw_on_frames(turn, signal, self.params.reach, self.draw)

    def draw(self, image: NDArray[np.uint8], x: float, y: float) -> None:
        """Draw one mark into ``image`` (height, width, 3); x and y are fractions of the frame."""
        params = self.params
        height, width = image.shape[:2]
        rows, cols = np.ogrid[:height, :width]
        distance = np.hypot(cols + 0.5 - x * width, rows + 0.5 - y * height)  # of pixel centers
        if params.shape != "dot":
            radius = _pixels(params.circle_radius, params.circle_unit, width)
            image[np.abs(distance - radius) <= params.line / 2] = params.circle_color
        if params.shape != "circle":
            image[distance <= _pixels(params.dot_radius, params.dot_unit, width)] = params.dot_color


def _pixels(radius: float, unit: Unit, width: int) -> float:
    return radius * width if unit == "width" else radius


def draw_on_frames(
    turn: HostInput,
    signal: Signal,
    reach: float,
    draw: Callable[[NDArray[np.uint8], float, float], None],
) -> HostInput:
    """Return the turn with marked copies of its frames.

    Calls ``draw(image, x, y)`` for every fixation that :func:`shown_at` returns for a frame.
    """
    gaze = scanpath(signal)
    images = turn.frames.images.copy()
    for image, time in zip(images, turn.frames.times, strict=True):
        for x, y in shown_at(gaze, time, reach):
            draw(image, x, y)
    return replace(turn, frames=Frames(images, turn.frames.times))


def shown_at(gaze: Scanpath, time: float, reach: float) -> list[tuple[float, float]]:
    """Return x, y of the fixations at ``time`` (s), in their order.

    If there is none, return the nearest in time within ``reach`` (s); the earlier of two.
    """
    if not len(gaze):
        return []
    away = np.maximum(np.maximum(gaze.starts - time, time - gaze.ends), 0.0)
    chosen = np.flatnonzero(away <= ROUNDING)
    if not len(chosen) and away.min() <= reach + ROUNDING:
        chosen = np.array([int(away.argmin())])
    return [(float(x), float(y)) for x, y in gaze.fixations[chosen, :2]]


# --- written into the prompt


class GazeTextParams(Params):
    """Parameters of ``gaze_text``."""

    heading: str = Field(
        "The viewer looked at these places (x from left, y from top, as fractions of the frame;"
        " time in seconds of the clip):",
        description="line before the fixations [ours]",
    )
    line: str = Field(
        "{start:.1f} to {end:.1f}: x {x:.2f}, y {y:.2f}",
        description=(
            "one fixation; knows x and y (fractions of the frame), px and py (pixels of the video's"
            " frames), start, end and duration (s) [ours]"
        ),
    )
    empty: str = Field(
        "It is not known where the viewer looked.",
        description="text for a clip without fixations, instead of heading and lines [ours]",
    )
    most: int | None = Field(
        None, ge=1, description="number of latest fixations to write; null: all [ours]"
    )
    clock: Literal["clip", "video"] = Field(
        "clip",
        description="clip: times count from the clip's start; video: from the video's [ours]",
    )
    place: Literal["before", "after"] = Field(
        "before",
        description="position in the prompt: before or after the question and its options [ours]",
    )

    @field_validator("line")
    @classmethod
    def _known_fields(cls, value: str) -> str:
        for _, name, spec, conversion in string.Formatter().parse(value):
            if name is not None and (
                name not in FIELDS or conversion or not SPEC.fullmatch(spec or "")
            ):
                suffix = (f"!{conversion}" if conversion else "") + (f":{spec}" if spec else "")
                known = ", ".join(f"{{{field}}}" for field in FIELDS)
                raise ValueError(
                    f"{{{name}{suffix}}} is none of {known}, with at most digits as in {{x:.2f}}"
                )
        # Otherwise {x:d} would fail only at the first fixation.
        value.format(**dict.fromkeys(FIELDS, 0.0))
        return value


class GazeText(InputTransform):
    """Writes every fixation of the clip into the prompt, one line each, oldest first.

    Times are clipped to the window.
    """

    Params = GazeTextParams
    signal_kind = "gaze"

    def __init__(self, params: GazeTextParams) -> None:
        self.params = params

    def __call__(self, turn: HostInput, signal: Signal, window: tuple[float, float]) -> HostInput:
        """Return the turn with the fixations in its text."""
        params = self.params
        text = self.text(scanpath(signal), window, turn.frames.images.shape[1:3])
        parts = [text, turn.text] if params.place == "before" else [turn.text, text]
        return replace(turn, text="\n".join(parts))

    def text(self, gaze: Scanpath, window: tuple[float, float], size: tuple[int, int]) -> str:
        """Return the text for a clip's fixations; ``size`` is (height, width) of its frames."""
        params = self.params
        window_start, window_end = window
        height, width = size
        origin = window_start if params.clock == "clip" else 0.0
        lines = []
        for (x, y, _, _), start, end in zip(
            gaze.fixations.tolist(), gaze.starts.tolist(), gaze.ends.tolist(), strict=True
        ):
            start = max(start, window_start)
            end = min(end, window_end)
            values = {
                "x": x,
                "y": y,
                "px": x * width,
                "py": y * height,
                "start": start - origin,
                "end": end - origin,
                "duration": end - start,
            }
            lines.append(params.line.format(**values))
        if not lines:
            return params.empty
        if params.most is not None:
            lines = lines[-params.most :]
        return "\n".join([params.heading, *lines])


# --- a saliency map


class GazeSaliencyParams(Params):
    """Parameters of ``gaze_saliency``."""

    sigma: float = Field(
        0.05,
        gt=0,
        description=(
            "standard deviation of a fixation's Gaussian, fraction of the frame's width [ours]"
        ),
    )


class GazeSaliency(InputTransform):
    """Adds an image before the clip: a saliency map of the gaze, of the frames' size.

    It is the sum of Gaussians at all fixations of the clip, weighted by their seconds within it and
    scaled so that the brightest pixel is 255. A clip without fixations gets a black image.
    """

    Params = GazeSaliencyParams
    signal_kind = "gaze"

    def __init__(self, params: GazeSaliencyParams) -> None:
        self.params = params

    def __call__(self, turn: HostInput, signal: Signal, window: tuple[float, float]) -> HostInput:
        """Return the turn with the map as its last image."""
        return replace(
            turn,
            images=(
                *turn.images,
                self.map(scanpath(signal), window, turn.frames.images.shape[1:3]),
            ),
        )

    def map(
        self, gaze: Scanpath, window: tuple[float, float], size: tuple[int, int]
    ) -> NDArray[np.uint8]:
        """Return the map, (height, width, 3); ``size`` is (height, width)."""
        height, width = size
        spread = self.params.sigma * width
        seconds = np.maximum(
            np.minimum(gaze.ends, window[1]) - np.maximum(gaze.starts, window[0]), INSTANT
        )
        across = np.exp(
            -0.5 * ((np.arange(width) + 0.5 - gaze.fixations[:, :1] * width) / spread) ** 2
        )
        down = np.exp(
            -0.5 * ((np.arange(height) + 0.5 - gaze.fixations[:, 1:2] * height) / spread) ** 2
        )
        heat = np.einsum("f,fr,fc->rc", seconds, down, across)
        peak = heat.max(initial=0.0)
        gray = np.rint(255 * heat / peak if peak > 0 else heat).astype(np.uint8)
        return np.repeat(gray[..., None], 3, axis=2)

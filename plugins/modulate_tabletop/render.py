"""Numpy renderer of the tabletop world: a table of GRID x GRID places, objects, a hand, a camera
that drifts.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

GRID = 4  # places along one edge of the table
PLACES = GRID * GRID  # place = row * GRID + column
SIZE = 128  # pixels of a frame's edge
CELL = SIZE // GRID
SPRITE = 26  # pixels of a sprite's edge
CLASSES = ("mug", "knife", "plate", "bowl", "box", "cone", "fork", "tray")
COLOURS = {
    "red": (214, 38, 38),
    "green": (38, 168, 58),
    "blue": (48, 78, 228),
    "yellow": (232, 214, 44),
    "purple": (158, 58, 200),
    "cyan": (40, 206, 214),
    "white": (240, 240, 240),
    "orange": (242, 132, 24),
}
RGB = np.array(list(COLOURS.values()), dtype=np.float32)
SKIN = np.array((226, 176, 146), dtype=np.float32)
MARK_CORNER, MARK_EDGE = -13, 7  # a mark's corner from the object's centre, and its edge (pixels)
HAND_RADIUS, ARM = 8, 5  # pixels


def _sprites() -> np.ndarray:
    """Masks (class, SPRITE, SPRITE) of the eight shapes."""
    y, x = np.mgrid[:SPRITE, :SPRITE] - (SPRITE - 1) / 2
    ax = np.abs(x)
    ay = np.abs(y)
    r = np.hypot(x, y)
    return np.stack(
        [
            (np.maximum(ax, ay) <= 11) & (np.maximum(ax, ay) >= 6.5),  # mug: hollow square
            (ax <= 3.6) & (ay <= 12.5),  # knife: upright bar
            r <= 12,  # plate: disc
            (r <= 12.5) & (y >= -0.5) & ((r >= 7) | (y < 3)),  # bowl: half ring with a lid line
            (ax <= 10.5) & (ay <= 10.5),  # box: full square
            (ay <= 12) & (ax <= (y + 12) * 0.52),  # cone: triangle
            ((ax <= 3.2) | (ay <= 3.2)) & (ax <= 12) & (ay <= 12),  # fork: cross
            (ax <= 12.5) & (ay <= 3.6),  # tray: flat bar
        ]
    )


SPRITES = _sprites()
OUTLINES = [
    np.argwhere(mask) - SPRITE // 2 for mask in SPRITES
]  # (pixels, 2) offsets (y, x) from the object's centre
LONGEST = max(map(len, OUTLINES))
PADDED = np.stack(
    [np.concatenate([o, np.tile(o[:1], (LONGEST - len(o), 1))]) for o in OUTLINES]
)  # a repeated pixel paints nothing new


@dataclass(frozen=True)
class Layout:
    """What stays the same on one table: places off the regular grid by ``jitter`` pixels, the
    texture and the light.
    """

    jitter: np.ndarray  # (PLACES, 2) pixels, x and y, within ±2
    texture: int  # seed of the table's look
    brightness: float  # factor on the table's colour, 0.5..1.25

    @staticmethod
    def random(rng: np.random.Generator) -> "Layout":
        """Draw a layout."""
        return Layout(
            rng.uniform(-2, 2, (PLACES, 2)), int(rng.integers(2**31)), float(rng.uniform(0.5, 1.25))
        )


def centers(layout: Layout) -> np.ndarray:
    """(PLACES, 2) centres in pixels, x and y, without camera drift."""
    index = np.arange(PLACES)
    return np.stack([index % GRID, index // GRID], -1) * CELL + CELL / 2 + layout.jitter


def place_center(layout: Layout, place: int) -> tuple[float, float]:
    """Centre of a place in [0, 1] of the frame, without camera drift."""
    x, y = centers(layout)[place] / SIZE
    return float(x), float(y)


@lru_cache(maxsize=64)
def table(texture: int, brightness: float) -> np.ndarray:
    """The bare table, (SIZE, SIZE, 3) float32 in 0..255: tint, grain, shade."""
    rng = np.random.default_rng(texture)
    y, x = np.mgrid[:SIZE, :SIZE].astype(np.float32)
    tint = np.array((62, 50, 40), dtype=np.float32) * brightness + rng.uniform(-8, 8, 3)
    angle = rng.uniform(0, np.pi)
    period = rng.uniform(9, 40)
    grain = np.sin((x * np.cos(angle) + y * np.sin(angle)) * 2 * np.pi / period) * rng.uniform(0, 9)
    shade = (x * rng.uniform(-1, 1) + y * rng.uniform(-1, 1)) * (12 / SIZE)
    return np.clip(tint + (grain + shade)[..., None], 0, 255).astype(np.float32)


def draw_objects(
    images: np.ndarray, points: np.ndarray, kinds: np.ndarray, colours: np.ndarray
) -> None:
    """Paint objects in place; ``images`` (n, SIZE, SIZE, 3), ``points`` (n, PLACES, 2) centres in
    pixels, kind −1 = none.
    """
    frame, place = np.nonzero(kinds >= 0)
    kind = kinds[frame, place]
    colour = colours[frame, place]
    point = np.rint(points[frame, place]).astype(int)
    at = point[:, None, ::-1] + PADDED[kind]
    np.clip(at, 0, SIZE - 1, out=at)
    index = (frame[:, None] * SIZE + at[..., 0]) * SIZE + at[..., 1]
    images.reshape(-1, 3)[index] = RGB[colour][:, None]


def draw_mark(image: np.ndarray, centre: np.ndarray) -> None:
    """A small white square with a dark rim at the upper left of an object, in place: only host
    training draws it.
    """
    x, y = np.maximum(np.rint(centre).astype(int) + MARK_CORNER, 0).tolist()
    image[y : y + MARK_EDGE, x : x + MARK_EDGE] = 8
    image[y + 1 : y + MARK_EDGE - 1, x + 1 : x + MARK_EDGE - 1] = 252


def draw_hand(image: np.ndarray, x: float, y: float) -> None:
    """A disc and, below it, the arm down to the lower edge; in place, ``x`` and ``y`` in pixels."""
    top = int(max(y - HAND_RADIUS - 1, 0))
    if top >= SIZE:
        return
    yy, xx = np.mgrid[top:SIZE, :SIZE]
    mask = (np.hypot(xx - x, yy - y) <= HAND_RADIUS) | (
        (np.abs((xx - x) - (yy - y) * 0.15) <= ARM) & (yy >= y)
    )
    image[top:][mask] = SKIN


def render(
    layout: Layout,
    kinds: np.ndarray,
    colours: np.ndarray,
    camera: tuple[float, float] = (0.0, 0.0),
    hand: tuple[float, float] | None = None,
    marks: Sequence[int] = (),
    noise_rng: np.random.Generator | None = None,
) -> np.ndarray:
    """One frame, (SIZE, SIZE, 3) uint8.

    ``kinds`` (PLACES,) indexes CLASSES, −1 = empty; ``colours`` (PLACES,) indexes COLOURS.
    ``camera`` shifts everything by pixels, ``hand`` is the hand's centre in [0, 1] before that
    shift, ``marks`` are marked places. ``noise_rng`` adds sensor noise.
    """
    shift = np.rint(np.asarray(camera, dtype=float))
    image = np.roll(
        table(layout.texture, layout.brightness), (int(shift[1]), int(shift[0])), (0, 1)
    ).copy()
    points = centers(layout) + shift
    draw_objects(image[None], points[None], np.asarray(kinds)[None], np.asarray(colours)[None])
    for place in marks:
        draw_mark(image, points[place])
    if hand is not None:
        draw_hand(image, hand[0] * SIZE + shift[0], hand[1] * SIZE + shift[1])
    if noise_rng is not None:
        image += noise_rng.standard_normal(image.shape[:2], dtype=np.float32)[..., None] * 2.5
    return np.clip(image, 0, 255).astype(np.uint8)

"""Numpy renderer of the tabletop world: GRID x GRID places, objects, a hand, a drifting camera."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

GRID = 4  # places along one edge of the table
PLACES = GRID * GRID  # place = row * GRID + column
SIZE = 128  # edge of a frame, pixels
CELL = SIZE // GRID
SPRITE = 26  # edge of a sprite, pixels
CLASSES = ("mug", "knife", "plate", "bowl", "box", "cone", "fork", "tray")
COLORS = {
    "red": (214, 38, 38),
    "green": (38, 168, 58),
    "blue": (48, 78, 228),
    "yellow": (232, 214, 44),
    "purple": (158, 58, 200),
    "cyan": (40, 206, 214),
    "white": (240, 240, 240),
    "orange": (242, 132, 24),
}
RGB = np.array(list(COLORS.values()), dtype=np.float32)
SKIN = np.array((226, 176, 146), dtype=np.float32)
MARK_CORNER = -13  # offset of a mark's corner from the object's center, pixels
MARK_EDGE = 7  # pixels
HAND_RADIUS = 8  # pixels
ARM = 5  # half width of the arm, pixels


def _sprites() -> np.ndarray:
    """Return the masks (class, SPRITE, SPRITE) of the eight shapes."""
    y, x = np.mgrid[:SPRITE, :SPRITE] - (SPRITE - 1) / 2
    ax = np.abs(x)
    ay = np.abs(y)
    radius = np.hypot(x, y)
    return np.stack(
        [
            (np.maximum(ax, ay) <= 11) & (np.maximum(ax, ay) >= 6.5),  # mug: hollow square
            (ax <= 3.6) & (ay <= 12.5),  # knife: upright bar
            radius <= 12,  # plate: disc
            (radius <= 12.5)
            & (y >= -0.5)
            & ((radius >= 7) | (y < 3)),  # bowl: half ring with a lid line
            (ax <= 10.5) & (ay <= 10.5),  # box: full square
            (ay <= 12) & (ax <= (y + 12) * 0.52),  # cone: triangle
            ((ax <= 3.2) | (ay <= 3.2)) & (ax <= 12) & (ay <= 12),  # fork: cross
            (ax <= 12.5) & (ay <= 3.6),  # tray: flat bar
        ]
    )


SPRITES = _sprites()
OFFSETS = [np.argwhere(mask) - SPRITE // 2 for mask in SPRITES]
"""Offsets (pixel, 2) of each sprite's pixels from the object's center, y and x."""
MOST_PIXELS = max(map(len, OFFSETS))
# Sprites differ in size. Repeating a pixel paints nothing new and allows one array for all.
PADDED = np.stack(
    [
        np.concatenate([pixels, np.tile(pixels[:1], (MOST_PIXELS - len(pixels), 1))])
        for pixels in OFFSETS
    ]
)


@dataclass(frozen=True)
class Layout:
    """The constant look of one table: jittered places, texture, light."""

    jitter: np.ndarray  # (PLACES, 2) pixels, x and y, within ±2
    texture: int  # seed of the table's look
    brightness: float  # factor on the table's color, 0.5..1.25

    @staticmethod
    def random(rng: np.random.Generator) -> "Layout":
        """Draw a layout."""
        return Layout(
            rng.uniform(-2, 2, (PLACES, 2)), int(rng.integers(2**31)), float(rng.uniform(0.5, 1.25))
        )


def centers(layout: Layout) -> np.ndarray:
    """Return the centers of the places, (PLACES, 2) pixels, x and y, without camera drift."""
    index = np.arange(PLACES)
    return np.stack([index % GRID, index // GRID], -1) * CELL + CELL / 2 + layout.jitter


def place_center(layout: Layout, place: int) -> tuple[float, float]:
    """Return the center of a place in [0, 1] of the frame, without camera drift."""
    x, y = centers(layout)[place] / SIZE
    return float(x), float(y)


@lru_cache(maxsize=64)
def table(texture: int, brightness: float) -> np.ndarray:
    """Return the bare table, (SIZE, SIZE, 3) float32 in 0..255: tint, grain, shade."""
    rng = np.random.default_rng(texture)
    y, x = np.mgrid[:SIZE, :SIZE].astype(np.float32)
    tint = np.array((62, 50, 40), dtype=np.float32) * brightness + rng.uniform(-8, 8, 3)
    angle = rng.uniform(0, np.pi)
    period = rng.uniform(9, 40)
    grain = np.sin((x * np.cos(angle) + y * np.sin(angle)) * 2 * np.pi / period) * rng.uniform(0, 9)
    shade = (x * rng.uniform(-1, 1) + y * rng.uniform(-1, 1)) * (12 / SIZE)
    return np.clip(tint + (grain + shade)[..., None], 0, 255).astype(np.float32)


def draw_objects(
    images: np.ndarray, points: np.ndarray, kinds: np.ndarray, colors: np.ndarray
) -> None:
    """Paint objects into ``images`` (n, SIZE, SIZE, 3), in place.

    ``points`` (n, PLACES, 2) are centers in pixels. A kind of −1 means an empty place.
    """
    frame, place = np.nonzero(kinds >= 0)
    kind = kinds[frame, place]
    color = colors[frame, place]
    point = np.rint(points[frame, place]).astype(int)
    at = point[:, None, ::-1] + PADDED[kind]
    np.clip(at, 0, SIZE - 1, out=at)
    index = (frame[:, None] * SIZE + at[..., 0]) * SIZE + at[..., 1]
    images.reshape(-1, 3)[index] = RGB[color][:, None]


def draw_mark(image: np.ndarray, center: np.ndarray) -> None:
    """Draw a small white square with a dark rim at the upper left of an object, in place.

    The world's videos have no marks: only the training of the host and the oracle draw them.
    """
    x, y = np.maximum(np.rint(center).astype(int) + MARK_CORNER, 0).tolist()
    image[y : y + MARK_EDGE, x : x + MARK_EDGE] = 8
    image[y + 1 : y + MARK_EDGE - 1, x + 1 : x + MARK_EDGE - 1] = 252


def draw_hand(image: np.ndarray, x: float, y: float) -> None:
    """Draw a disk and below it the arm, down to the lower edge, in place; x and y in pixels."""
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
    colors: np.ndarray,
    camera: tuple[float, float] = (0.0, 0.0),
    hand: tuple[float, float] | None = None,
    marks: Sequence[int] = (),
    noise_rng: np.random.Generator | None = None,
) -> np.ndarray:
    """Return one frame, (SIZE, SIZE, 3) uint8.

    ``kinds`` (PLACES,) indexes CLASSES, −1 = empty; ``colors`` (PLACES,) indexes COLORS.
    ``camera`` shifts everything by pixels, ``hand`` is the hand's center in [0, 1] before that
    shift, ``marks`` are marked places. ``noise_rng`` adds sensor noise.
    """
    shift = np.rint(np.asarray(camera, dtype=float))
    image = np.roll(
        table(layout.texture, layout.brightness), (int(shift[1]), int(shift[0])), (0, 1)
    ).copy()
    points = centers(layout) + shift
    draw_objects(image[None], points[None], np.asarray(kinds)[None], np.asarray(colors)[None])
    for place in marks:
        draw_mark(image, points[place])
    if hand is not None:
        draw_hand(image, hand[0] * SIZE + shift[0], hand[1] * SIZE + shift[1])
    if noise_rng is not None:
        image += noise_rng.standard_normal(image.shape[:2], dtype=np.float32)[..., None] * 2.5
    return np.clip(image, 0, 255).astype(np.uint8)

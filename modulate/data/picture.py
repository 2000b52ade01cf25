"""Still images: read from files of common formats, upright and in RGB."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from modulate.data.video_containers import MAX_PIXELS
from modulate.errors import MissingFileError, VideoError

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF")
"""Formats that are read, by Pillow's names; none of them can name another file."""


def is_picture(path: Path) -> bool:
    """Return whether the file is a still image, by its content and not by its name.

    Raises :class:`MissingFileError`.
    """
    _require_file(path)
    Image.init()  # else Pillow refuses the names of formats that it has not met yet
    try:
        with Image.open(path, formats=FORMATS):
            return True
    except (UnidentifiedImageError, OSError, Image.DecompressionBombError):
        return False


def read_picture(path: Path) -> NDArray[np.uint8]:
    """Return a picture as (height, width, 3) uint8 RGB, turned upright as its file says.

    Raises :class:`MissingFileError`, and :class:`VideoError` for a file that is no picture, is
    damaged, moves, or has more pixels than a frame of a video may have.
    """
    with _opened(path) as opened:
        return from_pil(opened)


def picture_size(path: Path) -> tuple[int, int]:
    """Return the height and width of an upright picture without decoding it.

    Raises the errors of :func:`read_picture` that concern the file's header.
    """
    with _opened(path) as opened:
        turned = opened.getexif().get(ExifTags.Base.Orientation, 1) >= 5
        return (opened.width, opened.height) if turned else (opened.height, opened.width)


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """Open a picture; errors of Pillow within the block become :class:`VideoError`."""
    _require_file(path)
    Image.init()
    try:
        with warnings.catch_warnings():
            # Our own limit is lower than the one that Pillow warns of.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path, formats=FORMATS) as opened:
                if opened.width * opened.height > MAX_PIXELS:
                    raise VideoError(
                        f"{path} has {opened.width} × {opened.height} pixels; pictures may have at"
                        f" most {MAX_PIXELS:,}."
                    )
                # Phones' MPO files hold further views of the same scene; the first one is shown.
                if getattr(opened, "n_frames", 1) > 1 and opened.format != "MPO":
                    raise VideoError(
                        f"{path} is a moving {opened.format}. Save the frame to ask about, or"
                        " convert it to a video."
                    )
                yield opened
    except UnidentifiedImageError as error:
        raise VideoError(
            f"{path} is no picture in a format that is read: {', '.join(FORMATS)}."
        ) from error
    # Pillow's decoders raise these for damaged files.
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        if isinstance(error, VideoError):
            raise
        raise VideoError(f"{path} cannot be decoded as a picture: {error}.") from error


def from_pil(image: Any) -> NDArray[np.uint8]:
    """Return a PIL image as (height, width, 3) uint8 RGB, upright; transparency is on white."""
    upright = ImageOps.exif_transpose(image)
    if upright.has_transparency_data:
        layer = upright.convert("RGBA")
        white = Image.new("RGBA", layer.size, "white")
        upright = Image.alpha_composite(white, layer)
    return np.asarray(upright.convert("RGB"), dtype=np.uint8).copy()


def _require_file(path: Path) -> None:
    if not path.is_file():
        raise MissingFileError(f"There is no file at {path}. Check the path.")
    if path.stat().st_size == 0:
        raise VideoError(f"{path} is empty (0 bytes). Copy or download it again.")

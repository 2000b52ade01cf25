"""The videos, pictures and signals that a table names, found in its folder. Imports no torch."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from modulate.data.video import probe
from modulate.errors import DataError, MissingFileError
from modulate.utils.paths import checked_name
from modulate_table.cells import file_name

PICTURES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"})
"""Suffixes that only pictures have; GIFs may be either."""


class Files:
    """Finds files by the names in a table.

    Args:
        root: folder of the table.
        allow_outside: whether names may leave it.
        trusted: further folders in which files with absolute names may lie.
    """

    def __init__(self, root: Path, allow_outside: bool, trusted: Sequence[Path] = ()) -> None:
        self.root = root
        self._allow_outside = allow_outside
        folders = (root, *trusted)
        self._trusted = [
            form for folder in folders for form in (folder.absolute(), folder.resolve())
        ]
        self._ends: dict[Path, float] = {}

    def find(self, value: Any, what: str) -> Path:
        """Return the file that a cell names; ``what`` names the field in errors.

        Raises :class:`DataError` for a name that leaves the folder, and :class:`MissingFileError`
        if there is no such file.
        """
        name = file_name(value, what)
        path = name if isinstance(name, Path) else self._path(name, what)
        if not path.is_file():
            raise MissingFileError(f"{what}: there is no file at {path}")
        return path

    def find_media(self, value: Any, what: str, kind: str) -> Path:
        """Return a file of the ``kind`` video or image, likewise."""
        path = self.find(value, what)
        if kind == "video" and path.suffix.lower() in PICTURES:
            raise DataError(f"{what}: {path.name} is a picture, which belongs in `image`")
        return path

    def _path(self, name: str, what: str) -> Path:
        if self._allow_outside:
            return self.root / Path(name).expanduser()
        path = Path(name)
        # Libraries write absolute paths. They are harmless inside the folder.
        if ".." not in path.parts and any(path.is_relative_to(folder) for folder in self._trusted):
            return path
        try:
            return self.root / checked_name(name, what)
        except DataError as error:
            raise DataError(
                f"{str(error).rstrip('.')}; or, in a table of your own, set allow_outside: true"
            ) from None

    def end(self, video: Path) -> float:
        """Return the end of a video, s. Raises :class:`~modulate.errors.VideoError`."""
        if video not in self._ends:
            self._ends[video] = probe(video).duration
        return self._ends[video]

"""Files that are either whole or not there, and what is in them."""

import hashlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from modulate.errors import MissingFileError

_hashes: dict[tuple[str, int, int], str] = {}


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a temporary file beside ``path``, flush it to disk, and rename it into place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        write(temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o644)  # mkstemp makes it private; results are meant to be read
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def content_hash(path: str | Path) -> str:
    """Return the sha256 (hex) of the file's content; kept in this process until its size or modification time changes.

    Raises :class:`MissingFileError`.
    """
    path = Path(path)
    if not path.is_file():
        raise MissingFileError(f"There is no file at {path}. Check the path, or the folder that the recipe names.")
    stat = path.stat()
    key = (str(path.resolve()), stat.st_size, stat.st_mtime_ns)
    if key not in _hashes:
        with path.open("rb") as file:
            _hashes[key] = hashlib.file_digest(file, "sha256").hexdigest()
    return _hashes[key]

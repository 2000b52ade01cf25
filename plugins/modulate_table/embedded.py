"""Pictures and videos embedded in Parquet and Arrow tables, written to files. Imports no torch."""

import hashlib
from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Any

from modulate.utils.atomic_files import write_atomically

SIGNATURES = (
    (0, b"\x89PNG", ".png"),
    (0, b"\xff\xd8\xff", ".jpg"),
    (8, b"WEBP", ".webp"),
    (0, b"BM", ".bmp"),
    (4, b"ftyp", ".mp4"),
    (0, b"\x1a\x45\xdf\xa3", ".mkv"),
    (8, b"AVI ", ".avi"),
)
"""Position and bytes that begin files of a format, and the format's suffix."""


def extract(values: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Return a row with its embedded files written to ``folder``, as paths.

    The library `datasets` stores a picture or video as {bytes, path}. A file is named by its
    content, so that the same one is written once. Raises
    :class:`~modulate.errors.StorageError`.
    """
    return {column: _extract(value, folder) for column, value in values.items()}


def _extract(value: Any, folder: Path) -> Any:
    if isinstance(value, list):
        return [_extract(item, folder) for item in value]
    if not (isinstance(value, dict) and value.keys() == {"bytes", "path"}):
        return value
    data = value["bytes"]
    if data is None:
        return value["path"]
    file = folder / f"{hashlib.sha256(data).hexdigest()[:32]}{_suffix(data, value['path'])}"
    if not file.is_file() or file.stat().st_size != len(data):
        write_atomically(file, lambda temporary: temporary.write_bytes(data))
    return file


def _suffix(data: bytes, path: object) -> str:
    for place, signature, suffix in SIGNATURES:
        if data[place : place + len(signature)] == signature:
            return suffix
    suffix = PurePath(path).suffix if isinstance(path, str) else ""
    return suffix.lower() if suffix[1:].isalnum() else ""

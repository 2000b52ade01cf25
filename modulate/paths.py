"""Paths as recipes write them: plain, or inside an installed package."""

import importlib.util
from pathlib import Path

from modulate.errors import MissingFileError

PREFIX = "package:"


def resolve(text: str) -> Path:
    """Return the existing file or folder that ``text`` names.

    ``text`` is a plain path (``~`` means the home directory; relative ones start at the working directory) or ``package:NAME/sub/path``:
    something inside the installed package NAME, dotted for a subpackage. The package is located, not imported, unless it is a subpackage,
    whose parents are. Raises :class:`modulate.errors.MissingFileError`, saying what was looked for, when there is no such thing.
    """
    if not text.strip():
        raise MissingFileError(f"An empty path was given; write a path, or {PREFIX}NAME/sub/path for a file inside an installed package.")
    if text.startswith(PREFIX):
        return _inside_package(text)
    path = Path(text).expanduser()
    if not path.exists():
        raise MissingFileError(f"{text!r} does not exist: looked for {path.absolute()}. Check the spelling, or the directory that the command runs in.")
    return path


def _inside_package(text: str) -> Path:
    """Resolve ``package:NAME/sub/path``."""
    name, _, inner = text.removeprefix(PREFIX).partition("/")
    if ".." in Path(inner).parts or inner.startswith("/"):
        raise MissingFileError(f"{text!r} leaves the package {name!r}; write a path inside it, without '..' and with a single slash after the name.")
    folders = _folders(name)
    if not folders:
        raise MissingFileError(f"{text!r} names the package {name!r}, but no such package is installed. Install it, or write {PREFIX}NAME/sub/path.")
    candidates = [folder / inner for folder in folders]
    for path in candidates:
        if path.exists():
            return path
    raise MissingFileError(f"{text!r} does not exist: looked for {', '.join(map(str, candidates))}. Check the spelling, or reinstall {name!r}.")


def _folders(name: str) -> list[Path]:
    """Return the folders of the package ``name``; none when it is not installed, or is a single module."""
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        return []
    return [Path(folder) for folder in (spec.submodule_search_locations or [])] if spec else []

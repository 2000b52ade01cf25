"""Paths as recipes write them: plain, or inside an installed package; and names as data files write
them, which never leave their folder.
"""

import importlib.util
from contextlib import suppress
from pathlib import Path, PurePosixPath, PureWindowsPath

from modulate.errors import DataError, MissingFileError, shown

PREFIX = "package:"


def resolve(text: str) -> Path:
    """Return the existing file or folder that ``text`` names.

    ``text`` is a plain path (``~`` means the home directory; relative ones start at the working
    directory) or ``package:NAME/sub/path``: something inside the installed package NAME, dotted for
    a subpackage. The package is located, never imported. Raises
    :class:`modulate.errors.MissingFileError`, saying what was looked for, when there is no such
    thing.
    """
    if not text.strip():
        raise MissingFileError(
            f"An empty path was given; write a path, or {PREFIX}NAME/sub/path for a file inside an"
            " installed package."
        )
    if text.startswith(PREFIX):
        return _inside_package(text)
    try:
        path = Path(text).expanduser()
        if path.exists():
            return path
    except (
        OSError,
        RuntimeError,
        ValueError,
    ) as error:  # longer than names may be; a home directory of nobody; a zero character
        raise MissingFileError(
            f"{shown(text)} cannot be looked for: {getattr(error, 'strerror', None) or error}."
            " Check the spelling."
        ) from error
    raise MissingFileError(
        f"{text!r} does not exist: looked for {path.absolute()}. Check the spelling, or the"
        " directory that the command runs in."
    )


def _inside_package(text: str) -> Path:
    """Resolve ``package:NAME/sub/path``."""
    name, _, inner = text.removeprefix(PREFIX).partition("/")
    if ".." in Path(inner).parts or inner.startswith("/"):
        raise MissingFileError(
            f"{text!r} leaves the package {name!r}; write a path inside it, without '..' and with a"
            " single slash after the name."
        )
    folders = _folders(name)
    if not folders:
        raise MissingFileError(
            f"{text!r} names the package {name!r}, but no such package is installed. Install it, or"
            f" write {PREFIX}NAME/sub/path."
        )
    candidates = [folder / inner for folder in folders]
    for path in candidates:
        with suppress(OSError, ValueError):  # a name longer than may be
            if path.exists():
                return path
    raise MissingFileError(
        f"{text!r} does not exist: looked for {', '.join(map(str, candidates))}. Check the"
        f" spelling, or reinstall {name!r}."
    )


def _folders(name: str) -> list[Path]:
    """Return the folders of the package ``name``; none when it is not installed, or is a single
    module. Nothing of it is run.
    """
    top, *inner = name.split(".")
    if not all(part.isidentifier() for part in (top, *inner)):
        return []
    try:
        spec = importlib.util.find_spec(
            top
        )  # of a name without a dot: asking for a subpackage would import its parents
    except (ImportError, ValueError):
        return []
    tops = [Path(folder) for folder in spec.submodule_search_locations or []] if spec else []
    return [
        folder for folder in (top_folder.joinpath(*inner) for top_folder in tops) if folder.is_dir()
    ]


def checked_name(text: str, where: str) -> str:
    """Return the relative path ``text`` from a data file, with slashes; ``where`` names file and
    entry.

    Raises :class:`DataError` for one that could leave the folder that it is relative to by what it
    says: absolute, on a drive, or with ``..``. Links that lie inside the folder are followed:
    whoever may write there has decided so.
    """
    plain = text.strip().replace("\\", "/")
    path = PurePosixPath(plain)
    windows = PureWindowsPath(
        path
    )  # as it is given back: "./c:x" has no drive, what is left of it has
    if path.is_absolute() or windows.drive or windows.root or ".." in path.parts or "\0" in plain:
        raise DataError(
            f"{where}: {shown(text, 200)} leaves the data set's folder. Write a name relative to"
            " it, without '..'."
        )
    return path.as_posix() if plain else ""

"""Resolve paths from recipes, and check names from data files.

A recipe's path is a plain one, or lies inside an installed package. A data file's names must not
leave the folder of their dataset.
"""

import importlib.util
from contextlib import suppress
from pathlib import Path, PurePosixPath, PureWindowsPath

from modulate.errors import DataError, MissingFileError, shown

PREFIX = "package:"


def is_repository(name: str) -> bool:
    """Return whether ``name`` can be a hub repository, ``owner/name``, rather than a path.

    What exists here is a path, and so is what ends with a slash.
    """
    looks_like_one = not name.startswith((".", "/", "~", PREFIX)) and name.count("/") == 1
    return looks_like_one and not name.endswith("/") and not _exists(name)


def local_or_hub(text: str) -> str:
    """Return the absolute path of the file or folder ``text``, or ``text`` if it is a hub id.

    What exists here is never looked for on the hub. Raises :class:`MissingFileError` for what does
    not exist and can be no hub id, ``name`` or ``owner/name``.
    """
    is_name = text.strip() != "" and "/" not in text and not text.startswith((".", "~", PREFIX))
    if is_repository(text) or (is_name and not _exists(text)):
        return text
    return str(resolve(text).absolute())


def _exists(text: str) -> bool:
    with suppress(OSError, ValueError):
        return Path(text).exists()
    return False


def resolve(text: str) -> Path:
    """Return the existing file or folder at the path ``text``.

    ``text`` is a plain path (``~`` is the home directory; relative paths start at the working
    directory), or ``package:NAME/sub/path`` for a file inside the installed package NAME, which may
    be dotted. The package is located but never imported. Raises
    :class:`modulate.errors.MissingFileError` with the absolute path if nothing is there.
    """
    if not text.strip():
        raise MissingFileError(
            f"The path is empty; write a path, or {PREFIX}NAME/sub/path for a file inside an"
            " installed package."
        )
    if text.startswith(PREFIX):
        return _inside_package(text)
    try:
        path = Path(text).expanduser()
        if path.exists():
            return path
    # A name that is too long; the home directory of an unknown user; a null character.
    except (OSError, RuntimeError, ValueError) as error:
        raise MissingFileError(
            f"{shown(text)} cannot be looked for: {getattr(error, 'strerror', None) or error}."
            " Check the spelling."
        ) from error
    raise MissingFileError(
        f"{text!r} does not exist: looked for {path.absolute()}. Check the spelling, or the"
        " directory in which the command runs."
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
        # A name that is too long cannot exist.
        with suppress(OSError, ValueError):
            if path.exists():
                return path
    raise MissingFileError(
        f"{text!r} does not exist: looked for {', '.join(map(str, candidates))}. Check the"
        f" spelling, or reinstall {name!r}."
    )


def _folders(name: str) -> list[Path]:
    """Return the folders of the package ``name``, without running any of its code.

    There are none if it is not installed or is a single module.
    """
    top, *inner = name.split(".")
    if not all(part.isidentifier() for part in (top, *inner)):
        return []
    try:
        # Only of the top level: find_spec would import the parents of a subpackage.
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        return []
    if spec is None:
        return []
    folders = [Path(root, *inner) for root in spec.submodule_search_locations or []]
    return [folder for folder in folders if folder.is_dir()]


def checked_name(text: str, where: str) -> str:
    """Return the relative path ``text`` from a data file, written with slashes.

    ``where`` names the file and entry in errors. Raises :class:`DataError` for a path that leaves
    its folder: absolute, on a drive, or with ``..``. Symbolic links inside the folder are allowed,
    because only its owner can create them.
    """
    plain = text.strip().replace("\\", "/")
    path = PurePosixPath(plain)
    # Tested on the normalized path: "./c:x" has no drive, but the "c:x" that it becomes has.
    windows = PureWindowsPath(path)
    if path.is_absolute() or windows.drive or windows.root or ".." in path.parts or "\0" in plain:
        raise DataError(
            f"{where}: {shown(text, 200)} leaves the data set's folder. Write a name relative to"
            " it, without '..'."
        )
    return path.as_posix() if plain else ""

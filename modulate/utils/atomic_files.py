"""Files that are either whole or not there, and what is in them."""

import errno
import hashlib
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from modulate.errors import MissingFileError, ModulateError, StorageError

if TYPE_CHECKING:
    from torch import Tensor

PARTIAL = ".partial"
LEFT_BEHIND = (f".*{PARTIAL}", ".tmp??????")
"""Names of files that are being written, by us and by safetensors; a killed process leaves them
behind.
"""

NO_MATTER_OF_SPACE = frozenset(
    {
        errno.EACCES,
        errno.EPERM,
        errno.EROFS,
        errno.ENOENT,
        errno.ENOTDIR,
        errno.EEXIST,
        errno.EISDIR,
    }
)
"""Why a place that has room may still not be written."""

_hashes: dict[tuple[str, int, int], str] = {}


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a temporary file beside ``path``, flush it to disk, rename it into place,
    and flush the folder.

    Raises :class:`StorageError` when the disk refuses; what was at ``path`` before is then still
    there.
    """
    temporary = None
    try:
        _make_folder(path.parent)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=PARTIAL, dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        write(temporary)
        temporary.chmod(0o644)  # mkstemp makes it private; results are meant to be read
        _flush(temporary)
        os.replace(temporary, path)
        _flush(path.parent)
    except ModulateError:
        raise
    except (
        OSError,
        SafetensorError,
    ) as error:  # safetensors' own errors are no OSErrors, whatever their cause
        raise _refused(path, error) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write ``text`` as UTF-8 to ``path``, whole or not at all, as :func:`write_atomically` does."""
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def refuse_unwritable(folder: Path, option: str) -> None:
    """Raise :class:`StorageError` unless files can be made in ``folder``, or where it would be
    made. ``option``: how it was named. Leaves nothing behind.
    """
    nearest = next(p for p in (folder.absolute(), *folder.absolute().parents) if p.exists())
    if not nearest.is_dir():
        at = "" if nearest == folder.absolute() else f"cannot be made: {nearest} "
        raise StorageError(
            f"{option} {folder} {at}is a file, not a folder. Name a folder, or one that can be"
            " made."
        )
    try:
        handle, name = tempfile.mkstemp(prefix=".modulate.", suffix=PARTIAL, dir=nearest)
    except OSError as error:
        raise StorageError(
            f"{option} {folder} cannot be written: {error.strerror} ({nearest}). Name another"
            " folder, or let this one be written."
        ) from error
    os.close(handle)
    Path(name).unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as JSON, atomically. NaN and infinity are no JSON, and a ValueError."""
    text = as_json(value)
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def as_json(value: Any) -> str:
    """Return the text that :func:`write_json` writes."""
    return json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def remove_partial(folder: Path) -> None:
    """Remove what a killed process left half-written in ``folder`` and below.

    Only for who holds the folder's lock.
    """
    for pattern in LEFT_BEHIND:
        for path in folder.rglob(pattern):
            path.unlink(missing_ok=True)


class LineWriter:
    """A text file that grows by lines.

    A last line without its end was cut off by a kill, and counts as not written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.count = 0

    def append(self, line: str) -> None:
        """Add a line, without flushing it to disk. Raises :class:`StorageError`."""
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(line + "\n")
        except OSError as error:
            raise _refused(self.path, error) from error
        self.count += 1

    def flush(self) -> None:
        """Bring all lines to disk."""
        if self.path.is_file():
            _flush(self.path)

    def cut(self, count: int) -> int:
        """Keep the first ``count`` lines and go on behind them; return how many whole lines of
        these are missing.
        """
        content = self.path.read_bytes() if self.path.is_file() else b""
        kept = [line + b"\n" for line in content.split(b"\n")[:-1][:count]]
        if b"".join(kept) != content:
            write_atomically(self.path, lambda temporary: temporary.write_bytes(b"".join(kept)))
        self.count = count
        return count - len(kept)


def content_hash(path: str | Path) -> str:
    """Return the sha256 (hex) of the file's content; kept in this process until its size or
    modification time changes.

    Raises :class:`MissingFileError`.
    """
    path = Path(path)
    if not path.is_file():
        raise MissingFileError(
            f"There is no file at {path}. Check the path, or the folder that the recipe names."
        )
    stat = path.stat()
    key = (str(path.resolve()), stat.st_size, stat.st_mtime_ns)
    if key not in _hashes:
        _hashes[key] = read_hash(path)
    return _hashes[key]


def read_hash(path: Path) -> str:
    """Return the sha256 (hex) of the file's content, read now. Raises what opening it raises."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_tensors(path: Path) -> "dict[str, Tensor]":
    """Return the tensors of a safetensors file, in memory of their own: mapped ones would change,
    or end the process, with the file.

    Raises :class:`safetensors.SafetensorError`, and what opening it raises.
    """
    from safetensors.torch import load

    return load(path.read_bytes())


def gib(n: int) -> str:
    """Return a number of bytes, readable."""
    return f"{n / 2**30:,.1f} GiB" if n >= 2**30 else f"{n / 2**20:,.1f} MiB"


def _make_folder(folder: Path) -> None:
    if not folder.is_dir():
        _make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        _flush(folder.parent)


def _flush(path: Path) -> None:
    """Bring a file's content, or a folder's list of names, to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if not (
            path.is_dir() and error.errno in (errno.EINVAL, errno.ENOTSUP)
        ):  # some network file systems flush no folders
            raise
    finally:
        os.close(handle)


def _refused(path: Path, error: Exception) -> StorageError:
    advice = (
        "Name another folder, or let this one be written,"
        if getattr(error, "errno", None) in NO_MATTER_OF_SPACE
        else "Free some space, or name another folder,"
    )
    return StorageError(
        f"{path} cannot be written: {error}. What was there before is untouched. {advice} and give"
        " the command again."
    )

"""Atomic writes: a file is either complete or absent. Also hashes and line-by-line logs."""

import errno
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from modulate.errors import MissingFileError, ModulateError, StorageError

if TYPE_CHECKING:
    from torch import Tensor

PARTIAL = ".partial"
LEFT_BEHIND = (f".*{PARTIAL}", ".tmp??????")
"""Name patterns of unfinished files, ours and those of safetensors, left by killed processes."""

NOT_ABOUT_SPACE = frozenset(
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
"""Error numbers of failed writes that free disk space would not mend."""

_hashes: dict[tuple[str, int, int], str] = {}
"""(path, size, modification time in ns) → hash of the content."""


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a temporary file beside ``path``, then rename it into place.

    File and folder are flushed to disk, so that a power cut leaves the old or the new content.
    Raises :class:`StorageError` if the disk refuses; the old content is then still there.
    """
    temporary = None
    try:
        _make_folder(path.parent)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=PARTIAL, dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        write(temporary)
        # mkstemp makes the file private, but results are meant to be read by others.
        temporary.chmod(0o644)
        _flush(temporary)
        os.replace(temporary, path)
        _flush(path.parent)
    except ModulateError:
        raise
    # safetensors raises its own error type even where the cause is an OSError.
    except (OSError, SafetensorError) as error:
        raise _refused(path, error) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write ``text`` as UTF-8 to ``path`` with :func:`write_atomically`."""
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def refuse_unwritable(folder: Path, option: str) -> None:
    """Raise :class:`StorageError` unless ``folder`` can be created and written.

    Only the nearest existing parent is tested, with a file that is removed again. ``option``: the
    command-line option that named the folder, for the error.
    """
    candidates = (folder.absolute(), *folder.absolute().parents)
    nearest = next(path for path in candidates if path.exists())
    if not nearest.is_dir():
        at = "" if nearest == folder.absolute() else f"cannot be made: {nearest} "
        raise StorageError(
            f"{option} {folder} {at}is a file, not a folder. Name a folder, or a path where one"
            " can be made."
        )
    try:
        handle, name = tempfile.mkstemp(prefix=".modulate.", suffix=PARTIAL, dir=nearest)
    except OSError as error:
        raise StorageError(
            f"{option} {folder} cannot be written: {error.strerror} ({nearest}). Name another"
            " folder, or change its permissions."
        ) from error
    os.close(handle)
    Path(name).unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as JSON, atomically.

    Raises :class:`ValueError` for NaN and infinity, which JSON does not have.
    """
    write_text(path, as_json(value))


def as_json(value: Any) -> str:
    """Return the text that :func:`write_json` writes."""
    return json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def remove_partial(folder: Path) -> None:
    """Delete unfinished files that a killed process left in ``folder`` and below.

    The caller must hold the folder's lock, or it would delete files that others are writing.
    """
    for pattern in LEFT_BEHIND:
        for path in folder.rglob(pattern):
            path.unlink(missing_ok=True)


class LineWriter:
    """A text file that grows line by line, such as a training log.

    A last line without a line feed was cut off by a kill, and counts as not written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.count = 0

    def append(self, line: str) -> None:
        """Append a line without flushing it to disk. Raises :class:`StorageError`."""
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(line + "\n")
        except OSError as error:
            raise _refused(self.path, error) from error
        self.count += 1

    def flush(self) -> None:
        """Flush all lines to disk."""
        if self.path.is_file():
            _flush(self.path)

    def cut(self, count: int) -> int:
        """Truncate to the first ``count`` lines; return how many of these are missing.

        Later lines are appended after them.
        """
        content = self.path.read_bytes() if self.path.is_file() else b""
        kept = [line + b"\n" for line in content.split(b"\n")[:-1][:count]]
        if b"".join(kept) != content:
            write_atomically(self.path, lambda temporary: temporary.write_bytes(b"".join(kept)))
        self.count = count
        return count - len(kept)


def content_hash(path: str | Path) -> str:
    """Return the SHA-256 (hex) of a file's content.

    Cached in this process until the file's size or modification time changes. Raises
    :class:`MissingFileError`.
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


def same_content(files: Iterable[Path]) -> dict[Path, str]:
    """Return a name for each file, which files of the same content share.

    Only files of equal size are read. A missing file has a name of its own.
    """
    names = {file: str(file) for file in files}
    by_size: dict[int, list[Path]] = {}
    for file in names:
        if file.is_file():
            by_size.setdefault(file.stat().st_size, []).append(file)
    for equal in by_size.values():
        for file in equal if len(equal) > 1 else ():
            names[file] = content_hash(file)
    return names


def read_hash(path: Path) -> str:
    """Return the SHA-256 (hex) of a file's content, without the cache. Raises :class:`OSError`."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_tensors(path: Path) -> "dict[str, Tensor]":
    """Return the tensors of a safetensors file, copied into memory.

    Memory-mapped tensors would change with the file, or crash the process if it shrinks. Raises
    :class:`safetensors.SafetensorError` and :class:`OSError`.
    """
    from safetensors.torch import load

    return load(path.read_bytes())


def format_bytes(count: int) -> str:
    """Return a number of bytes in GiB, or in MiB below 1 GiB."""
    return f"{count / 2**30:,.1f} GiB" if count >= 2**30 else f"{count / 2**20:,.1f} MiB"


def _make_folder(folder: Path) -> None:
    """Create ``folder`` and its parents, each flushed, or a power cut could lose the whole tree."""
    if not folder.is_dir():
        _make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        _flush(folder.parent)


def _flush(path: Path) -> None:
    """Flush a file's content, or a folder's list of names, to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        # Some network file systems cannot flush folders.
        if not (path.is_dir() and error.errno in (errno.EINVAL, errno.ENOTSUP)):
            raise
    finally:
        os.close(handle)


def _refused(path: Path, error: Exception) -> StorageError:
    advice = (
        "Name another folder, or change its permissions,"
        if getattr(error, "errno", None) in NOT_ABOUT_SPACE
        else "Free some space, or name another folder,"
    )
    return StorageError(
        f"{path} cannot be written: {error}. What was there before is untouched. {advice} and run"
        " the command again."
    )

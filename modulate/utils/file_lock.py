"""One process at a time in a folder."""

import errno
import fcntl
import json
import os
import socket
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from pydantic import Field

from modulate.errors import DataError, LockedError, StorageError
from modulate.utils.schema import Record, parse_record

NAME = ".lock"


class Owner(Record):
    """Who holds a folder: process, host name, and since when (s since 1970)."""

    pid: int = Field(ge=1, lt=2**31)
    host: str = Field(max_length=255)
    since: float = Field(ge=0, le=1e11)


_held: dict[tuple[int, Path], int] = {}
"""(process, folder) → how many blocks of this process hold it."""


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Hold ``folder`` (made if absent) for the length of the block; a process that holds it already
    may enter again.

    The system's own lock on a file in it, which ends with the process however that ends. The file
    says who holds it. Raises :class:`LockedError` with pid and host name of the process that does.
    """
    key = (os.getpid(), folder.resolve())
    if key in _held:
        _held[key] += 1
        try:
            yield
        finally:
            _held[key] -= 1
        return
    handle = _open(folder)
    try:
        _lock(handle, folder)
        with _signed(handle, folder):
            _held[key] = 1
            try:
                yield
            finally:
                del _held[key]
    finally:
        os.close(handle)


@contextmanager
def bequeathed(folder: Path, tell: Callable[[str], object], poll: float = 0.5) -> Iterator[int]:
    """Hold ``folder`` by a handle to be given to the processes that are started meanwhile: they
    hold it on, should this one be killed before them.

    Yields the handle. Where such heirs hold it, they are waited for, which ``tell`` is told once.
    Raises :class:`LockedError` when the process that took it lives.
    """
    handle = _open(folder)
    try:
        told = False
        while True:
            try:
                _lock(handle, folder)
                break
            except LockedError:
                owner = _owner(handle)
                if owner is None or owner.host != socket.gethostname() or lives(owner.pid):
                    raise
                if not told:
                    tell(
                        f"Process {owner.pid}, which worked in {folder}, is gone, but what it has"
                        " started goes on by itself: waiting for that to end."
                    )
                    told = True
                time.sleep(poll)
        with _signed(handle, folder):
            yield handle
    finally:
        os.close(handle)


def _open(folder: Path) -> int:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return os.open(folder / NAME, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise StorageError(
            f"{folder} cannot be written: {error}. Name another folder for the runs."
        ) from error


@contextmanager
def _signed(handle: int, folder: Path) -> Iterator[None]:
    """Say in the lock file who holds it, for the length of a ``with`` block."""
    try:
        os.ftruncate(handle, 0)
        os.pwrite(
            handle,
            json.dumps(
                {"pid": os.getpid(), "host": socket.gethostname(), "since": time.time()}
            ).encode(),
            0,
        )
    except OSError as error:
        raise StorageError(
            f"{folder / NAME} cannot be written: {error}. Free some space, or name another folder"
            " for the runs."
        ) from error
    try:
        yield
    finally:
        os.ftruncate(
            handle, 0
        )  # and the file stays: were it removed, a third process could lock a new one beside it


def _lock(handle: int, folder: Path) -> None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            raise _refusal(folder, _owner(handle)) from error
        # Some cluster file systems have no locks: there the file's content must do, which knows the
        # living of this machine only.
        owner = _owner(handle)
        if owner is not None and owner.host == socket.gethostname() and lives(owner.pid):
            raise _refusal(folder, owner) from error
        warnings.warn(
            f"{folder} lies on a file system without locks ({error}); see to it that no other"
            " machine works in it.",
            stacklevel=4,
        )


def _owner(handle: int) -> Owner | None:
    """Return what the lock file says of who holds it; None when it says nothing that could be true,
    as in the moment between lock and note.
    """
    try:
        return parse_record(
            os.pread(handle, 1000, 0), Owner, NAME, "note of who holds a folder", ""
        )
    except DataError:
        return None


def _refusal(folder: Path, owner: Owner | None) -> LockedError:
    if owner is None:
        who = f"another process, of which {NAME} there says nothing"
    else:
        who = (
            f"process {owner.pid} on host {owner.host}, since"
            f" {time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(owner.since))}"
        )
    return LockedError(
        f"{folder} is in use by {who}. Wait for it, stop it, or give this run another name with"
        " name=…."
    )


def lives(pid: int) -> bool:
    """Return whether another process of this machine has the number ``pid``."""
    if pid == os.getpid():
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True

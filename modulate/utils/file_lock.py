"""Locks on folders, so that only one process at a time works in a run's folder."""

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
    """The process that holds a lock: its id, host name, and start of the lock (s since 1970)."""

    pid: int = Field(ge=1, lt=2**31)
    host: str = Field(max_length=255)
    since: float = Field(ge=0, le=1e11)


_depths: dict[tuple[int, Path], int] = {}
"""(process, folder) → number of nested blocks in which this process holds it.

The process id is part of the key because a forked child inherits this dictionary but no lock.
"""


@contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """Lock ``folder`` (created if absent) during a block; the same process may enter again.

    It is an operating-system lock on a file in the folder, so it ends with the process, however
    that ends. The file says who holds it. Raises :class:`LockedError` with the process id and host
    name of the owner.
    """
    key = (os.getpid(), folder.resolve())
    if key in _depths:
        _depths[key] += 1
        try:
            yield
        finally:
            _depths[key] -= 1
        return
    handle = _open(folder)
    try:
        _lock(handle, folder)
        with _signed(handle, folder):
            _depths[key] = 1
            try:
                yield
            finally:
                del _depths[key]
    finally:
        os.close(handle)


@contextmanager
def inheritable_lock(
    folder: Path, notify: Callable[[str], object], poll: float = 0.5
) -> Iterator[int]:
    """Lock ``folder`` and yield a handle to pass to child processes, which then hold it as well.

    If this process is killed, the lock stays until its children have ended. A later process that
    finds such orphans calls ``notify`` once and waits for them, looking every ``poll`` seconds.
    Raises :class:`LockedError` if the owner itself is still running.
    """
    handle = _open(folder)
    try:
        notified = False
        while True:
            try:
                _lock(handle, folder)
                break
            except LockedError:
                owner = _owner(handle)
                # Nobody can tell from here whether a process on another host still runs.
                if owner is None or owner.host != socket.gethostname() or is_running(owner.pid):
                    raise
                if not notified:
                    notify(
                        f"Process {owner.pid}, which worked in {folder}, has ended, but processes"
                        " that it started are still running: waiting for them."
                    )
                    notified = True
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
    """Write into the lock file who holds it, and empty the file when the block ends."""
    owner = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.time()}
    try:
        os.ftruncate(handle, 0)
        os.pwrite(handle, json.dumps(owner).encode(), 0)
    except OSError as error:
        raise StorageError(
            f"{folder / NAME} cannot be written: {error}. Free some space, or name another folder"
            " for the runs."
        ) from error
    try:
        yield
    finally:
        # The file stays: if it were deleted, a second process could wait for the deleted file while
        # a third creates and locks a new one.
        os.ftruncate(handle, 0)


def _lock(handle: int, folder: Path) -> None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            raise _refusal(folder, _owner(handle)) from error
        # Some cluster file systems have no locks. There the content of the file must do, which can
        # only be checked against the processes of this machine.
        owner = _owner(handle)
        if owner is not None and owner.host == socket.gethostname() and is_running(owner.pid):
            raise _refusal(folder, owner) from error
        warnings.warn(
            f"{folder} lies on a file system without locks ({error}); make sure that no other"
            " machine works in it.",
            stacklevel=4,
        )


def _owner(handle: int) -> Owner | None:
    """Return the owner written in the lock file, or None if the file holds no valid one.

    That is so for a moment after every lock, before the owner has written the file.
    """
    try:
        return parse_record(
            os.pread(handle, 1000, 0), Owner, NAME, "note of who holds a folder", ""
        )
    except DataError:
        return None


def _refusal(folder: Path, owner: Owner | None) -> LockedError:
    if owner is None:
        who = f"another process, which {NAME} there does not name"
    else:
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(owner.since))
        who = f"process {owner.pid} on host {owner.host}, since {since}"
    return LockedError(
        f"{folder} is in use by {who}. Wait for it, stop it, or give this run another name with"
        " name=…."
    )


def is_running(pid: int) -> bool:
    """Return whether ``pid`` is the id of another running process on this machine."""
    if pid == os.getpid():
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True

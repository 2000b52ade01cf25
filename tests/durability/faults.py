"""A fault that ends a process at one of its file operations, with or without a power cut."""

import os
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

KILLED = 9
"""Exit code of a process that a fault has ended."""
WRITING = os.O_WRONLY | os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_TRUNC
WATCHED_EVENTS = frozenset(
    ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.chmod", "os.truncate")
)
"""Audit events of Python that change files or folders."""


class Fault:
    """Ends this process before its ``at``-th file operation in ``folder``, counted from 1.

    With ``cut``, data that was not flushed is lost as well, as in a power cut.
    """

    def __init__(self, folder: Path, at: int, cut: random.Random | None = None) -> None:
        self.folder = str(folder.resolve())
        self.at = at
        self.cut = cut
        self.count = 0
        # File → number of its bytes that are certainly on disk.
        self.flushed: dict[str, int] = {}
        # (folder, function that undoes a change of a name) since the folder was last flushed.
        self.undo_steps: list[tuple[str, Callable[[], object]]] = []
        self.dying = False

    def install(self) -> None:
        """Watch file operations until the process ends: audit hooks cannot be removed."""
        sys.addaudithook(self._on_audit_event)
        fsync = os.fsync  # no audit event exists for it, so it is replaced

        def watched(handle: int) -> None:
            path = os.readlink(f"/proc/self/fd/{handle}")
            if path.startswith(self.folder):
                self._count_operation()
            fsync(handle)
            if os.path.isdir(path):
                self.undo_steps = [
                    (folder, change) for folder, change in self.undo_steps if folder != path
                ]
            else:
                self.flushed[path] = os.path.getsize(path)

        os.fsync = watched

    def _on_audit_event(self, event: str, args: tuple[Any, ...]) -> None:
        if self.dying or event not in WATCHED_EVENTS:
            return
        path = (
            os.readlink(f"/proc/self/fd/{args[0]}")
            if isinstance(args[0], int)
            else os.path.abspath(os.fsdecode(args[0]))
        )
        if not path.startswith(self.folder):
            return
        if event == "open" and not (isinstance(args[2], int) and args[2] & WRITING):
            return
        self._count_operation()
        if self.cut is not None:
            self.dying = True  # reading the old content must not count as an operation
            self._remember_undo(event, path, args)
            self.dying = False

    def _remember_undo(self, event: str, path: str, args: tuple[Any, ...]) -> None:
        if event == "open":
            self.flushed.setdefault(path, os.path.getsize(path) if os.path.exists(path) else 0)
            if not os.path.exists(path):
                self.undo_steps.append(
                    (os.path.dirname(path), lambda: Path(path).unlink(missing_ok=True))
                )
        elif event == "os.rename":
            new = os.path.abspath(os.fsdecode(args[1]))
            old = Path(new).read_bytes() if os.path.exists(new) else None
            self.flushed[new] = self.flushed.pop(path, os.path.getsize(path))

            def undo_rename() -> None:
                os.replace(new, path)
                if old is not None:
                    Path(new).write_bytes(old)

            self.undo_steps.append((os.path.dirname(new), undo_rename))
        elif event == "os.remove" and os.path.isfile(path):
            content = Path(path).read_bytes()
            self.undo_steps.append((os.path.dirname(path), lambda: Path(path).write_bytes(content)))
        elif event == "os.rmdir":
            self.undo_steps.append((os.path.dirname(path), Path(path).mkdir))

    def _count_operation(self) -> None:
        self.count += 1
        if self.count != self.at:
            return
        self.dying = True
        if self.cut is not None:
            self._lose_unflushed(self.cut)
        os._exit(KILLED)

    def _lose_unflushed(self, cut: random.Random) -> None:
        for path, size in self.flushed.items():
            if os.path.exists(path) and os.path.getsize(path) > size:
                os.truncate(path, cut.randint(size, os.path.getsize(path)))
        # A disk keeps changes of names in order: the first few survive, all later ones are lost.
        for _, change in reversed(self.undo_steps[cut.randint(0, len(self.undo_steps)) :]):
            change()

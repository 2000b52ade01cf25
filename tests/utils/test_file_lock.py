"""Locks let one process at a time work in a folder."""

import errno
import fcntl
import json
import os
import re
import signal
import socket
import subprocess
import sys

import pytest

from modulate.errors import LockedError, StorageError
from modulate.utils.file_lock import NAME, folder_lock, inheritable_lock, is_running

HOLD = (
    "import sys; from modulate.utils.file_lock import folder_lock\nwith"
    " folder_lock(__import__('pathlib').Path(sys.argv[1])): print('held', flush=True);"
    " sys.stdin.read()"
)


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the lock of tmp_path."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def test_a_second_process_is_refused_with_the_owner_until_that_dies(holder, tmp_path):
    text = (
        rf"^{re.escape(str(tmp_path))} is in use by process {holder.pid} on host"
        rf" {re.escape(socket.gethostname())}, since 2\d\d\d-.+Wait for it, stop it"
    )
    with pytest.raises(LockedError, match=text), folder_lock(tmp_path):
        pytest.fail("both hold it")
    holder.kill()  # SIGKILL: it cannot clean up
    holder.wait()
    assert json.loads((tmp_path / NAME).read_text())["pid"] == holder.pid
    with folder_lock(tmp_path):
        assert json.loads((tmp_path / NAME).read_text())["pid"] == os.getpid()


BEQUEATH = """
import subprocess, sys
from pathlib import Path
from modulate.utils.file_lock import inheritable_lock
with inheritable_lock(Path(sys.argv[1]), print) as handle:
    heir = subprocess.Popen(
        [sys.executable, "-c", "import sys; sys.stdin.read()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        pass_fds=[handle],
    )
    print(heir.pid, flush=True)
    sys.stdin.read()
"""


def test_children_of_a_killed_process_hold_its_lock_until_they_end(tmp_path):
    first = subprocess.Popen(
        [sys.executable, "-c", BEQUEATH, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    heir = int(first.stdout.readline())
    with (
        pytest.raises(LockedError, match=rf"is in use by process {first.pid} on host"),
        inheritable_lock(tmp_path, pytest.fail),
    ):
        pytest.fail("both hold it")
    os.kill(heir, signal.SIGSTOP)  # otherwise the end of its input would end it
    first.kill()
    first.communicate()
    notes = []

    def end_the_heir(text):
        notes.append(text)
        os.kill(heir, signal.SIGKILL)

    with inheritable_lock(tmp_path, end_the_heir, poll=0.01):
        assert json.loads((tmp_path / NAME).read_text())["pid"] == os.getpid()
    assert notes == [
        f"Process {first.pid}, which worked in {tmp_path}, has ended, but processes that"
        " it started are still running: waiting for them."
    ]


def test_a_process_may_enter_its_own_lock_again(tmp_path):
    with folder_lock(tmp_path):
        with folder_lock(tmp_path / "." / "x" / ".."):
            pass
        assert (tmp_path / NAME).read_text()
    assert not (tmp_path / NAME).read_text()


def refuse(*args):
    raise OSError(errno.ENOLCK, "No locks available")


def test_without_file_system_locks_the_content_of_the_file_decides_with_a_warning(
    holder, tmp_path, monkeypatch
):
    monkeypatch.setattr(fcntl, "flock", refuse)
    with (
        pytest.raises(LockedError, match=f"in use by process {holder.pid} on host"),
        folder_lock(tmp_path),
    ):
        pytest.fail("both hold it")
    holder.kill()
    holder.wait()
    with (
        pytest.warns(
            UserWarning,
            match=(
                r"lies on a file system without locks \(.*No locks available\); make sure that no"
                r" other machine"
            ),
        ),
        folder_lock(tmp_path),
    ):
        pass


def test_a_folder_that_cannot_be_made_is_a_clear_error(tmp_path):
    (tmp_path / "file").touch()
    with (
        pytest.raises(
            StorageError,
            match=rf"{tmp_path}/file/run cannot be written: .*Name another folder for the runs\.",
        ),
        folder_lock(tmp_path / "file" / "run"),
    ):
        pass


def test_a_lock_entered_several_times_ends_with_the_outermost_block(tmp_path, holder_of):
    with folder_lock(tmp_path):
        for _ in range(3):
            with folder_lock(tmp_path), folder_lock(tmp_path):
                pass
        assert holder_of(tmp_path) == os.getpid()
    assert holder_of(tmp_path) is None
    with folder_lock(tmp_path):  # once more from the start
        assert holder_of(tmp_path) == os.getpid()
    mask = os.umask(0)
    os.umask(mask)
    assert (tmp_path / NAME).stat().st_mode & 0o777 == 0o644 & ~mask


@pytest.fixture
def holder_of():
    """Return the owner of a folder as another process sees it; None if it is free."""
    ask = (
        "import sys; from modulate.utils.file_lock import folder_lock\nwith"
        " folder_lock(__import__('pathlib').Path(sys.argv[1])): pass"
    )

    def find(folder):
        done = subprocess.run(
            [sys.executable, "-c", ask, str(folder)], capture_output=True, text=True
        )
        match = re.search(r"in use by process (\d+)", done.stderr)
        return int(match[1]) if match else None

    return find


def test_running_processes_are_recognized_and_not_disturbed(monkeypatch):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    waiting = subprocess.Popen(
        [sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE
    )
    assert [is_running(ended.pid), is_running(os.getpid()), is_running(waiting.pid)] == [
        False,
        False,
        True,
    ]
    waiting.communicate()
    assert waiting.returncode == 0

    def another_user_s(pid, number):
        raise PermissionError("Operation not permitted")

    monkeypatch.setattr(os, "kill", another_user_s)
    assert is_running(waiting.pid) is True

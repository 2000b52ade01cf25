"""Atomic writes, hashes and line-by-line logs."""

import errno
import hashlib
import os
import re
import resource
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from modulate.errors import MissingFileError, StorageError
from modulate.utils.atomic_files import (
    LineWriter,
    as_json,
    content_hash,
    format_bytes,
    refuse_unwritable,
    remove_partial,
    same_content,
    write_atomically,
    write_json,
)


def test_the_hash_follows_the_content(tmp_path):
    path = tmp_path / "a.mp4"
    path.write_bytes(b"one")
    assert content_hash(path) == hashlib.sha256(b"one").hexdigest()
    path.write_bytes(b"two!")
    assert content_hash(path) == hashlib.sha256(b"two!").hexdigest()


def test_the_hash_is_computed_once_while_the_file_stays(tmp_path):
    path = tmp_path / "a.mp4"
    path.write_bytes(b"one")
    stat = path.stat()
    before = content_hash(path)
    path.write_bytes(b"two")
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert content_hash(path) == before


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(
        MissingFileError, match=re.escape(f"There is no file at {tmp_path / 'gone.mp4'}.")
    ):
        content_hash(tmp_path / "gone.mp4")


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.json"
    write_atomically(path, lambda temporary: temporary.write_text("old"))

    def broken(temporary):
        temporary.write_text("ne")
        raise ValueError("torn")

    with pytest.raises(ValueError, match="torn"):
        write_atomically(path, broken)
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("operation", ["open", "fsync", "replace"])
def test_a_disk_that_is_full_at_any_point_is_an_error_and_leaves_the_old_file(
    tmp_path, monkeypatch, operation
):
    path = tmp_path / "a.json"
    write_json(path, "old")

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, operation, full)
        with pytest.raises(
            StorageError,
            match=(
                rf"^{re.escape(str(path))} cannot be written: .*No space left on device.* What was"
                r" there before is untouched\. Free some"
            ),
        ):
            write_json(path, "new")
    assert path.read_text() == '"old"\n' and list(tmp_path.iterdir()) == [path]


@contextmanager
def no_room():
    """Let no file grow beyond 10 kB during a block.

    A whole test would be too long: the output of pytest itself may go to a file.
    """
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_disk_that_fills_up_while_tensors_are_written_is_an_error_and_leaves_nothing_behind(
    tmp_path,
):
    path = tmp_path / "w.safetensors"
    with (
        no_room(),
        pytest.raises(StorageError, match=r"w\.safetensors cannot be written: .*File too large"),
    ):
        write_atomically(path, lambda temporary: save_file({"w": torch.ones(10_000)}, temporary))
    assert not list(tmp_path.iterdir())


def test_a_disk_that_fills_up_under_a_log_costs_only_the_last_line(tmp_path):
    log = LineWriter(tmp_path / "log.jsonl")
    with (
        no_room(),
        pytest.raises(StorageError, match=r"log\.jsonl cannot be written: .*File too large"),
    ):
        while True:
            log.append("x" * 30)
    whole = log.path.read_bytes().split(b"\n")[:-1]
    assert (
        len(whole) == log.count == 10_000 // 31 and log.path.stat().st_size == 10_000
    )  # the last line is torn
    again = LineWriter(log.path)
    assert again.cut(log.count) == 0 and log.path.stat().st_size == 31 * log.count


def test_a_log_is_cut_to_whole_lines_and_counts_missing_ones(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text("one\ntwo\nthr")
    log = LineWriter(path)
    assert log.cut(3) == 1 and path.read_text() == "one\ntwo\n"
    assert log.cut(1) == 0 and path.read_text() == "one\n"
    log.append("new")
    assert path.read_text() == "one\nnew\n" and log.count == 2
    assert LineWriter(tmp_path / "none").cut(2) == 2 and not (tmp_path / "none").exists()


def test_only_files_of_killed_writers_are_removed(tmp_path):
    (tmp_path / "sub").mkdir()
    left = [tmp_path / ".state.json.x1y2z3.partial", tmp_path / "sub" / ".tmpAb1xYz"]
    unrelated = [tmp_path / "state.json", tmp_path / ".lock", tmp_path / "sub" / "log.tmpl"]
    for path in (*left, *unrelated):
        path.touch()
    remove_partial(tmp_path)
    assert {path for path in tmp_path.rglob("*") if path.is_file()} == set(unrelated)


def test_a_file_is_flushed_before_its_rename_and_its_folder_after(tmp_path, monkeypatch):
    done = []
    fsync = os.fsync
    replace = os.replace
    monkeypatch.setattr(
        os,
        "fsync",
        lambda fd: (
            done.append(f"flush {Path(os.readlink(f'/proc/self/fd/{fd}')).name}"),
            fsync(fd),
        ),
    )
    monkeypatch.setattr(
        os, "replace", lambda a, b: (done.append(f"rename to {Path(b).name}"), replace(a, b))
    )
    write_json(tmp_path / "new" / "a.json", 1)
    assert [re.sub(r"\.a\.json\..+", "temporary", d) for d in done] == [
        f"flush {tmp_path.name}",
        "flush temporary",
        "rename to a.json",
        "flush new",
    ]


def test_results_are_readable_by_everybody(tmp_path):
    write_json(tmp_path / "a.json", 1)
    assert (tmp_path / "a.json").stat().st_mode & 0o777 == 0o644


def test_json_is_written_as_utf8_and_refuses_nan(tmp_path):
    assert as_json({"é": [1, None]}) == '{\n  "é": [\n    1,\n    null\n  ]\n}\n'
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "a.json", float("nan"))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["", "new/deep"])
def test_a_folder_that_can_be_written_or_made_passes_and_is_not_made(tmp_path, name):
    refuse_unwritable(tmp_path / name, "--out")
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_a_file_or_below_one_is_refused_with_the_option(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(
        StorageError,
        match=(
            rf"^--out {re.escape(str(tmp_path / 'file'))} is a file, not a folder\. Name a folder"
        ),
    ):
        refuse_unwritable(tmp_path / "file", "--out")
    below = tmp_path / "file" / "new" / "deep"
    with pytest.raises(
        StorageError,
        match=(
            rf"^--out {re.escape(str(below))} cannot be made: {re.escape(str(tmp_path / 'file'))}"
            r" is a file"
        ),
    ):
        refuse_unwritable(below, "--out")


def test_a_folder_that_the_system_protects_is_refused_with_its_reason():
    with pytest.raises(
        StorageError,
        match=r"^--out /proc/1/new cannot be written: .+ \(/proc/1\)\. Name another folder",
    ):
        refuse_unwritable(Path("/proc/1/new"), "--out")


def test_a_protected_folder_is_not_blamed_on_disk_space():
    with pytest.raises(
        StorageError,
        match="Name another folder, or change its permissions, and run the command again",
    ):
        write_json(Path("/proc/new/a.json"), 1)


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0.0 MiB"),
        (2**20 * 3 // 2, "1.5 MiB"),
        (2**30 - 1, "1,024.0 MiB"),
        (2**30, "1.0 GiB"),
        (5000 * 2**30, "5,000.0 GiB"),
    ],
)
def test_sizes_are_given_in_a_suitable_unit(size, text):
    assert format_bytes(size) == text


def test_lines_are_flushed_on_request_and_a_missing_log_is_no_error(tmp_path, monkeypatch):
    flushed = []
    fsync = os.fsync
    monkeypatch.setattr(
        os, "fsync", lambda fd: (flushed.append(os.readlink(f"/proc/self/fd/{fd}")), fsync(fd))
    )
    log = LineWriter(tmp_path / "log.jsonl")
    log.flush()
    log.append("é")
    assert flushed == []
    log.flush()
    assert flushed == [str(log.path)] and log.path.read_text(encoding="utf-8") == "é\n"


def test_a_complete_log_is_not_rewritten(tmp_path):
    log = LineWriter(tmp_path / "log.jsonl")
    log.append("one")
    log.append("two")
    before = log.path.stat().st_ino
    assert log.cut(2) == 0 and log.path.stat().st_ino == before
    assert log.cut(0) == 0 and log.path.read_text() == ""


def test_the_probe_file_of_a_killed_process_is_removed_like_any_unfinished_file(
    tmp_path, monkeypatch
):
    with monkeypatch.context() as patched:
        patched.setattr(Path, "unlink", lambda self, missing_ok=False: None)
        refuse_unwritable(tmp_path, "--out")
    assert [path.name.startswith(".") for path in tmp_path.iterdir()] == [True]
    remove_partial(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_another_process_creates_meanwhile_is_no_error(tmp_path, monkeypatch):
    folder = tmp_path / "new"
    is_dir = Path.is_dir

    def just_before(self):
        if self == folder and not is_dir(self):
            folder.mkdir()
            return False
        return is_dir(self)

    monkeypatch.setattr(Path, "is_dir", just_before)
    write_json(folder / "a.json", 1)
    assert (folder / "a.json").read_text() == "1\n"


def test_copies_of_a_file_share_a_name(tmp_path):
    contents = {"a": b"one", "b": b"two", "copy": b"one", "long": b"longer"}
    files = [tmp_path / name for name in contents]
    for path in files:
        path.write_bytes(contents[path.name])
    missing = tmp_path / "missing"
    names = same_content([*files, missing])
    assert names[tmp_path / "a"] == names[tmp_path / "copy"] != names[tmp_path / "b"]
    assert names[tmp_path / "long"] == str(tmp_path / "long"), "no other file has its size"
    assert names[missing] == str(missing)

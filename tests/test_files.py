"""Whole files and their content."""

import hashlib
import os
import re

import pytest

from modulate.errors import MissingFileError
from modulate.files import content_hash, write_atomically


def test_the_hash_is_the_content_s_and_follows_a_change(tmp_path):
    path = tmp_path / "a.mp4"
    path.write_bytes(b"one")
    assert content_hash(path) == hashlib.sha256(b"one").hexdigest()
    path.write_bytes(b"two!")
    assert content_hash(path) == hashlib.sha256(b"two!").hexdigest()


def test_the_hash_is_read_once_while_the_file_stays(tmp_path):
    path = tmp_path / "a.mp4"
    path.write_bytes(b"one")
    stat, before = path.stat(), content_hash(path)
    path.write_bytes(b"two")
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert content_hash(path) == before


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(MissingFileError, match=re.escape(f"There is no file at {tmp_path / 'gone.mp4'}.")):
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

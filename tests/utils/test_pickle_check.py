"""The values of pickles are counted before they are loaded. The pickles here are never loaded."""

import pickle  # noqa: TID251  (to show what is refused)
import pickletools
import zipfile

import pytest
import torch

from modulate.errors import CheckpointError
from modulate.utils import pickle_check as pickled
from modulate.utils.pickle_check import check_archive, check_pickle


def count(value, protocol=2):
    return check_pickle(pickle.dumps(value, protocol=protocol), "p.pt")


def written_out(value):
    """Return the size of a value by plain recursion: itself and everything inside it."""
    if isinstance(value, dict):
        return 1 + sum(written_out(part) for pair in value.items() for part in pair)
    return 1 + sum(map(written_out, value)) if isinstance(value, list | tuple) else 1


VALUES = [
    1,
    None,
    True,
    2.5,
    "text",
    [],
    {},
    (),
    [1],
    [1, 2, 3],
    (1, 2),
    (1, 2, 3, 4),
    {"a": 1},
    {"a": [1, 2], "b": {"c": (1,)}},
    [[[]]],
    [{}, [1], (2, [3])],
]


@pytest.mark.parametrize("protocol", [0, 1, 2, 4])
@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_a_plain_value_counts_with_everything_inside_it(value, protocol):
    assert count(value, protocol) == written_out(value)


def test_a_shared_value_counts_at_every_use():
    shared = [1, 2, 3]
    assert count([shared, shared]) == written_out([shared, shared]) == 9
    assert count({"a": shared, "b": [shared, [shared]]}) == written_out(
        {"a": shared, "b": [shared, [shared]]}
    )


@pytest.mark.parametrize("protocol", [2, 4])
def test_values_are_counted_up_to_the_limit_and_refused_beyond(monkeypatch, protocol):
    monkeypatch.setattr(pickled, "PICKLE_VALUES", 5)
    assert count([1, 2, 3, 4], protocol) == 5
    with pytest.raises(
        CheckpointError, match=r"p\.pt is refused: its pickle makes more than 5 values"
    ):
        count([1, 2, 3, 4, 5], protocol)


def test_a_container_that_changes_after_it_was_put_into_another_is_refused():
    inner = b"\x80\x02]q\x00]q\x01h\x00a"  # two lists, the first in the second
    assert check_pickle(inner + b".", "p.pt") == 2
    with pytest.raises(
        CheckpointError, match="its pickle changes a container after putting it into another"
    ):
        check_pickle(inner + b"h\x00h\x01a.", "p.pt")
    with pytest.raises(CheckpointError, match="changes a container"):
        check_pickle(b"\x80\x02]q\x00h\x00a.", "p.pt")  # itself in itself


@pytest.mark.parametrize("data", [b"", b"\x80\x02", b"\x80\x02]q\x00"])
def test_a_truncated_pickle_is_refused(data):
    with pytest.raises(
        CheckpointError,
        match=(
            r"p\.pt cannot be read as a file of plain tensors: its pickle (ends early|is damaged)"
        ),
    ):
        check_pickle(data, "p.pt")


@pytest.mark.parametrize(
    "data",
    [
        b"\x80\x02.",
        b"\x80\x02e.",
        b"\x80\x02(.",
        b"\x80\x02h\x07.",
        b"\x80\x02a.",
        b"\x80\x02K\x01a.",
        b"\xff.",
    ],
)
def test_instructions_with_too_few_values_are_damage(data):
    with pytest.raises(CheckpointError, match=r"its pickle is damaged \(\w+\)"):
        check_pickle(data, "p.pt")


def test_copies_and_memos_of_every_kind_are_followed():
    assert check_pickle(b"\x80\x02]2\x86.", "p.pt") == 3  # a list, the same again, a pair of both
    long = b"\x80\x02]r\x00\x01\x00\x00j\x00\x01\x00\x00\x86."
    assert {"LONG_BINPUT", "LONG_BINGET"} <= {code.name for code, _, _ in pickletools.genops(long)}
    assert check_pickle(long, "p.pt") == 3
    assert check_pickle(b"(lp0\ng0\n\x86.", "p.pt") == 3


# --- files


@pytest.fixture
def saved(tmp_path):
    torch.save({"w": torch.ones(4), "n": [1, 2]}, tmp_path / "w.pt")
    return tmp_path / "w.pt"


def test_a_torch_save_file_of_any_size_passes_without_a_limit(saved):
    with zipfile.ZipFile(saved) as archive:
        unpacked = sum(entry.file_size for entry in archive.infolist())
    check_archive(saved)
    check_archive(saved, unpacked)
    with pytest.raises(
        CheckpointError,
        match=f"w.pt has {unpacked} bytes unpacked, more than the {unpacked - 1} that are read",
    ):
        check_archive(saved, unpacked - 1)


def test_a_pickle_is_read_up_to_its_limit(saved, monkeypatch):
    with zipfile.ZipFile(saved) as archive:
        size = next(
            entry.file_size for entry in archive.infolist() if entry.filename.endswith("data.pkl")
        )
    monkeypatch.setattr(pickled, "PICKLE_BYTES", size)
    check_archive(saved)
    monkeypatch.setattr(pickled, "PICKLE_BYTES", size - 1)
    with pytest.raises(
        CheckpointError,
        match=f"w.pt holds a pickle of {size} bytes, more than the {size - 1} that are read",
    ):
        check_archive(saved)


def test_the_pickle_inside_a_file_is_checked(saved, monkeypatch):
    monkeypatch.setattr(pickled, "PICKLE_VALUES", 3)
    with pytest.raises(
        CheckpointError, match=r"w\.pt is refused: its pickle makes more than 3 values"
    ):
        check_archive(saved)


@pytest.mark.parametrize("data", [b"", b"no archive", b"PK\x03\x04"])
def test_other_files_are_refused_by_name(tmp_path, data):
    (tmp_path / "w.pt").write_bytes(data)
    with pytest.raises(
        CheckpointError, match=r"w\.pt is not a file that torch\.save writes: .* Download it again"
    ):
        check_archive(tmp_path / "w.pt")

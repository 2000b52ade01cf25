"""Checkpoints: whole or noticed, the one before when the last is damaged."""

import hashlib
import json

import pytest
import torch
from safetensors.torch import load_file

from modulate.runs.checkpoints import Checkpoints
from modulate.utils.atomic_files import write_json


def saved(folder, count=3):
    checkpoints = Checkpoints(folder)
    for index in range(1, count + 1):
        checkpoints.save(
            {"step": index, "rate": 0.1 + index, "none": None},
            {"w": torch.full((3, 2), float(index)), "count": torch.tensor(index)},
        )
    return checkpoints


def test_the_last_two_are_kept_and_the_last_is_read(tmp_path):
    saved(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "000002.json",
        "000002.safetensors",
        "000003.json",
        "000003.safetensors",
    ]
    found = Checkpoints(tmp_path).latest()
    assert found.notes == {"step": 3, "rate": 3.1, "none": None}
    assert (
        torch.equal(found.tensors["w"], torch.full((3, 2), 3.0))
        and found.tensors["count"].shape == ()
    )


def test_a_folder_without_checkpoints_has_none(tmp_path):
    assert Checkpoints(tmp_path / "absent").latest() is None
    checkpoints = saved(tmp_path)
    checkpoints.clear()
    assert checkpoints.latest() is None and not list(tmp_path.iterdir())


def alter(path, at):
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


DAMAGE = {
    "a byte of the tensors": lambda folder: alter(folder / "000003.safetensors", -1),
    "a byte of their header": lambda folder: alter(folder / "000003.safetensors", 12),
    "a byte of the notes": lambda folder: alter(folder / "000003.json", -30),
    "torn tensors": (
        lambda folder: (folder / "000003.safetensors").write_bytes(
            (folder / "000003.safetensors").read_bytes()[:50]
        )
    ),
    "torn notes": lambda folder: (folder / "000003.json").write_bytes(
        (folder / "000003.json").read_bytes()[:50]
    ),
    "a line's end": (
        lambda folder: (folder / "000003.json").write_bytes(
            (folder / "000003.json").read_bytes()[:-1]
        )
    ),
    "empty notes": lambda folder: (folder / "000003.json").write_bytes(b""),
    "notes that are no object": lambda folder: (folder / "000003.json").write_text("[1]"),
    "no text": lambda folder: (folder / "000003.json").write_bytes(b"\xff\xfe\x00"),
    "tensors that are gone": lambda folder: (folder / "000003.safetensors").unlink(),
    "tensors of the one before": (
        lambda folder: (folder / "000003.safetensors").write_bytes(
            (folder / "000002.safetensors").read_bytes()
        )
    ),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_one_is_said_and_the_one_before_is_used(tmp_path, damage):
    checkpoints = saved(tmp_path)
    damage(tmp_path)
    with pytest.warns(
        UserWarning,
        match=(
            r"The checkpoint .*000003\.json is damaged: .+; it is removed, and the one before it is"
            r" used\."
        ),
    ):
        assert checkpoints.latest().notes["step"] == 2
    checkpoints.save(
        {"step": 3}, {}
    )  # the way on keeps the whole one, and does not count the damaged
    assert sorted(path.name for path in tmp_path.iterdir() if path.suffix == ".json") == [
        "000002.json",
        "000003.json",
    ]


def test_when_all_are_damaged_it_is_said_that_training_starts_anew(tmp_path):
    saved(tmp_path)
    for path in tmp_path.glob("*.json"):
        alter(path, -30)
    with pytest.warns(UserWarning) as caught:
        assert Checkpoints(tmp_path).latest() is None
    assert [
        ("the one before" in str(warning.message), "training starts anew" in str(warning.message))
        for warning in caught
    ] == [(True, False), (False, True)]


def test_what_a_kill_between_the_two_files_leaves_is_dropped(tmp_path):
    checkpoints = saved(tmp_path)
    (tmp_path / "000004.safetensors").write_bytes(b"half")
    assert checkpoints.latest().notes["step"] == 3
    checkpoints.save({"step": 4}, {"w": torch.ones(2)})
    assert torch.equal(load_file(tmp_path / "000004.safetensors")["w"], torch.ones(2))
    assert len(list(tmp_path.iterdir())) == 4


def test_notes_are_plain_json_with_a_checksum_each(tmp_path):
    saved(tmp_path)
    content = json.loads((tmp_path / "000003.json").read_text())
    assert (
        content.keys() == {"sha256", "schema", "tensors", "notes"}
        and len(content["sha256"]) == len(content["tensors"]) == 64
    )


def test_the_checksum_is_that_of_the_notes_sorted_and_as_text(tmp_path):
    Checkpoints(tmp_path).save({"stage": "première", "at": 2}, {"w": torch.ones(1)})
    content = json.loads((tmp_path / "000001.json").read_text(encoding="utf-8"))
    found = content.pop("sha256")
    assert (
        found
        == hashlib.sha256(
            json.dumps(content, sort_keys=True, ensure_ascii=False).encode()
        ).hexdigest()
    )
    assert (
        content["tensors"]
        == hashlib.sha256((tmp_path / "000001.safetensors").read_bytes()).hexdigest()
    )


@pytest.mark.parametrize("change", [{"schema": 2}, {"tensors": "0" * 64}])
def test_notes_of_another_schema_or_other_tensors_are_not_read_though_they_are_whole(
    tmp_path, change
):
    saved(tmp_path)
    content = json.loads((tmp_path / "000003.json").read_text()) | change
    del content["sha256"]
    checksum = hashlib.sha256(
        json.dumps(content, sort_keys=True, ensure_ascii=False).encode()
    ).hexdigest()
    write_json(tmp_path / "000003.json", {"sha256": checksum, **content})
    with pytest.warns(UserWarning, match="is damaged"):
        assert Checkpoints(tmp_path).latest().notes["step"] == 2


def test_any_number_of_the_last_can_be_kept(tmp_path):
    checkpoints = saved(tmp_path)
    checkpoints.keep(1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["000003.json", "000003.safetensors"]
    checkpoints.keep(1)
    assert checkpoints.latest().notes["step"] == 3


def test_other_files_of_the_folder_are_left_alone(tmp_path):
    (tmp_path / "notes.json").write_text("{}")
    checkpoints = saved(tmp_path)
    checkpoints.clear()
    assert [path.name for path in tmp_path.iterdir()] == ["notes.json"]


def test_tensors_are_kept_as_they_are_whatever_their_layout(tmp_path):
    given = torch.arange(6.0, requires_grad=True).reshape(2, 3).T
    Checkpoints(tmp_path).save({}, {"w": given})
    assert torch.equal(Checkpoints(tmp_path).latest().tensors["w"], given.detach())

"""Shards: their bytes and values; anything inconsistent is refused."""

import json
import math

import pytest
import torch
from safetensors.torch import save

from modulate.data.feature_shards import SHARD_DTYPES, parse_shard, read_bytes

VALUES = torch.arange(24.0).view(2, 3, 4)
NOTE = {"times": [0.0, 1.0]}


def shard(values=VALUES):
    return bytearray(save({"values": values}, {"modulate": json.dumps(NOTE)}))


def altered(change, rest=b""):
    """Return a shard whose header has a changed entry."""
    data = shard()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    change(header["values"])
    text = json.dumps(header).encode()
    return bytearray(len(text).to_bytes(8, "little") + text + data[8 + size :] + rest)


@pytest.mark.parametrize("dtype", SHARD_DTYPES.values())
def test_a_shard_of_safetensors_is_read_with_its_metadata_without_a_copy(dtype):
    data = shard(VALUES.to(dtype))
    note, values = parse_shard(data)
    assert note == NOTE and values.dtype == dtype and torch.equal(values, VALUES.to(dtype))
    data[-values.element_size() :] = bytes(values.element_size())
    assert values.flatten()[-1] == 0


def test_a_header_that_does_not_fit_the_file_is_refused():
    assert torch.equal(parse_shard(altered(lambda entry: None))[1], VALUES)
    wrong = [
        altered(lambda entry: None, rest=b"0"),
        altered(lambda entry: entry.update(shape=[2, 3, 3])),
        altered(lambda entry: entry.update(shape=[2, 3, 3], data_offsets=[24, 96])),
        altered(lambda entry: entry.update(shape=[-2, -3, 4], data_offsets=[4, 96])),
        altered(lambda entry: entry.update(dtype="F64")),
        altered(lambda entry: entry.update(data_offsets=[0, 95])),
        altered(lambda entry: entry.update(data_offsets=[1, 96])),
        shard()[:-1],
        shard(torch.zeros(0, 3, 4)),
        shard(torch.zeros(1))[:-4] + bytes(8),
    ]
    for data in wrong:
        with pytest.raises(ValueError, match="its header does not fit its length"):
            parse_shard(data)


def test_values_of_other_types_and_names_are_refused():
    for data in (shard(VALUES.long()), bytearray(save({"others": VALUES}))):
        with pytest.raises(KeyError):
            parse_shard(data)


def test_a_file_s_bytes_are_read_whole(tmp_path):
    path = tmp_path / "shard"
    for data in (b"", b"1", bytes(range(256)) * math.prod((64, 64))):
        path.write_bytes(data)
        found = read_bytes(path)
        path.write_bytes(b"another")
        assert found == data

"""Shards of the feature cache: a file's bytes, and the tensor in them.

Files are read, not memory-mapped: changes by another process would show up in tensors returned long
ago, and truncating a mapped file kills every process that reads it (SIGBUS).
"""

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

SHARD_DTYPES = {
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F64": torch.float64,
    "U8": torch.uint8,
}
"""Data types of shards, by safetensors' names."""


@dataclass(frozen=True)
class StoredTensor:
    """A tensor as a shard holds it: features, decoded frames, or vision-tower outputs.

    Attributes:
        values: the tensor.
        coords: one number for each entry of the first axis of ``values``: times (s) of frames and
            features, levels of a vision tower's output. A shard's metadata calls them "times".

    Raises ValueError if their numbers differ, and for an empty tensor, whose shard could not be
    told from a damaged one.
    """

    values: Tensor
    coords: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.values.numel() or len(self.values) != len(self.coords):
            raise ValueError(
                f"A stored tensor needs values and one coordinate for each entry of its first axis;"
                f" got shape {tuple(self.values.shape)} and {len(self.coords)} coordinates."
            )


def read_bytes(path: Path) -> bytearray:
    """Return a file's bytes in private memory.

    Raises ValueError if the file is truncated meanwhile.
    """
    with path.open("rb", buffering=0) as file:
        data = bytearray(os.fstat(file.fileno()).st_size)
        unread = memoryview(data)
        while unread:
            count = file.readinto(unread)
            if not count:
                raise ValueError("it was truncated while it was read")
            unread = unread[count:]
    return data


def parse_shard(data: bytearray) -> tuple[dict[str, Any], Tensor]:
    """Return the metadata and the values in a shard's bytes.

    The values share memory with ``data``; safetensors would make two more copies. Raises
    ValueError, TypeError, KeyError or RuntimeError if this is not a shard. Whether the content is
    the right one is for the caller to check.
    """
    # A safetensors file: the header's length (8 bytes, little-endian), a JSON header, the values.
    begin = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(bytes(data[8:begin]))
    entry = header["values"]
    dtype = SHARD_DTYPES[entry["dtype"]]
    shape = entry["shape"]
    start, end = entry["data_offsets"]
    count = math.prod(shape)
    if count <= 0 or start != 0 or end != count * dtype.itemsize or begin + end != len(data):
        raise ValueError("its header does not fit its length")
    values = torch.frombuffer(data, dtype=dtype, count=count, offset=begin).reshape(shape)
    return json.loads(header["__metadata__"]["modulate"]), values

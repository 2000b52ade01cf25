"""The bytes of a shard of the feature cache, and the values in them.

Read, not mapped: what another process does to a mapped file shows in values that were handed out
long ago, and one that is cut short ends the process that touches them (SIGBUS).
"""

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

STORED = {
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F64": torch.float64,
    "U8": torch.uint8,
}
"""Types of values that are kept, as safetensors names them."""


@dataclass(frozen=True)
class StoredTensor:
    """One tensor as a shard holds it, whoever made it: features, decoded frames, tower outputs.

    ``coords``: one number for each entry of the first axis of ``values``: the times (s) of frames
    and features, the levels of a vision tower's output. A shard's note calls them "times".

    Raises ValueError where the numbers of entries differ, or for an empty tensor: a shard of it
    could not be told from a damaged one.
    """

    values: Tensor
    coords: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.values.numel() or len(self.values) != len(self.coords):
            raise ValueError(
                f"A stored tensor needs values and one coordinate for each entry of its first axis;"
                f" got shape {tuple(self.values.shape)} and {len(self.coords)} coordinates."
            )


def content(path: Path) -> bytearray:
    """Return a file's bytes, which nobody else can change.

    Raises ValueError when it is cut short meanwhile.
    """
    with path.open("rb", buffering=0) as file:
        data = bytearray(os.fstat(file.fileno()).st_size)
        rest = memoryview(data)
        while rest:
            read = file.readinto(rest)
            if not read:
                raise ValueError("it was cut short while it was read")
            rest = rest[read:]
    return data


def parsed(data: bytearray) -> tuple[dict[str, Any], Tensor]:
    """Return the note and the values in a shard's bytes; the values lie in these bytes, where the
    library would make two more copies.

    Raises ValueError, TypeError, KeyError, RuntimeError for what is no shard; whether it is the
    right one is for the checksum to say.
    """
    begin = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(bytes(data[8:begin]))
    entry = header["values"]
    dtype, shape, (start, end) = STORED[entry["dtype"]], entry["shape"], entry["data_offsets"]
    count = math.prod(shape)
    if count <= 0 or start != 0 or end != count * dtype.itemsize or begin + end != len(data):
        raise ValueError("its header does not fit its length")
    values = torch.frombuffer(data, dtype=dtype, count=count, offset=begin).reshape(shape)
    return json.loads(header["__metadata__"]["modulate"]), values

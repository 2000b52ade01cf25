"""Checkpoints of a training: where it is and what it needs to go on, in safetensors and JSON, each
checked by its sha256.

A checkpoint is two files, ``NUMBER.safetensors`` and, written last, ``NUMBER.json``, which has the
other's checksum and its own. The last two are kept, and share nothing: a damaged one costs the way
back to the one before it.
"""

import hashlib
import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from modulate.errors import CheckpointError
from modulate.utils.atomic_files import (
    as_json,
    read_hash,
    read_tensors,
    write_atomically,
    write_json,
)
from modulate.utils.safe_load import parse_json, read_limited

SCHEMA = 1
KEPT = 2
NOTES_BYTES = 64 << 20
"""Largest notes of a checkpoint."""


@dataclass(frozen=True)
class Checkpoint:
    """``notes``: what fits JSON. ``tensors``: the rest, on the CPU."""

    notes: dict[str, Any]
    tensors: dict[str, Tensor]


class Checkpoints:
    """The checkpoints in a folder, for the one process that holds the run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def save(self, notes: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Write one more checkpoint and drop all but the last two.

        Raises :class:`StorageError`; the checkpoints before are then still there.
        """
        numbers = self._numbers()
        number = numbers[-1] + 1 if numbers else 1
        whole = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
        write_atomically(
            self._tensors(number), lambda path: save_file(whole, path, {"format": "pt"})
        )
        content = {
            "schema": SCHEMA,
            "tensors": read_hash(self._tensors(number)),
            "notes": dict(notes),
        }
        write_json(self._notes(number), {"sha256": _hash(content), **content})
        self.keep(KEPT)

    def latest(self) -> Checkpoint | None:
        """Return the last whole checkpoint, None when there is none.

        Damaged ones are removed, with a warning that says what was found.
        """
        for number in reversed(self._numbers()):
            try:
                return self._read(number)
            except CheckpointError as error:
                self._drop([number])
                left = (
                    "the one before it is used"
                    if self._numbers()
                    else "no other is left, so that training starts anew"
                )
                warnings.warn(f"{error}; it is removed, and {left}.", stacklevel=2)
        return None

    def keep(self, last: int) -> None:
        """Drop all but the ``last``."""
        self._drop(self._numbers()[:-last])

    def clear(self) -> None:
        """Remove every checkpoint."""
        self._drop(self._numbers()[::-1])

    def _notes(self, number: int) -> Path:
        return self.folder / f"{number:06d}.json"

    def _tensors(self, number: int) -> Path:
        return self.folder / f"{number:06d}.safetensors"

    def _numbers(self) -> list[int]:
        return sorted(
            int(path.stem) for path in self.folder.glob("*.json") if path.stem.isdecimal()
        )

    def _drop(self, numbers: list[int]) -> None:
        for number in numbers:
            # First: without it the tensors are no checkpoint.
            self._notes(number).unlink(missing_ok=True)
            self._tensors(number).unlink(missing_ok=True)
        # Left by a kill between the two files of one.
        for path in self.folder.glob("*.safetensors"):
            if not path.with_suffix(".json").is_file():
                path.unlink(missing_ok=True)

    def _read(self, number: int) -> Checkpoint:
        path = self._notes(number)
        try:
            data = read_limited(path, NOTES_BYTES)
            content = parse_json(data, path.name)
            if (
                data != as_json(content).encode()
                or content.pop("sha256") != _hash(content)
                or content["schema"] != SCHEMA
            ):
                raise ValueError("its checksum does not match")
            if read_hash(self._tensors(number)) != content["tensors"]:
                raise ValueError(f"the checksum of {self._tensors(number).name} does not match")
            return Checkpoint(content["notes"], read_tensors(self._tensors(number)))
        except (
            OSError,
            ValueError,
            LookupError,
            TypeError,
            AttributeError,
            SafetensorError,
        ) as error:
            raise CheckpointError(f"The checkpoint {path} is damaged: {error}") from error


def _hash(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(
        json.dumps(content, sort_keys=True, ensure_ascii=False).encode()
    ).hexdigest()

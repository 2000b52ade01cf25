"""Conditions that an evaluation has finished, kept until all are, so that a kill costs the one it
was at.
"""

import hashlib
import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from modulate.errors import DataError
from modulate.evaluation.predictions import Prediction, as_lines, parse_predictions
from modulate.utils.atomic_files import write_atomically
from modulate.utils.safe_load import LINES_BYTES, read_limited
from modulate.utils.schema import Record, parse_record


class Head(Record):
    """First line of a file of finished answers: which evaluation's they are, and the checksum of
    the lines below.
    """

    key: str
    sha256: str


class FinishedConditions:
    """Finished conditions of one split in a folder, a file each, and only for one evaluation:
    ``made_of`` is everything that answers depend on.
    """

    def __init__(self, folder: Path, split: str, made_of: Any) -> None:
        self.folder = folder
        self.split = split
        self.key = hashlib.sha256(json.dumps([split, made_of], sort_keys=True).encode()).hexdigest()

    def read(self, condition: str, ids: Sequence[str]) -> list[Prediction] | None:
        """Return the answers under ``condition`` to the samples ``ids``, None when they are not
        there, or are another evaluation's.

        Damaged ones are left alone, with a warning.
        """
        path = self._path(condition)
        if not path.exists():
            return None
        try:
            head, _, lines = read_limited(path, LINES_BYTES).partition(b"\n")
            notes = parse_record(head, Head, f"{path}, line 1", "head of finished answers", "")
            if notes.key != self.key:
                return None
            if notes.sha256 != _hash(lines):
                raise DataError("its checksum does not match")
            records = list(parse_predictions(lines.split(b"\n")[:-1], str(path), first=2))
            if [record.id for record in records] != list(ids) or any(
                record.condition != condition for record in records
            ):
                raise DataError("they are of other samples, or of another condition")
        except DataError as error:
            warnings.warn(
                f"The answers in {path} are damaged ({str(error).strip()}); the condition"
                f" {condition!r} is evaluated again.",
                stacklevel=2,
            )
            return None
        return records

    def write(self, condition: str, records: Sequence[Prediction]) -> None:
        """Keep the answers under ``condition``. Raises :class:`StorageError`."""
        lines = as_lines(records)
        head = json.dumps({"key": self.key, "sha256": _hash(lines.encode())})
        write_atomically(
            self._path(condition),
            lambda path: path.write_text(f"{head}\n{lines}", encoding="utf-8"),
        )

    def clear(self) -> None:
        """Remove what is kept of this split, whatever evaluation it is of."""
        for path in self.folder.glob(f"{quote(self.split, safe='')}-*.jsonl"):
            path.unlink(missing_ok=True)
        if self.folder.is_dir() and not any(self.folder.iterdir()):
            self.folder.rmdir()

    def _path(self, condition: str) -> Path:
        return (
            self.folder / f"{quote(self.split, safe='')}-{quote(condition, safe='')}.jsonl"
        )  # a recipe's own name for a condition may hold anything


def _hash(text: bytes) -> str:
    return hashlib.sha256(text).hexdigest()

"""Conditions that an evaluation has finished, saved so that an interruption costs only one."""

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


class Header(Record):
    """First line of a file of finished predictions.

    ``key``: the evaluation that they belong to. ``sha256``: checksum of the lines below.
    """

    key: str
    sha256: str


class FinishedConditions:
    """Predictions of finished conditions, one file each, valid for one evaluation only.

    Args:
        folder: folder of the files.
        split: the split that is evaluated.
        inputs: everything that the predictions depend on, JSON-serializable. Files that were
            written with other inputs are ignored.
    """

    def __init__(self, folder: Path, split: str, inputs: Any) -> None:
        self.folder = folder
        self.split = split
        self.key = hashlib.sha256(json.dumps([split, inputs], sort_keys=True).encode()).hexdigest()

    def read(self, condition: str, ids: Sequence[str]) -> list[Prediction] | None:
        """Return the predictions of the samples ``ids`` under ``condition``.

        None if there are none, or if they belong to another evaluation. Damaged files are ignored
        with a warning: evaluating again is always right.
        """
        path = self._path(condition)
        if not path.exists():
            return None
        try:
            header_line, _, lines = read_limited(path, LINES_BYTES).partition(b"\n")
            what = "header of finished predictions"
            header = parse_record(header_line, Header, f"{path}, line 1", what, "")
            if header.key != self.key:
                return None
            if header.sha256 != _sha256(lines):
                raise DataError("their checksum does not match")
            records = list(parse_predictions(lines.split(b"\n")[:-1], str(path), first=2))
            # The checksum proves only that the lines are those written, not that they are complete.
            same_samples = [record.id for record in records] == list(ids)
            if not same_samples or any(record.condition != condition for record in records):
                raise DataError("they belong to other samples, or to another condition")
        except DataError as error:
            warnings.warn(
                f"The predictions in {path} are damaged ({str(error).strip()}); the condition"
                f" {condition!r} is evaluated again.",
                stacklevel=2,
            )
            return None
        return records

    def write(self, condition: str, records: Sequence[Prediction]) -> None:
        """Save the predictions under ``condition``. Raises :class:`StorageError`."""
        lines = as_lines(records)
        header = json.dumps({"key": self.key, "sha256": _sha256(lines.encode())})
        write_atomically(
            self._path(condition),
            lambda path: path.write_text(f"{header}\n{lines}", encoding="utf-8"),
        )

    def clear(self) -> None:
        """Remove the files of this split, whichever evaluation they belong to."""
        for path in self.folder.glob(f"{quote(self.split, safe='')}-*.jsonl"):
            path.unlink(missing_ok=True)
        if self.folder.is_dir() and not any(self.folder.iterdir()):
            self.folder.rmdir()

    def _path(self, condition: str) -> Path:
        # A recipe may name its own conditions with any characters, slashes included.
        name = f"{quote(self.split, safe='')}-{quote(condition, safe='')}.jsonl"
        return self.folder / name


def _sha256(text: bytes) -> str:
    return hashlib.sha256(text).hexdigest()

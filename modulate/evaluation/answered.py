"""Conditions that an evaluation has finished, kept until all are, so that a kill costs the one it was at."""

import hashlib
import json
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any
from urllib.parse import quote

from modulate.evaluation.metrics import Prediction
from modulate.files import write_atomically


class Answered:
    """Finished conditions of one split in a folder, a file each, and only for one evaluation: ``made_of`` is everything that answers depend on."""

    def __init__(self, folder: Path, split: str, made_of: Any) -> None:
        self.folder, self.split = folder, split
        self.key = hashlib.sha256(json.dumps([split, made_of], sort_keys=True).encode()).hexdigest()

    def read(self, condition: str) -> list[Prediction] | None:
        """Return the answers under ``condition``, None when they are not there, or are another evaluation's. Damaged ones are left alone, with a warning."""
        path = self._path(condition)
        if not path.is_file():
            return None
        try:
            head, _, lines = path.read_text(encoding="utf-8").partition("\n")
            notes = json.loads(head)
            if notes["key"] != self.key:
                return None
            if notes["sha256"] != _hash(lines):
                raise ValueError("its checksum does not match")
            return from_lines(lines)
        except (OSError, ValueError, LookupError, TypeError) as error:
            warnings.warn(f"The answers in {path} are damaged ({error}); the condition {condition!r} is evaluated again.", stacklevel=2)
            return None

    def write(self, condition: str, records: Sequence[Prediction]) -> None:
        """Keep the answers under ``condition``. Raises :class:`StorageError`."""
        lines = as_lines(records)
        head = json.dumps({"key": self.key, "sha256": _hash(lines)})
        write_atomically(self._path(condition), lambda path: path.write_text(f"{head}\n{lines}", encoding="utf-8"))

    def clear(self) -> None:
        """Remove what is kept of this split, whatever evaluation it is of."""
        for path in self.folder.glob(f"{quote(self.split, safe='')}-*.jsonl"):
            path.unlink(missing_ok=True)
        if self.folder.is_dir() and not any(self.folder.iterdir()):
            self.folder.rmdir()

    def _path(self, condition: str) -> Path:
        return self.folder / f"{quote(self.split, safe='')}-{quote(condition, safe='')}.jsonl"  # a recipe's own name for a condition may hold anything


def as_lines(records: Sequence[Prediction]) -> str:
    """Return predictions as lines of JSON."""
    return "".join(json.dumps(asdict(r), ensure_ascii=False) + "\n" for r in records)


def from_lines(lines: str) -> list[Prediction]:
    """Return the predictions that :func:`as_lines` was given."""
    return [_prediction(json.loads(line)) for line in lines.split("\n")[:-1]]


def _prediction(fields: dict[str, Any]) -> Prediction:
    return Prediction(**{**fields, "logits": tuple(fields["logits"])})


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()

"""A table of questions as a data set. Nothing is read before the first call of a method."""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from modulate.errors import DataError, near_matches
from modulate.interfaces.components import Dataset
from modulate.interfaces.inspection import Inspection
from modulate.interfaces.sample import Sample, SampleClip
from modulate_table.columns import Columns
from modulate_table.hugging_face import is_saved
from modulate_table.media import Files
from modulate_table.params import SPLITS, UNUSED, TableParams
from modulate_table.questions import ReadRows, read_rows
from modulate_table.readers import SUFFIXES, Problem, RowTable
from modulate_table.rows import Question, RowReader
from modulate_table.sources import read_source, tables_in
from modulate_table.splits import assign_splits

ALL = "all"
"""In place of a split: the rows of all three."""

MOST_SHOWN = 5
"""Bad rows that an error names; `modulate data check` names all."""


class Table(Dataset):
    """The rows of a table as samples.

    Methods raise :class:`~modulate.errors.MissingFileError` or :class:`DataError` if the table
    cannot be read, or if a row cannot be used and ``skip_bad_rows`` is not set.
    """

    Params = TableParams

    def __init__(self, params: TableParams) -> None:
        self.params = params
        self.root = params.root.expanduser()

    def prepare(self) -> None:
        """Read the whole table, and check every row."""
        self._splits  # noqa: B018

    @cached_property
    def table(self) -> RowTable:
        """The rows as they are in the files."""
        return read_source(self.params, self.root)

    @cached_property
    def columns(self) -> Columns:
        """Which column each field comes from."""
        return Columns(self.params, self.table.columns)

    @cached_property
    def rows(self) -> ReadRows:
        """The rows as questions, before bad ones are refused or left out, and before the split."""
        reader = RowReader(
            self.params, self.columns, Files(self.root, self.params.allow_outside, _libraries())
        )
        return read_rows(self.table, reader, self.params.answers_are)

    @property
    def problems(self) -> Sequence[Problem]:
        """The rows that cannot be used."""
        return self.rows.problems

    @cached_property
    def _splits(self) -> dict[str, list[Question]]:
        if self.problems and not self.params.skip_bad_rows:
            raise DataError(self._refusal())
        if not self.rows.questions:
            raise DataError(f"{self._name()} holds no row that can be used.")
        return assign_splits(self.rows.questions, self.params, self.root)

    def _name(self) -> str:
        return ", ".join(self.table.sources)

    def _refusal(self) -> str:
        total = len(self.table.rows) + len(self.table.problems)
        shown = [str(problem) for problem in self.problems[:MOST_SHOWN]]
        if len(self.problems) > MOST_SHOWN:
            shown.append(f"… and {len(self.problems) - MOST_SHOWN} more")
        lines = "".join(f"\n  {line}" for line in shown)
        return (
            f"{len(self.problems)} of {total} rows of {self._name()} cannot be used:{lines}\nMend"
            " them, or leave them out with data.params.skip_bad_rows=true. `modulate data check`"
            " lists all."
        )

    @classmethod
    def recognize(cls, path: Path) -> BaseModel | None:
        """Return the parameters that read a table, a folder with tables, or one that was saved."""
        if path.is_file():
            is_table = path.suffix.lower() in SUFFIXES
            return TableParams(root=path.parent, files=path.name) if is_table else None
        is_table = path.is_dir() and (is_saved(path) or bool(tables_in(path)))
        return TableParams(root=path) if is_table else None

    def inspect(self, inspection: Inspection) -> Mapping[str, Sequence[Sample]]:
        """Name every bad row, unused columns and shared videos; return the samples of the others.

        Raises :class:`DataError` where the whole table cannot be read or split.
        """
        total = len(self.table.rows) + len(self.table.problems)
        inspection.figures["rows"] = {"read": total, "bad": len(self.problems)}
        if self.problems:
            skipped = self.params.skip_bad_rows
            inspection.add(
                "warning" if skipped else "error",
                f"{len(self.problems)} of {total} rows of {self._name()} cannot be used"
                + (" and are left out (skip_bad_rows)." if skipped else "."),
                list(map(str, self.problems)),
            )
        if self.columns.unused:
            columns = ", ".join(self.columns.unused)
            inspection.add("info", f"Columns that are not used: {columns}.")
        splits = assign_splits(self.rows.questions, self.params, self.root)
        if splits[UNUSED]:
            inspection.add("info", f"{len(splits[UNUSED])} rows are of the split `unused`.")
        if self.params.allow_shared_videos:
            inspection.add("info", "Splits may share videos (allow_shared_videos).")
        for name in SPLITS:
            if not splits[name]:
                inspection.add("info", f"The split {name!r} has no row.")
        return {name: list(map(_sample, splits[name])) for name in SPLITS}

    def skipped_rows(self) -> dict[str, int]:
        """Return how many rows of each file `skip_bad_rows` leaves out."""
        counts = Counter(problem.place.rpartition(", ")[0] for problem in self.problems)
        return dict(counts)

    def samples(self, split: str) -> list[Sample]:
        """Return the samples of ``split``, or of all three splits ("all"), in the table's order."""
        if split not in (*SPLITS, ALL):
            raise DataError(f"Unknown split {split!r}. {near_matches(split, (*SPLITS, ALL))}")
        wanted = SPLITS if split == ALL else (split,)
        return [_sample(question) for name in wanted for question in self._splits[name]]

    @classmethod
    def with_root(cls, params: BaseModel, root: Path) -> BaseModel:
        """Return ``params`` for a table of the same kind in the folder ``root``."""
        if getattr(params, "hub", None) is not None:
            raise DataError(
                "The rows come from the hub (`hub`), so no folder can replace them. Change the"
                " recipe."
            )
        return super().with_root(params, root)

    def fingerprint(self) -> str:
        """Return a hash of all samples by split, and of the sizes of the files that they name.

        The same data in another folder, or in a table of another format, have the same.
        """
        digest = hashlib.sha256()
        for split in SPLITS:
            digest.update(split.encode())
            for question in self._splits[split]:
                digest.update(json.dumps(self._facts(question), sort_keys=True).encode())
        return f"table-{digest.hexdigest()[:16]}"

    def _facts(self, question: Question) -> list[Any]:
        clips = [self._clip_facts(clip) for clip in question.clips]
        asked = [question.question, question.options, question.answer, question.answers]
        return [question.task, clips, asked, question.groups]

    def _clip_facts(self, clip: SampleClip) -> list[Any]:
        signals = {kind: _size(path) for kind, path in clip.signals.items()}
        return [clip.file.name, _size(clip.file), clip.window, signals, clip.is_image]


def _size(path: Path) -> int:
    return path.stat().st_size


def _libraries() -> list[Path]:
    """Return the folders into which the library `datasets` downloads files."""
    home = os.environ.get("HF_HOME", "~/.cache/huggingface")
    return [Path(home).expanduser()]


def _sample(question: Question) -> Sample:
    return Sample(
        question.id,
        question.task,
        question.clips,
        question.question,
        question.options,
        question.answer,
        question.answers,
        question.groups,
        {"source": question.place},
    )

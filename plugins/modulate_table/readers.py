"""Rows of tables in CSV, TSV, JSON lines, JSON and Parquet. Imports no torch.

A row that cannot be read is a :class:`Problem` with its line; the rows after it are still read.
"""

import csv
import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modulate.errors import DataError, MissingFileError, PluginError, shown
from modulate.utils.safe_load import parse_json, read_json, read_limited, read_lines
from modulate_table.embedded import extract

CSV_BYTES = 512 << 20
"""Largest CSV file."""

SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".parquet")
"""Suffixes of the files that are read as tables."""

EXTRA = "pip install 'modulate[table]'"


@dataclass(frozen=True)
class Row:
    """One row of a table.

    Attributes:
        place: file and line, as errors name it: ``questions.csv, line 4``.
        key: file and number, from which an id is made: ``questions.csv:4``.
        values: cells by column. Text in CSV; JSON and Parquet have types.
        split: split of the row's file, None if the file belongs to none.
    """

    place: str
    key: str
    values: Mapping[str, Any]
    split: str | None = None


@dataclass(frozen=True)
class Problem:
    """A row that cannot be used: its place, and why."""

    place: str
    text: str

    def __str__(self) -> str:
        return f"{self.place}: {self.text}"


@dataclass(frozen=True)
class RowTable:
    """The rows of one or more files.

    Attributes:
        rows: rows that could be read.
        problems: rows that could not.
        columns: names of all columns, in order.
        sources: name of each file or data set that was read.
    """

    rows: tuple[Row, ...]
    problems: tuple[Problem, ...]
    columns: tuple[str, ...]
    sources: tuple[str, ...]


def join_tables(parts: list[RowTable]) -> RowTable:
    """Return several tables as one."""
    return RowTable(
        tuple(row for part in parts for row in part.rows),
        tuple(problem for part in parts for problem in part.problems),
        tuple(dict.fromkeys(column for part in parts for column in part.columns)),
        tuple(dict.fromkeys(source for part in parts for source in part.sources)),
    )


def read_table(
    path: Path,
    name: str,
    extracted: Path,
    delimiter: str | None = None,
    split: str | None = None,
) -> RowTable:
    """Return the rows of the file at ``path``.

    Args:
        path: a file with one of :data:`SUFFIXES`.
        name: what errors call the file.
        extracted: folder for files that are embedded in a Parquet table.
        delimiter: between the cells of a .csv file; by default a comma.
        split: the split to which its rows belong.

    Raises:
        MissingFileError: there is no such file.
        DataError: the file cannot be read as a table at all.
    """
    if not path.is_file():
        raise MissingFileError(f"There is no table at {path}. Check `root` and `files`.")
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        found = _parquet(path, name, extracted)
    elif suffix in (".jsonl", ".ndjson"):
        found = _json_lines(path, name)
    elif suffix == ".json":
        found = _json_list(path, name)
    elif suffix in (".csv", ".tsv"):
        found = _csv(path, name, "\t" if suffix == ".tsv" else delimiter or ",")
    else:
        raise DataError(f"{path} is no table: its name must end in one of {', '.join(SUFFIXES)}.")
    rows: list[Row] = []
    problems: list[Problem] = []
    for place, key, values in found:
        if isinstance(values, str):
            problems.append(Problem(place, values))
        else:
            rows.append(Row(place, key, values, split))
    if not rows and not problems:
        raise DataError(f"{path} holds no row.")
    columns = tuple(dict.fromkeys(column for row in rows for column in row.values))
    return RowTable(tuple(rows), tuple(problems), columns, (name,))


_Found = Iterator[tuple[str, str, Mapping[str, Any] | str]]
"""Place and key of each row, and its values, or a text that says why it has none."""


def _csv(path: Path, name: str, delimiter: str) -> _Found:
    try:
        # Spreadsheets write a byte-order mark.
        text = read_limited(path, CSV_BYTES).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise DataError(
            f"{path}, line {line} is not UTF-8 text ({error.reason}). Save the table as UTF-8."
        ) from error
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    header: list[str] | None = None
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise DataError(
                f"{path}, line {line}: {error}. A cell with a quote must be in quotes, and its own"
                " quotes doubled."
            ) from error
        if cells is None:
            return
        if header is None:
            header = _header(path, cells, delimiter)
        # The reader returns an empty list for a line without any character.
        elif cells:
            place = f"{name}, line {line}"
            if len(cells) != len(header):
                reason = (
                    f"it has {len(cells)} cells, but the header has {len(header)}; a text with a"
                    f" {delimiter!r} in it must be in quotes"
                )
                yield place, "", reason
            else:
                yield place, f"{name}:{line}", dict(zip(header, cells, strict=True))


def _header(path: Path, cells: list[str], delimiter: str) -> list[str]:
    names = [cell.strip() for cell in cells]
    twice = sorted({column for column in names if names.count(column) > 1})
    if twice:
        raise DataError(f"{path}: its header names the column {twice[0]!r} more than once.")
    if len(names) == 1 and any(other in names[0] for other in ";\t,"):
        raise DataError(
            f"{path}: its header is the single column {shown(names[0])}. Cells are separated by"
            f" {delimiter!r} here; name another separator with `delimiter`."
        )
    return names


def _json_lines(path: Path, name: str) -> _Found:
    for number, line in read_lines(path, "Table"):
        if not line.strip():
            continue
        place = f"{name}, line {number}"
        try:
            # JSON allows a byte-order mark to be ignored, and some writers put one.
            value = parse_json(line.removeprefix(b"\xef\xbb\xbf"), place)
        except DataError as error:
            yield place, "", str(error).removeprefix(f"{place} ").rstrip(".")
            continue
        yield place, f"{name}:{number}", _object(value)


def _json_list(path: Path, name: str) -> _Found:
    values = read_json(path, "Table")
    if not isinstance(values, list):
        raise DataError(
            f"{path} must hold a list of objects, one for each row; got {type(values).__name__}."
        )
    for number, value in enumerate(values):
        yield f"{name}, entry {number} (from 0)", f"{name}:{number}", _object(value)


def _object(value: Any) -> Mapping[str, Any] | str:
    return value if isinstance(value, dict) else f"a row must be an object; got {shown(value)}"


def _parquet(path: Path, name: str, extracted: Path) -> _Found:
    for number, values in enumerate(_parquet_rows(path)):
        place = f"{name}, row {number} (from 0)"
        yield place, f"{name}:{number}", extract(values, extracted)


def _parquet_rows(path: Path) -> Iterator[dict[str, Any]]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise PluginError(f"Parquet files need the library pyarrow: {EXTRA}") from error
    try:
        file = pyarrow.parquet.ParquetFile(path)
        for batch in file.iter_batches(batch_size=1024):
            yield from batch.to_pylist()
    # ValueError: also of texts that are not UTF-8.
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError) as error:
        raise DataError(f"{path} cannot be read as Parquet: {error}.") from error

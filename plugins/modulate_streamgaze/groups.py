"""Find the participant and the original data set of each video; imports no torch.

Splits and statistics depend on them, but StreamGaze's question files contain neither. The first
source that names them wins: the user's table, the entries of the questions, the tables in
``metadata/``, the video's name, its folder.
"""

import csv
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath

from modulate.errors import DataError, MissingFileError, shown
from modulate_streamgaze.questions import Item, video_stem

SOURCES = ("egtea", "egoexolearn", "holoassist", "ego4d")
ALSO_CALLED = {"egoexo": "egoexolearn", "egtea gaze+": "egtea", "egtea_gaze": "egtea"}
"""Other names of data sets; StreamGaze's code calls EgoExoLearn ``egoexo``."""

COLUMNS = {
    "video": (
        "video",
        "video_name",
        "video_source",
        "video_path",
        "video_id",
        "video_uid",
        "source_file",
    ),
    "participant": ("participant", "participant_id", "subject", "subject_id", "person", "viewer"),
    "source": ("source", "dataset"),
}
"""Possible names of a table's columns; the first that exists counts.

In StreamGaze's tables, ``video_source`` is the video's name.
"""

OF_VIDEO = re.compile(r"(_fixation_.*)?\.csv$", re.ASCII)
"""Suffix of a fixation file's name, which some tables hold instead of the video's name.

StreamGaze's code removes it in the same way.
"""

MAX_BYTES = 512 * 2**20

EGTEA = re.compile(r"(O?P\d+)-R\d+-", re.ASCII | re.IGNORECASE)
"""EGTEA Gaze+: ``P01-R01-PastaSalad``, ``OP01-R01-PastaSalad``; the first part is the subject."""

NAMES = {
    "egtea": EGTEA,
    "egoexolearn": re.compile(
        r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", re.ASCII | re.IGNORECASE
    ),
    "holoassist": re.compile(r"[rz]\d+-", re.ASCII | re.IGNORECASE),
}
"""Patterns of video names: EGTEA as above, EgoExoLearn UUIDs, HoloAssist ``R0027-12-GoPro``."""


@dataclass
class Table:
    """The content of tables, {video stem: {"participant" or "source": value}}.

    ``notes`` say what could not be used.
    """

    rows: dict[str, dict[str, str]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def read_table(path: Path, strict: bool) -> Table:
    """Read a CSV with columns for video, participant and source, named as in :data:`COLUMNS`.

    Other columns are ignored. A table that has the name of a source, such as ``egtea.csv``, assigns
    it to all its videos. Problems raise :class:`DataError` or :class:`MissingFileError` if
    ``strict``, else they become notes: users cannot be expected to correct downloaded tables.
    """
    table = Table()
    try:
        _fill(table, path)
    except (DataError, MissingFileError) as error:
        if strict:
            raise
        table.rows.clear()
        table.notes.append(str(error))
    return table


def _fill(table: Table, path: Path) -> None:
    if not path.is_file():
        raise MissingFileError(
            f"The table {path} does not exist; it must be a CSV with the columns video,"
            " participant, source."
        )
    if path.stat().st_size > MAX_BYTES:
        raise DataError(
            f"{path} has {path.stat().st_size:,} bytes; at most {MAX_BYTES >> 20} MiB are read."
        )
    source = _canonical(path.stem) if _canonical(path.stem) in SOURCES else None
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            lines = csv.reader(file)
            header = [cell.strip().lower() for cell in next(lines, [])]
            columns = {
                what: next((header.index(name) for name in names if name in header), -1)
                for what, names in COLUMNS.items()
            }
            if columns["video"] < 0:
                raise DataError(
                    f"{path}, line 1: no column names the video ({' or '.join(COLUMNS['video'])});"
                    f" got {shown(','.join(header), 200)}."
                )
            for cells in lines:
                if len(cells) > columns["video"] and (stem := _stem(cells[columns["video"]])):
                    given = {
                        what: cells[column].strip()
                        for what, column in columns.items()
                        if what != "video" and 0 <= column < len(cells) and cells[column].strip()
                    }
                    if _stem(given.get("source", "")) == stem:
                        del given["source"]  # this column names the video's file, not the data set
                    row = table.rows.setdefault(stem, {"source": source} if source else {})
                    _merge(row, given, f"{path}, line {lines.line_num}: video {stem!r}")
    except (csv.Error, UnicodeDecodeError) as error:
        raise DataError(f"{path} is not readable as a UTF-8 CSV: {error}.") from error


def _stem(cell: str) -> str:
    """Return the video's stem from a name, a path, or the name of a fixation file; "" if none."""
    name = OF_VIDEO.sub("", PurePath(cell.strip().replace("\\", "/")).name)
    return video_stem(name) if name else ""


def _canonical(source: str) -> str:
    """Return the canonical name of a data set, in lower case."""
    return ALSO_CALLED.get(source.strip().lower(), source.strip().lower())


def _merge(row: dict[str, str], given: Mapping[str, str], where: str) -> None:
    for what, value in given.items():
        value = _canonical(value) if what == "source" else value
        if row.setdefault(what, value) != value:
            raise DataError(
                f"{where} has two values of {what}, {shown(row[what])} and {shown(value)}; correct"
                " one of them."
            )


@dataclass(frozen=True)
class People:
    """Participants and sources of videos, {video stem: {"participant": …, "source": …}}.

    Unknown values are absent. ``looked`` lists the places that were searched, with notes.
    """

    known: Mapping[str, Mapping[str, str]]
    looked: tuple[str, ...]

    def require(self, what: str, stems: Iterable[str]) -> dict[str, str]:
        """Return {stem: participant or source}.

        Raises :class:`DataError` with the places that were searched if it is unknown for any of
        ``stems``.
        """
        wanted = sorted(set(stems))
        missing = [stem for stem in wanted if what not in self.known.get(stem, {})]
        if missing:
            names = f"{', '.join(missing[:3])}{' …' if len(missing) > 3 else ''}"
            raise DataError(
                f"A split by {what} needs the {what} of every video; it is unknown for"
                f" {len(missing)} of {len(wanted)}: {names}. Looked for: {'; '.join(self.looked)}."
                " Name a CSV with the columns video, participant, source in `groups`, or list"
                " those videos in a split file."
            )
        return {stem: self.known[stem][what] for stem in wanted}


def gather(
    items: Iterable[Item],
    root: Path,
    metadata: Path,
    groups: Path | None,
    videos: Mapping[str, Path],
) -> People:
    """Return the participants and sources of the videos that ``items`` are about.

    ``metadata``: folder of tables; ``groups``: the user's table; ``videos``: {stem: file} of the
    existing videos. Raises :class:`DataError` if the user's table cannot be read, or if entries
    contradict each other.
    """
    own = read_table(groups, strict=True) if groups is not None else Table()
    tables = (
        [read_table(path, strict=False) for path in sorted(metadata.glob("*.csv"))]
        if metadata.is_dir()
        else []
    )
    entries = _of_entries(items)
    # In order of precedence: the first source that knows a value wins.
    known: dict[str, dict[str, str]] = {}
    for stem, entry in entries.items():
        folders = (
            videos[stem].parent.relative_to(root).parts
            if stem in videos and videos[stem].is_relative_to(root)
            else ()
        )
        rows_of_video = [
            own.rows.get(stem, {}),
            entry,
            *(table.rows.get(stem, {}) for table in tables),
            _of_name(stem),
            _of_folders(folders),
        ]
        known[stem] = {
            what: value
            for what in ("participant", "source")
            if (value := next((row[what] for row in rows_of_video if what in row), None))
        }
    looked = (
        f"the table {groups}" if groups is not None else "no table, `groups` is not set",
        "the keys participant, viewer, source and dataset of the questions' entries",
        (
            f"{len(tables)} tables in"
            f" {metadata}{''.join(f' ({note})' for table in tables for note in table.notes)}"
        ),
        "EGTEA's names (P01-R01-PastaSalad: participant P01)",
    )
    return People(known, looked)


def _of_entries(items: Iterable[Item]) -> dict[str, dict[str, str]]:
    found: dict[str, dict[str, str]] = {}
    for item in items:
        entry = item.extra.get("entry", {})
        source = entry.get("source") or entry.get("dataset")
        given = {
            "participant": item.groups.get("participant") or item.groups.get("viewer"),
            "source": None if _stem(str(source)) == item.stem else source,
        }
        row = found.setdefault(item.stem, {})
        _merge(
            row,
            {what: str(value) for what, value in given.items() if value},
            f"Question {item.id}: video {item.stem!r}",
        )
    return found


def _of_name(stem: str) -> dict[str, str]:
    match = EGTEA.match(stem)
    row = {"participant": match[1].upper()} if match else {}
    source = next((name for name, pattern in NAMES.items() if pattern.match(stem)), None)
    return {**row, "source": source} if source else row


def _of_folders(folders: Sequence[str]) -> dict[str, str]:
    return next(
        (
            {"source": name}
            for folder in reversed(folders)
            for name in SOURCES
            if name in _canonical(folder)
        ),
        {},
    )

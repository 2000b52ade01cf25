"""Which files or data sets a recipe names as its table. Imports no torch."""

from pathlib import Path

from modulate.errors import DataError, MissingFileError
from modulate_table import hugging_face
from modulate_table.params import SPLIT_NAMES, TableParams
from modulate_table.readers import SUFFIXES, RowTable, join_tables, read_table

EXTRACTED = "extracted"
"""Folder, in the table's, for pictures and videos that are embedded in it."""


def read_source(params: TableParams, root: Path) -> RowTable:
    """Return the rows that ``params`` name, in the folder ``root``.

    Raises :class:`MissingFileError`, :class:`DataError`, and
    :class:`~modulate.errors.PluginError` if a library is missing.
    """
    extracted = root / EXTRACTED
    if params.hub is not None:
        return hugging_face.read_hub(params.hub, params.config, params.revision, extracted)
    if not root.is_dir():
        raise MissingFileError(
            f"There is no folder {root.absolute()}; `root` is the folder of the table."
        )
    if params.files is not None:
        return _files(params, _by_split(params.files), root)
    if hugging_face.is_saved(root):
        return hugging_face.read_saved(root, extracted)
    found = tables_in(root)
    if len(found) == 1:
        return _files(params, [(found[0].name, None)], root)
    by_split = [(path.name, split_of(path)) for path in found]
    if found and all(split for _, split in by_split):
        return _files(params, by_split, root)
    if found:
        raise DataError(
            f"{root} holds {len(found)} tables: {', '.join(path.name for path in found[:5])}. Name"
            " those to read with `files`."
        )
    return hugging_face.read_folder(root, params.config, extracted)


def tables_in(folder: Path) -> list[Path]:
    """Return the tables that lie directly in a folder, by name."""
    return sorted(
        path
        for path in folder.iterdir()
        if path.suffix.lower() in SUFFIXES and path.is_file() and not path.name.startswith(".")
    )


def split_of(path: Path) -> str | None:
    """Return the split after which a file is named: train.csv, test-00000-of-00002.parquet."""
    return SPLIT_NAMES.get(path.stem.partition("-")[0].lower())


def _by_split(
    files: str | tuple[str, ...] | dict[str, str | tuple[str, ...]],
) -> list[tuple[str, str | None]]:
    if isinstance(files, dict):
        return [
            (name, split)
            for split, names in files.items()
            for name in ((names,) if isinstance(names, str) else names)
        ]
    return [(name, None) for name in ((files,) if isinstance(files, str) else files)]


def _files(params: TableParams, files: list[tuple[str, str | None]], root: Path) -> RowTable:
    if not files:
        raise DataError("`files` names no table.")
    extracted = root / EXTRACTED
    return join_tables(
        [
            read_table(root / Path(name).expanduser(), name, extracted, params.delimiter, split)
            for name, split in files
        ]
    )

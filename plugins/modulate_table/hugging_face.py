"""Rows of what the library `datasets` reads: saved folders, folders of files, the hub.

Imports no torch, and `datasets` only when a table needs it.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from modulate.errors import DataError, ModulateError, PluginError
from modulate_table.embedded import extract
from modulate_table.readers import EXTRA, Row, RowTable, join_tables

CHUNK = 256
"""Rows that are converted together."""


def is_saved(folder: Path) -> bool:
    """Return whether ``folder`` was written by the library's ``save_to_disk``."""
    names = ("dataset_dict.json", "state.json")
    return any((folder / name).is_file() for name in names)


def read_saved(folder: Path, extracted: Path) -> RowTable:
    """Return the rows of a folder that ``save_to_disk`` wrote; embedded files go to ``extracted``.

    Raises :class:`DataError`, and :class:`PluginError` without the library.
    """
    library = _library()
    return _rows(_load(str(folder), lambda: library.load_from_disk(str(folder))), extracted)


def read_folder(folder: Path, config: str | None, extracted: Path) -> RowTable:
    """Return the rows of a folder of data files, as the library finds them.

    Raises :class:`DataError`, and :class:`PluginError` without the library.
    """
    library = _library()
    return _rows(_load(str(folder), lambda: library.load_dataset(str(folder), config)), extracted)


def read_hub(name: str, config: str | None, revision: str | None, extracted: Path) -> RowTable:
    """Return the rows of the data set ``name`` on the hub; the library downloads it once.

    Raises :class:`DataError`, and :class:`PluginError` without the library.
    """
    library = _library()
    return _rows(
        _load(name, lambda: library.load_dataset(name, config, revision=revision)), extracted
    )


def _library() -> Any:
    try:
        import datasets
    except ImportError as error:
        raise PluginError(
            f"This data set needs Hugging Face's library `datasets`: {EXTRA}"
        ) from error
    return datasets


def _load(name: str, load: Any) -> Mapping[str | None, Any]:
    """Return the data sets by split, under None for one without splits."""
    import datasets

    before = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        found = load()
    except ModulateError:
        raise
    # The library raises errors of many libraries: of the hub, of Arrow, of its own builders.
    except Exception as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DataError(f"The library `datasets` cannot read {name}: {first}") from error
    finally:
        if before:
            datasets.enable_progress_bars()
    parts: dict[str | None, Any] = dict(found) if isinstance(found, dict) else {None: found}
    # The library calls the only part of a data set without splits `train`.
    return {None: parts["train"]} if parts.keys() == {"train"} else parts


def _rows(parts: Mapping[str | None, Any], extracted: Path) -> RowTable:
    return join_tables([_part(split, part, extracted) for split, part in parts.items()])


def _part(split: str | None, part: Any, extracted: Path) -> RowTable:
    name = split or "rows"
    rows = tuple(
        Row(f"{name}, row {number} (from 0)", f"{name}:{number}", values, split)
        for number, values in enumerate(_values(part, extracted))
    )
    return RowTable(rows, (), tuple(part.column_names), (name,))


def _values(part: Any, extracted: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows as Arrow stores them: pictures and videos are not decoded."""
    names_of = {
        column: feature.names
        for column, feature in part.features.items()
        if type(feature).__name__ == "ClassLabel"
    }
    stored = part.with_format("arrow")
    for start in range(0, len(part), CHUNK):
        for values in stored[start : start + CHUNK].to_pylist():
            for column, names in names_of.items():
                label = values[column]
                values[column] = names[label] if label is not None and label >= 0 else None
            yield extract(values, extracted)

"""Which column each field of a row comes from. Imports no torch."""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from modulate import plugins
from modulate.errors import DataError, near_matches, shown
from modulate_table.cells import is_empty, text
from modulate_table.params import FIELDS, TableParams

_BRACES = re.compile(r"\{([^{}]*)\}")


class Columns:
    """The fields of rows, by the recipe's mapping.

    Args:
        params: the mapping, and the constants.
        names: the columns of the table.

    Attributes:
        names: the columns of the table.
        kinds: kinds of signal that have a column.
        unused: columns that no field reads.

    Raises:
        DataError: the mapping names a column that the table lacks.
    """

    def __init__(self, params: TableParams, names: Sequence[str]) -> None:
        self._constants: Mapping[str, Any] = params.constants
        self.names = tuple(names)
        known = [*FIELDS, *plugins.registry().names("signal")]
        self._sources: dict[str, str | tuple[str, ...]] = {
            name: name
            for name in known
            if name in names and name not in {**params.constants, **params.columns}
        }
        self._sources.update(
            {field: source for field, source in params.columns.items() if source is not None}
        )
        read = {
            column: f"columns: {field}"
            for field, source in self._sources.items()
            for column in _columns_of(source)
        }
        for option, group in (("groups", params.groups), ("split.groups", params.split.groups)):
            read.update(dict.fromkeys(group, option))
        for column, where in read.items():
            if column not in names:
                raise DataError(
                    f"{where} names the column {column!r}, which the table lacks."
                    f" {near_matches(column, names)}"
                )
        self.kinds = tuple(kind for kind in plugins.registry().names("signal") if self.has(kind))
        self.unused = tuple(column for column in names if column not in read)

    def has(self, field: str) -> bool:
        """Return whether rows have the field at all."""
        return field in self._sources or field in self._constants

    def require(self, *fields: str) -> None:
        """Raise :class:`DataError` unless rows have one of these fields."""
        if not any(map(self.has, fields)):
            raise DataError(
                f"The table has no column {' or '.join(fields)}; its columns are"
                f" {', '.join(map(shown, self.names))}. Name one: columns: {{{fields[0]}: …}}."
            )

    def refuse_both(self, one: str, other: str) -> None:
        """Raise :class:`DataError` if rows have both fields, which say the same."""
        if self.has(one) and self.has(other):
            raise DataError(
                f"The table has both {self.source(one)} and {self.source(other)}; say which is"
                f" meant: columns: {{{other}: null}} leaves that one out."
            )

    def source(self, field: str) -> str:
        """Return how errors name the field: with its column, where it has another name."""
        source = self._sources.get(field, field)
        named = ", ".join(source) if isinstance(source, tuple) else source
        return field if named == field else f"{field} ({named})"

    def get(self, field: str, row: Mapping[str, Any]) -> Any:
        """Return the field's value in a row, None if it is empty.

        Raises :class:`DataError` if a text in braces cannot be filled in.
        """
        if field in self._constants:
            return self._constants[field]
        source = self._sources.get(field)
        if source is None:
            return None
        if isinstance(source, tuple):
            return _several([row.get(column) for column in source])
        value = _filled(source, row) if _BRACES.search(source) else row.get(source)
        return None if is_empty(value) else value


def _columns_of(source: str | tuple[str, ...]) -> Iterable[str]:
    if isinstance(source, tuple):
        return source
    return _BRACES.findall(source) or (source,)


def _several(cells: Sequence[Any]) -> list[Any] | None:
    """Return the cells of several columns; empty ones at the end do not count."""
    found = list(cells)
    while found and is_empty(found[-1]):
        found.pop()
    return found or None


def _filled(template: str, row: Mapping[str, Any]) -> str | None:
    """Return the text with its columns filled in, None if one of them is empty."""
    filled = {}
    for column in _BRACES.findall(template):
        value = row.get(column)
        if is_empty(value):
            return None
        if isinstance(value, Path):
            raise DataError(f"{template}: {column} is an embedded file, and has no name")
        filled[column] = text(value, column)
    return _BRACES.sub(lambda match: filled[match[1]], template)

"""Values of cells, strictly typed: texts, lists of texts, seconds. Imports no torch.

CSV holds text only; JSON and Parquet have types, and a value of the wrong type is refused rather
than converted. Every function raises :class:`~modulate.errors.DataError`.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from modulate.errors import DataError, shown
from modulate.utils.safe_load import parse_json
from modulate_streamgaze.questions import parse_time

MAX_VALUES = 256
"""Most values of one cell."""


def is_empty(value: Any) -> bool:
    """Return whether a cell holds nothing: null, or text of white space."""
    return value is None or (isinstance(value, str) and not value.strip())


def text(value: Any, field: str) -> str:
    """Return a text; a whole number is one, too."""
    if isinstance(value, str) and value.strip():
        return value.strip()
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    # A float or a truth value has several spellings: 3 or 3.0, True or yes.
    raise DataError(f"{field} must be a text; got {_named(value)}")


def seconds(value: Any, field: str) -> float:
    """Return seconds from a number, or from text: ``12.5``, ``MM:SS`` or ``HH:MM:SS``."""
    try:
        return parse_time(value)
    except DataError:
        raise DataError(
            f"{field} must be seconds, or MM:SS or HH:MM:SS, from 0 on; got {_named(value)}"
        ) from None


def values(value: Any, field: str, separator: str) -> tuple[Any, ...]:
    """Return the values of a cell that holds several.

    That is a list; in CSV a JSON list, or texts between separators. Empty ones are None.
    """
    if isinstance(value, str):
        stripped = value.strip()
        if stripped.startswith("["):
            value = _json_list(stripped, field)
        else:
            value = stripped.split(separator)
    if not isinstance(value, Sequence) or isinstance(value, bytes):
        raise DataError(f"{field} must be a list; got {_named(value)}")
    if not 1 <= len(value) <= MAX_VALUES:
        raise DataError(f"{field} must hold 1 to {MAX_VALUES} values; got {len(value)}")
    return tuple(None if is_empty(item) else item for item in value)


def texts(value: Any, field: str, separator: str) -> tuple[str, ...]:
    """Return the texts of a cell that holds several; none may be empty."""
    found = values(value, field, separator)
    return tuple(text(item, f"value {place} of {field}") for place, item in enumerate(found, 1))


def file_name(value: Any, field: str) -> str | Path:
    """Return the name of a file as the table gives it, or the path of an extracted one."""
    if isinstance(value, Path):
        return value
    if isinstance(value, str) and value.strip():
        return value.strip()
    raise DataError(f"{field} must be the name of a file; got {_named(value)}")


def _json_list(stripped: str, field: str) -> Any:
    try:
        return parse_json(stripped.encode(), field)
    except DataError as error:
        hint = " (Python writes lists with other quotes than JSON)" if "'" in stripped else ""
        raise DataError(f"{field} begins like a JSON list, but: {error}{hint}") from None


def _named(value: Any) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return f"{shown(value)} ({type(value).__name__})"

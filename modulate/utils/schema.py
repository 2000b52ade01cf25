"""Files with a schema: what a file says, checked strictly, with errors that name file, key, value
and what is allowed. Imports no torch.

"1" is no number, 1 is no truth, and a number has a range. A key that a file lacks has a default
where older versions did not write it. A key that this version does not know is left alone, and a
warning names it: a newer version may have written it, which must not make its files unreadable; but
a key that is misspelt or renamed must not vanish without a word either.
"""

import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    Strict,
    TypeAdapter,
    ValidationError,
)

from modulate.errors import DataError, near_matches, shown
from modulate.utils.safe_load import parse_json, read_json

T = TypeVar("T")

LARGEST = 1e100
"""Largest number that a run notes, by its size: what is computed of two of them is still finite."""

SLACK = 1e-9
"""By how much a mean of shares may pass 0 or 1, for rounding."""

MAX_FINDINGS = 3
"""Most findings that one error names."""


def _bounded(value: float) -> float:
    if abs(value) > LARGEST:
        raise ValueError(f"must lie between {-LARGEST:g} and {LARGEST:g}")
    return value


Text = Annotated[str, Strict()]
Flag = Annotated[bool, Strict()]
Count = Annotated[int, Strict(), Field(ge=0, le=2**53)]
Real = Annotated[float, Strict(), Field(allow_inf_nan=False), AfterValidator(_bounded)]
Share = Annotated[float, Strict(), Field(ge=-SLACK, le=1 + SLACK)]
Difference = Annotated[float, Strict(), Field(ge=-1 - SLACK, le=1 + SLACK)]


class Record(BaseModel):
    """What one file, or one part of it, says. ``further``: it may hold keys that the schema does
    not name, by design.
    """

    model_config = ConfigDict(strict=True, extra="allow", frozen=True)
    further: ClassVar[bool] = False


def parse_record(data: bytes, model: type[T], source: str, what: str, advice: str) -> T:
    """Return the JSON text ``data`` as a ``model``; ``source`` names it in errors, ``what`` says
    what it must be, ``advice`` what to do.

    Raises :class:`DataError`.
    """
    try:
        tree = parse_json(data, source)
    except DataError as error:
        raise DataError(f"{error} {advice}") from error
    return checked(_adapter(model), tree, source, what, advice)


def read_record(path: Path, model: type[T], what: str, advice: str) -> T | None:
    """Return the JSON file at ``path`` as a ``model``, None where there is none; the rest as for
    :func:`parse_record`.
    """
    if not path.exists():
        return None
    try:
        tree = read_json(path)
    except DataError as error:
        raise DataError(f"{error} {advice}") from error
    return checked(_adapter(model), tree, str(path), what, advice)


def _adapter(model: type[T]) -> TypeAdapter[T]:
    if model not in _adapters:
        _adapters[model] = TypeAdapter(model)
    return _adapters[model]


_adapters: dict[Any, TypeAdapter[Any]] = {}
"""Of each schema that was asked for: making one takes longer than reading a line."""


def checked(adapter: TypeAdapter[T], tree: Any, source: str, what: str, advice: str) -> T:
    """Return what ``tree`` says, as ``adapter`` has it; warn of keys that are not known.

    Raises :class:`DataError`.
    """
    try:
        found = adapter.validate_python(tree)
    except ValidationError as error:
        raise DataError(f"{source}: no {what}: {findings(error)}. {advice}") from error
    for at, key, known in unknown_keys(found):
        warn_of_key(source, f"{at}{key}", known)
    return found


def findings(error: ValidationError) -> str:
    """Return what pydantic found, in one line: key, what is allowed, what was given.

    Long ones are cut, many are counted.
    """
    said = []
    found = error.errors(include_url=False, include_context=False)
    for item in found[:MAX_FINDINGS]:
        where = ".".join(map(str, item["loc"])) or "the whole"
        text = item["msg"].removeprefix("Value error, ")
        said.append(f"{where[:80]}: {text[:200]}, got {shown(item['input'])}")
    more = [f"and {len(found) - MAX_FINDINGS} more"] if len(found) > MAX_FINDINGS else []
    return "; ".join([*said, *more])


def unknown_keys(value: Any, at: str = "") -> Iterator[tuple[str, str, list[str]]]:
    """Yield the keys of records that their schema does not know: where, which, and those that it
    knows.
    """
    if isinstance(value, Record):
        if not value.further:
            yield from (
                (at, key, list(type(value).model_fields)) for key in value.model_extra or {}
            )
        value = {name: getattr(value, name) for name in type(value).model_fields}
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from unknown_keys(inner, f"{at}{key}.")
    elif isinstance(value, list):
        for i, inner in enumerate(value):
            yield from unknown_keys(inner, f"{at}{i}.")


def warn_of_key(source: str, key: str, known: list[str]) -> None:
    """Warn that a key is not known, and hence ignored."""
    text = (
        f"{source}: the key {shown(key)} is ignored, because this version of modulate does not know"
        " it; a newer one may have written it."
    )
    warnings.warn(f"{text} {near_matches(key.rpartition('.')[2], known)}", stacklevel=4)

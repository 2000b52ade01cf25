"""Strict schemas of files; errors name the file, the key, the value, and what is allowed.

Types are strict: "1" is not a number and 1 is not a boolean. Numbers have a range. Keys that older
versions did not write have defaults. An unknown key is ignored with a warning: a newer version may
have written it, which must not make the file unreadable, but a misspelled key must not go
unnoticed. Imports no torch.
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
"""Largest magnitude of a number in a run's files: products and sums of two are still finite."""

SLACK = 1e-9
"""Rounding error by which a mean of shares may lie outside [0, 1]."""

MAX_FINDINGS = 3
"""Most findings that one error lists."""


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
    """Base class of the content of a file or of a part of it.

    ``further``: the file may, by design, contain keys that are not in the schema.
    """

    model_config = ConfigDict(strict=True, extra="allow", frozen=True)
    further: ClassVar[bool] = False


def parse_record(data: bytes, model: type[T], source: str, what: str, advice: str) -> T:
    """Return the JSON text ``data`` as a ``model``. Raises :class:`DataError`.

    For errors, ``source`` names the text, ``what`` says what it should be, and ``advice`` what to
    do.
    """
    try:
        tree = parse_json(data, source)
    except DataError as error:
        raise DataError(f"{error} {advice}") from error
    return checked(_adapter(model), tree, source, what, advice)


def read_record(path: Path, model: type[T], what: str, advice: str) -> T | None:
    """Return the JSON file at ``path`` as a ``model``, or None if it does not exist.

    See :func:`parse_record` for the other arguments and errors.
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
"""Adapters by schema; creating one takes longer than reading a line."""


def checked(adapter: TypeAdapter[T], tree: Any, source: str, what: str, advice: str) -> T:
    """Validate ``tree``, and warn of unknown keys. Raises :class:`DataError`."""
    try:
        value = adapter.validate_python(tree)
    except ValidationError as error:
        raise DataError(f"{source}: invalid {what}: {findings(error)}. {advice}") from error
    for prefix, key, known in unknown_keys(value):
        warn_of_key(source, f"{prefix}{key}", known)
    return value


def findings(error: ValidationError) -> str:
    """Return pydantic's findings in one line: key, what is allowed, and the value received.

    Long texts are cut, and findings beyond :data:`MAX_FINDINGS` are only counted.
    """
    items = error.errors(include_url=False, include_context=False)
    texts = []
    for item in items[:MAX_FINDINGS]:
        where = ".".join(map(str, item["loc"])) or "the whole"
        text = item["msg"].removeprefix("Value error, ")
        texts.append(f"{where[:80]}: {text[:200]}, got {shown(item['input'])}")
    if len(items) > MAX_FINDINGS:
        texts.append(f"and {len(items) - MAX_FINDINGS} more")
    return "; ".join(texts)


def unknown_keys(value: Any, prefix: str = "") -> Iterator[tuple[str, str, list[str]]]:
    """Yield (prefix, key, known keys) of every key in ``value`` that is not in its schema."""
    if isinstance(value, Record):
        fields = list(type(value).model_fields)
        if not value.further:
            for key in value.model_extra or {}:
                yield prefix, key, fields
        value = {name: getattr(value, name) for name in fields}
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from unknown_keys(inner, f"{prefix}{key}.")
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from unknown_keys(inner, f"{prefix}{index}.")


def warn_of_key(source: str, key: str, known: list[str]) -> None:
    """Warn that an unknown key is ignored."""
    text = (
        f"{source}: the key {shown(key)} is ignored, because this version of modulate does not know"
        " it; a newer one may have written it."
    )
    warnings.warn(f"{text} {near_matches(key.rpartition('.')[2], known)}", stacklevel=4)

"""Read YAML and JSON from untrusted sources, within limits on memory, time and nesting.

YAML is safe-loaded, so tags that create Python objects are refused. Aliases count as often as they
are used, because that is what they cost whoever uses the result. A repeated key in a mapping is an
error, because YAML would silently drop the first value.
"""

import json
import math
import os
import re
from collections.abc import Hashable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode

from modulate.errors import DataError, MissingFileError, RecipeError, shown

YAML_BYTES = 256 << 10
"""Largest YAML file; the longest recipe that ships has 3 KB."""

YAML_DEPTH = 24
"""Deepest nesting of mappings and lists; recipes have 5 levels."""

YAML_NODES = 10_000
"""Most values, including keys and expanded aliases; recipes have 150."""

YAML_NUMBER = 64
"""Longest number, in characters; also for integers in JSON."""

JSON_BYTES = 64 << 20
"""Largest JSON file of a dataset."""

JSON_DEPTH = 64
"""Deepest nesting of objects and lists in a JSON file of a dataset."""

LINES_BYTES = 512 << 20
"""Largest file of JSON lines: answers to 100 000 questions under ten conditions have 300 MB."""

LINE_BYTES = 1 << 20
"""Longest line of a JSON-lines file."""


class _Refused(yaml.MarkedYAMLError):
    """A limit is exceeded or a key repeated; ``problem_mark`` says where."""

    def __init__(self, problem: str, mark: Any) -> None:
        super().__init__(None, None, problem, mark)


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader with limits.

    Values are counted while the tree is composed, before any Python object is built from it.
    """

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._count = 0
        self._depth = 0
        # The deepest level reached since the enclosing value began.
        self._deepest = 0
        # Anchor → number of values in it, and their depth.
        self._sizes: dict[str, tuple[int, int]] = {}

    def compose_node(self, parent: Node | None, index: Any) -> Node | None:
        """Compose one value, and count it; an alias counts as everything it refers to."""
        is_alias = self.check_event(yaml.AliasEvent)
        event = self.peek_event()
        if is_alias:
            values, height = self._sizes.get(event.anchor, (0, 0))
            # An anchor gets its size when its value ends: without one, we are still inside it.
            if event.anchor in self.anchors and not values:
                raise _Refused(
                    f"the alias *{event.anchor} refers to a value that contains it",
                    event.start_mark,
                )
            self._add(values, height, event)
            return super().compose_node(parent, index)
        count_before = self._count
        deepest_before = self._deepest
        self._add(1, 1, event)
        self._depth += 1
        self._deepest = self._depth
        node = super().compose_node(parent, index)
        self._depth -= 1
        if event.anchor is not None:
            self._sizes[event.anchor] = (self._count - count_before, self._deepest - self._depth)
        self._deepest = max(deepest_before, self._deepest)
        return node

    def _add(self, values: int, height: int, event: Any) -> None:
        """Count ``values`` that reach ``height`` levels below the current depth."""
        self._count += values
        self._deepest = max(self._deepest, self._depth + height)
        if self._count > YAML_NODES:
            raise _Refused(
                f"more than {YAML_NODES} values after expanding aliases", event.start_mark
            )
        if self._depth + height > YAML_DEPTH:
            raise _Refused(f"nested deeper than {YAML_DEPTH} levels", event.start_mark)

    def compose_mapping_node(self, anchor: Any) -> MappingNode:
        """Compose a mapping, and refuse repeated keys."""
        node = super().compose_mapping_node(anchor)
        seen: dict[Hashable, Node] = {}
        for key, _ in node.value:
            if not isinstance(key, ScalarNode):
                continue
            first = seen.setdefault((key.tag, key.value), key)
            if first is not key:
                line = first.start_mark.line + 1
                raise _Refused(
                    f"the key {key.value!r} appears twice, first in line {line}", key.start_mark
                )
        return node

    def compose_scalar_node(self, anchor: Any) -> ScalarNode:
        """Compose a scalar, and refuse long numbers and lone surrogates."""
        node = super().compose_scalar_node(anchor)
        # Escapes such as "\\ud800" can write them.
        if any("\ud800" <= character <= "\udfff" for character in node.value):
            raise _Refused("half of a surrogate pair, which UTF-8 cannot encode", node.start_mark)
        is_number = node.tag in ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
        # The time to read and print an integer grows with the square of its length.
        if is_number and len(node.value) > YAML_NUMBER:
            raise _Refused(f"a number of more than {YAML_NUMBER} characters", node.start_mark)
        return node


def read_yaml(path: Path) -> Any:
    """Return the content of the YAML file at ``path``.

    Raises :class:`RecipeError` naming the file, the line, and the exceeded limit.
    """
    with path.open("rb") as file:
        data = file.read(YAML_BYTES + 1)
    _check_size(len(data), str(path))
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise RecipeError(
            f"{path} is not valid YAML: it is not UTF-8 text ({error.reason} at byte"
            f" {error.start})."
        ) from error
    return parse_yaml(text, str(path))


def parse_yaml(text: str, source: str) -> Any:
    """Return the content of the YAML ``text``; ``source`` names it in errors.

    Raises :class:`RecipeError`.
    """
    _check_size(len(text.encode("utf-8", "surrogatepass")), source)
    try:
        loader = _Loader(text)
        try:
            return loader.get_single_data()
        finally:
            loader.dispose()  # type: ignore[no-untyped-call]
    except _Refused as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise RecipeError(f"{source} is refused in line {line}: {error.problem}.") from error
    # PyYAML's safe loader converts dates and numbers without catching what Python raises.
    except (yaml.YAMLError, ValueError, TypeError, OverflowError) as error:
        raise RecipeError(f"{source} is not valid YAML: {error}") from error


def _check_size(size: int, source: str) -> None:
    if size > YAML_BYTES:
        raise RecipeError(
            f"{source} is larger than {YAML_BYTES >> 10} KiB, and no recipe is that long."
        )


def read_json(path: Path, what: str = "File") -> Any:
    """Return the content of the JSON file at ``path``; ``what`` names the kind of file in errors.

    Raises :class:`MissingFileError`, or :class:`DataError` if it is not JSON, larger than
    :data:`JSON_BYTES` or nested deeper than :data:`JSON_DEPTH`.
    """
    _refuse_device(path, what)
    try:
        size = path.stat().st_size
        if size > JSON_BYTES:
            raise DataError(
                f"{path} has {size} bytes; at most {JSON_BYTES >> 20} MiB are read. Split it, or"
                " check that it is the right file."
            )
        data = path.read_bytes()
    except FileNotFoundError:
        raise MissingFileError(f"{what} {path} does not exist.") from None
    except OSError as error:
        raise DataError(f"{what} {path} cannot be read: {error.strerror or error}.") from error
    return parse_json(data, str(path))


def read_limited(path: Path, most: int) -> bytes:
    """Return the bytes of the file at ``path``.

    Raises :class:`DataError` if it has more than ``most`` bytes or cannot be read.
    """
    _refuse_device(path, "File")
    try:
        with path.open("rb") as file:
            data = file.read(most + 1)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}.") from error
    if len(data) > most:
        raise DataError(f"{path} is larger than {most} bytes, the most that are read.")
    return data


def read_lines(path: Path, what: str = "File") -> Iterator[tuple[int, bytes]]:
    """Yield (number from 1, line) of the file at ``path``; ``what`` names its kind in errors.

    Lines end only at line feeds, which they keep: JSON texts may contain the other characters that
    ``str.splitlines`` splits at. Raises :class:`MissingFileError`, or :class:`DataError` for a file
    of more than :data:`LINES_BYTES` or a line of more than :data:`LINE_BYTES`.
    """
    _refuse_device(path, what)
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size > LINES_BYTES:
                raise DataError(
                    f"{path} has {size} bytes; at most {LINES_BYTES >> 20} MiB are read. Check"
                    " that it is the right file."
                )
            for number, line in enumerate(iter(partial(file.readline, LINE_BYTES + 1), b""), 1):
                if len(line) > LINE_BYTES:
                    raise DataError(
                        f"{path}, line {number} is longer than {LINE_BYTES >> 10} KiB, the limit"
                        " for one line."
                    )
                yield number, line
    except FileNotFoundError:
        raise MissingFileError(f"{what} {path} does not exist.") from None
    except OSError as error:
        raise DataError(f"{what} {path} cannot be read: {error.strerror or error}.") from error


def _refuse_device(path: Path, what: str) -> None:
    """Raise :class:`DataError` for a pipe or device, on which reading could block forever.

    Folders pass: the operating system has a clear error for them.
    """
    if path.exists() and not path.is_file() and not path.is_dir():
        raise DataError(f"{what} {path} is not a regular file.")


def parse_json(data: bytes, source: str) -> Any:
    """Return the content of the JSON text ``data`` (UTF-8); ``source`` names it in errors.

    Raises :class:`DataError` for invalid JSON, nesting deeper than :data:`JSON_DEPTH`, a key that
    appears twice in one object (Python would silently drop the first value), NaN and infinities,
    integers of more than :data:`YAML_NUMBER` characters (no float can hold them, and printing them
    is slow), and lone surrogates (UTF-8 cannot encode them).
    """
    try:
        text = data.decode("utf-8")
        value = json.loads(
            text,
            object_pairs_hook=_unique_keys,
            parse_constant=_refuse_constant,
            parse_float=_finite_float,
            parse_int=_short_int,
        )
        # Encoding what was read finds lone surrogates; a whole pair is one valid character.
        if _SURROGATE.search(text):
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except RecursionError as error:
        raise DataError(f"{source} is nested deeper than {JSON_DEPTH} levels.") from error
    except ValueError as error:  # JSONDecodeError, UnicodeError, and what the hooks raise
        raise DataError(f"{source} is not valid JSON: {error}.") from error
    if _is_deeper(value, JSON_DEPTH):
        raise DataError(f"{source} is nested deeper than {JSON_DEPTH} levels.")
    return value


_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
"""The JSON escape of a surrogate; two of them may make one character."""


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in pairs:
        if key in result:
            raise ValueError(f"the key {shown(key)} appears twice in one object")
        result[key] = value
    return result


def _refuse_constant(text: str) -> Any:
    raise ValueError(f"{text} is not a JSON number")


def _finite_float(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"the number {text[:YAML_NUMBER]} is too large")
    return value


def _short_int(text: str) -> int:
    if len(text) > YAML_NUMBER:
        raise ValueError(f"the number {text[:YAML_NUMBER]}… has more than {YAML_NUMBER} characters")
    return int(text)


def _is_deeper(value: Any, limit: int) -> bool:
    """Return whether lists and objects in ``value`` are nested deeper than ``limit`` levels."""
    # Level by level instead of by recursion, which could exhaust the stack.
    containers = [value] if isinstance(value, dict | list) else []
    for _ in range(limit + 1):
        children: list[Any] = []
        for container in containers:
            children += container.values() if isinstance(container, dict) else container
        containers = [child for child in children if isinstance(child, dict | list)]
        if not containers:
            return False
    return True

"""Reads YAML and JSON that others wrote: within limits, so that no file can exhaust memory, time or
the stack.

YAML is safe-loaded: tags that make Python objects are refused. Aliases are counted as if they were
written out, which is what they cost whoever uses the result; a key that stands twice in one mapping
is an error, because YAML would drop the first without a word.
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
"""Most mappings and lists inside each other; recipes have 5."""

YAML_NODES = 10_000
"""Most values, keys included and aliases written out; recipes have 150."""

YAML_NUMBER = 64
"""Most characters of one number; of a whole one in JSON, too."""

JSON_BYTES = 64 << 20
"""Largest JSON file of a data set."""

JSON_DEPTH = 64
"""Most objects and lists inside each other in a JSON file of a data set."""

LINES_BYTES = 512 << 20
"""Largest file of JSON lines: answers to 100 000 questions under ten conditions have 300 MB."""

LINE_BYTES = 1 << 20
"""Longest line of such a file."""


class _Refused(yaml.MarkedYAMLError):
    """A limit is passed, or a key repeated; ``problem_mark`` says where."""


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader with limits; sizes are counted while the tree is composed, before
    anything is built from it.
    """

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._count = self._depth = 0
        self._measures: dict[
            str, tuple[int, int]
        ] = {}  # per anchor: its values, and how deep they go
        self._deepest = 0

    def compose_node(self, parent: Node | None, index: Any) -> Node | None:
        """Compose one value; count it, and what its aliases stand for."""
        alias = self.check_event(yaml.AliasEvent)
        event = self.peek_event()
        if alias:
            values, height = self._measures.get(event.anchor, (0, 0))
            if event.anchor in self.anchors and not values:
                raise _Refused(
                    None,
                    None,
                    f"the alias *{event.anchor} stands inside what it names",
                    event.start_mark,
                )
            self._grow(values, height, event)
            return super().compose_node(parent, index)
        before = self._count
        outer = self._deepest
        self._grow(1, 1, event)
        self._depth, self._deepest = self._depth + 1, self._depth + 1
        node = super().compose_node(parent, index)
        self._depth -= 1
        if event.anchor is not None:
            self._measures[event.anchor] = (self._count - before, self._deepest - self._depth)
        self._deepest = max(outer, self._deepest)
        return node

    def _grow(self, values: int, height: int, event: Any) -> None:
        self._count += values
        self._deepest = max(self._deepest, self._depth + height)
        if self._count > YAML_NODES:
            raise _Refused(
                None, None, f"more than {YAML_NODES} values, aliases written out", event.start_mark
            )
        if self._depth + height > YAML_DEPTH:
            raise _Refused(None, None, f"nested deeper than {YAML_DEPTH} levels", event.start_mark)

    def compose_mapping_node(self, anchor: Any) -> MappingNode:
        """Compose a mapping whose keys all differ."""
        node = super().compose_mapping_node(anchor)
        seen: dict[Hashable, Node] = {}
        for key, _ in node.value:
            if (
                isinstance(key, ScalarNode)
                and (first := seen.setdefault((key.tag, key.value), key)) is not key
            ):
                line = first.start_mark.line + 1
                raise _Refused(
                    None,
                    None,
                    f"the key {key.value!r} stands there twice, first in line {line}",
                    key.start_mark,
                )
        return node

    def compose_scalar_node(self, anchor: Any) -> ScalarNode:
        """Compose a scalar; numbers have a largest length, because reading and printing long ones
        takes time that grows with its square.
        """
        node = super().compose_scalar_node(anchor)
        if any(
            "\ud800" <= character <= "\udfff" for character in node.value
        ):  # escapes can write them
            raise _Refused(
                None,
                None,
                "half of a character, which no file that repeats it could hold",
                node.start_mark,
            )
        if (
            node.tag in ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
            and len(node.value) > YAML_NUMBER
        ):
            raise _Refused(
                None, None, f"a number of more than {YAML_NUMBER} characters", node.start_mark
            )
        return node


def read_yaml(path: Path) -> Any:
    """Return what the YAML file at ``path`` holds.

    Raises :class:`RecipeError` naming file, line and the limit that it passes.
    """
    with path.open("rb") as file:
        data = file.read(YAML_BYTES + 1)
    _check_size(len(data), str(path))
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise RecipeError(
            f"{path} is not valid YAML: it is no UTF-8 text ({error.reason} at byte {error.start})."
        ) from error
    return parse_yaml(text, str(path))


def parse_yaml(text: str, source: str) -> Any:
    """Return what the YAML ``text`` holds; ``source`` names it in errors.

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
    except (
        yaml.YAMLError,
        ValueError,
        TypeError,
        OverflowError,
    ) as error:  # the safe loader converts dates and numbers unguarded
        raise RecipeError(f"{source} is not valid YAML: {error}") from error


def _check_size(size: int, source: str) -> None:
    if size > YAML_BYTES:
        raise RecipeError(
            f"{source} is larger than {YAML_BYTES >> 10} KiB, and no recipe is that long."
        )


def read_json(path: Path, what: str = "File") -> Any:
    """Return what the JSON file at ``path`` holds; ``what`` is the file's part in its data set, for
    errors.

    Raises :class:`MissingFileError`, or :class:`DataError` for what is no JSON, larger than
    :data:`JSON_BYTES` or nested deeper than :data:`JSON_DEPTH`.
    """
    _refuse_device(path, what)
    try:
        size = path.stat().st_size
        if size > JSON_BYTES:
            raise DataError(
                f"{path} has {size} bytes; at most {JSON_BYTES >> 20} MiB are read. Split it, or"
                " look at what it really is."
            )
        data = path.read_bytes()
    except FileNotFoundError:
        raise MissingFileError(f"{what} {path} does not exist.") from None
    except OSError as error:
        raise DataError(f"{what} {path} cannot be read: {error.strerror or error}.") from error
    return parse_json(data, str(path))


def read_limited(path: Path, most: int) -> bytes:
    """Return the bytes of the file at ``path``.

    Raises :class:`DataError` for one of more than ``most`` bytes, or one that cannot be read.
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
    """Yield the lines of the file at ``path`` with their numbers, from 1; ``what`` is the file's
    part, for errors.

    Lines end at line feeds alone, which they keep: texts in JSON may hold everything else that
    ``str.splitlines`` splits at. Raises :class:`MissingFileError`, or :class:`DataError` for a file
    of more than :data:`LINES_BYTES`, or a line of more than :data:`LINE_BYTES`.
    """
    _refuse_device(path, what)
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size > LINES_BYTES:
                raise DataError(
                    f"{path} has {size} bytes; at most {LINES_BYTES >> 20} MiB are read. Look at"
                    " what it really is."
                )
            for number, line in enumerate(iter(partial(file.readline, LINE_BYTES + 1), b""), 1):
                if len(line) > LINE_BYTES:
                    raise DataError(
                        f"{path}, line {number} is longer than {LINE_BYTES >> 10} KiB, the most"
                        " that are read of one."
                    )
                yield number, line
    except FileNotFoundError:
        raise MissingFileError(f"{what} {path} does not exist.") from None
    except OSError as error:
        raise DataError(f"{what} {path} cannot be read: {error.strerror or error}.") from error


def _refuse_device(path: Path, what: str) -> None:
    """Raise :class:`DataError` for what is there but no file, such as a pipe, at which a reader
    would wait for ever. Folders are left to the system's error.
    """
    if path.exists() and not path.is_file() and not path.is_dir():
        raise DataError(f"{what} {path} is no regular file.")


def parse_json(data: bytes, source: str) -> Any:
    """Return what the JSON text ``data`` (UTF-8) holds; ``source`` names it in errors.

    Raises :class:`DataError` for what is no JSON or nested deeper than :data:`JSON_DEPTH`, for a
    key that stands twice in one object, of which the first would be dropped without a word, for NaN
    and infinities, for whole numbers of more than :data:`YAML_NUMBER` characters, which no float
    could hold and whose printing takes long, and for halves of characters, which no file that
    repeats them could hold.
    """
    try:
        text = data.decode("utf-8")
        value = json.loads(
            text,
            object_pairs_hook=_distinct,
            parse_constant=_no_number,
            parse_float=_finite,
            parse_int=_short,
        )
        if _HALF.search(text):
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except RecursionError as error:
        raise DataError(f"{source} is nested deeper than {JSON_DEPTH} levels.") from error
    except ValueError as error:  # JSONDecodeError, UnicodeError, and what the hooks raise
        raise DataError(f"{source} is not valid JSON: {error}.") from error
    if _deeper(value, JSON_DEPTH):
        raise DataError(f"{source} is nested deeper than {JSON_DEPTH} levels.")
    return value


_HALF = re.compile(r"\\u[dD][89a-fA-F]")
"""How JSON writes half of a character; two of them make a whole one."""


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        again = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {shown(again)} stands twice in one object")
    return found


def _no_number(text: str) -> Any:
    raise ValueError(f"{text} is no number of JSON")


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"the number {text[:YAML_NUMBER]} is too large")
    return value


def _short(text: str) -> int:
    if len(text) > YAML_NUMBER:
        raise ValueError(f"the number {text[:YAML_NUMBER]}… has more than {YAML_NUMBER} characters")
    return int(text)


def _deeper(value: Any, limit: int) -> bool:
    """Return whether lists and objects in ``value`` stand in each other more than ``limit`` times;
    level by level, without recursion.
    """
    level = [value]
    for _ in range(limit + 1):
        level = [
            inner
            for outer in level
            if isinstance(outer, dict | list)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
        level = [inner for inner in level if isinstance(inner, dict | list)]
        if not level:
            return False
    return True

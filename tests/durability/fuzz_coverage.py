"""Measure which lines of a parser its inputs execute."""

import contextlib
import importlib
import inspect
import random
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

from tests.durability import mutations as mutate
from tests.durability.fuzz_stats import through_file
from tests.paths import ROOT

COVERAGE_INPUTS = 3000
"""Fresh mutations that coverage is measured on, beside the corpus."""


def lines_of(parser: Any) -> dict[str, set[int]]:
    """Return the executable lines of the functions that count for ``parser``, by file."""
    found: dict[str, set[int]] = {}
    for name in parser.modules:
        file = importlib.import_module(name).__file__
        assert file is not None
        for code in _codes(compile(Path(file).read_text(), file, "exec")):
            parts = set(code.co_qualname.split("."))
            wanted = not parser.only or parts & set(parser.only)
            is_function = code.co_flags & inspect.CO_NEWLOCALS  # not a module's or class's code
            if wanted and is_function and not parts & set(parser.never):
                found.setdefault(file, set()).update(
                    line for _, _, line in code.co_lines() if line and line != code.co_firstlineno
                )
    return found


def _codes(code: CodeType) -> Iterable[CodeType]:
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            yield inner
            yield from _codes(inner)


def measure_coverage(parser: Any, inputs: Iterable[bytes]) -> dict[str, Any]:
    """Return the share of the parser's lines that ``inputs`` execute, and the missed lines."""
    expected = lines_of(parser)
    ran: dict[str, set[int]] = {file: set() for file in expected}

    def local(frame: FrameType, event: str, argument: Any) -> Any:
        ran[frame.f_code.co_filename].add(frame.f_lineno)
        return local

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        return local if frame.f_code.co_filename in ran else None

    read = through_file(parser) if parser.read else parser.parse
    sys.settrace(trace)
    try:
        for index, data in enumerate(inputs):
            with contextlib.suppress(Exception):  # FuzzStats counts the findings
                parse = read if index % 10 == 0 else parser.parse
                parser.check(parse(data), data)
    finally:
        sys.settrace(None)
    missed = {
        Path(file).relative_to(ROOT).as_posix(): sorted(lines - ran[file])
        for file, lines in expected.items()
    }
    total = sum(map(len, expected.values()))
    return {
        "lines": total,
        "share": round(1 - sum(map(len, missed.values())) / total, 4),
        "missed": {file: lines for file, lines in missed.items() if lines},
    }


def fresh_mutations(parser: Any, seeds: Sequence[bytes], seed: int) -> Iterator[bytes]:
    """Yield inputs for measuring coverage, fewer for slow parsers."""
    rng = random.Random(f"coverage {seed}")
    yield from seeds
    for _ in range(int(COVERAGE_INPUTS * max(parser.share, 0.03))):
        yield mutate.mutated(seeds, parser.mutation, rng)

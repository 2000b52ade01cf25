"""Parsers of tables of questions."""

import functools
import io
import json
import math
from pathlib import Path
from typing import Any

from tests.durability import mutations as mutate
from tests.durability.parsers.parser import Parser, scratch

ROWS: list[dict[str, Any]] = [
    {
        "id": "1",
        "videos": ["a.mp4", "sub/b.mp4"],
        "question": "Which « is » it?",
        "options": ["a cup", "a knife"],
        "answer": "a knife",
        "gaze": ["a.csv", None],
        "start": [0.5, 1],
        "end": ["00:02", 3.25],
        "split": "train",
    },
    {
        "id": "2",
        "videos": ["a.mp4"],
        "question": "?",
        "options": None,
        "answer": "cup\n",
        "gaze": ["a.csv"],
        "start": [0],
        "end": [1.5],
        "split": "validation",
    },
]


@functools.cache
def folder() -> Path:
    """A folder with the files that the tables name; nothing opens them."""
    root = scratch() / "table"
    (root / "sub").mkdir(parents=True, exist_ok=True)
    for name in ("a.mp4", "sub/b.mp4", "a.csv"):
        (root / name).write_bytes(name.encode())
    return root


def csv_seeds() -> list[bytes]:
    head = "id,videos,question,options,answer,gaze,start,end,split\n"
    first = '1,a.mp4|sub/b.mp4,"Which, « is » it?",a cup|a knife,B,a.csv|,0.5|1,00:02|3.25,train\n'
    second = '2,a.mp4,"?\n!","[""A. x"", ""B. y""]",A,a.csv,,1.5,dev\n'
    free = "3,a.mp4,?,,cup,a.csv,0,1.5,test\n"
    return [(head + row).encode() for row in (first, second + first, free)] + [
        b"\xef\xbb\xbf" + (head + free).encode()
    ]


def json_seeds() -> list[bytes]:
    return [b"".join(json.dumps(row).encode() + b"\n" for row in rows) for rows in (ROWS, ROWS[1:])]


def parquet_seeds() -> list[bytes]:
    import pyarrow
    import pyarrow.parquet

    rows = [{**row, "end": [1.5] * len(row["videos"])} for row in ROWS]
    file = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    return [file.getvalue()]


def parse(suffix: str, data: bytes) -> Any:
    """Return a table's rows as questions."""
    path = folder() / f"q{suffix}"
    path.write_bytes(data)
    return read(path)


def read(path: Path) -> Any:
    from modulate_table.dataset import Table
    from modulate_table.params import TableParams

    target = path.replace(folder() / f"q{path.suffix}")
    table = Table(TableParams(root=folder(), files=target.name))
    return table.rows, len(table.table.rows) + len(table.table.problems)


def check_rows(result: Any, data: bytes) -> None:
    """Every row is a question or a problem, and a question can be asked."""
    rows, total = result
    assert len(rows.questions) + len(rows.problems) == total
    assert len({question.id for question in rows.questions}) == len(rows.questions)
    for question in rows.questions:
        assert question.question.strip() and question.id.strip() and question.clips
        for clip in question.clips:
            start, end = clip.window
            assert clip.file.is_file() and clip.file.is_relative_to(folder())
            assert 0 <= start < end and math.isfinite(end)
            assert all(path.is_file() for path in clip.signals.values())
        if question.options:
            assert 2 <= len(set(question.options)) == len(question.options)
            assert question.answer in range(len(question.options)) and not question.answers
        else:
            assert question.answer is None and question.answers and all(question.answers)
        assert question.split in ("train", "val", "test", "unused", None)
    for problem in rows.problems:
        assert problem.place and problem.text and "\n" not in problem.place


MODULES = (
    "modulate_table.readers",
    "modulate_table.cells",
    "modulate_table.columns",
    "modulate_table.rows",
    "modulate_table.answers",
    "modulate_table.questions",
)


def mutate_lines(data: bytes, rng: Any) -> bytes:
    """Mutate the JSON tree of one line, or the bytes of the whole file."""
    lines = data.split(b"\n")
    at = rng.randrange(len(lines))
    if not lines[at] or rng.random() < 0.2:
        return mutate.mutate_bytes(data, rng)
    lines[at] = mutate.mutate_json(lines[at], rng)
    return b"\n".join(lines)


def parsers() -> list[Parser]:
    """Return the parsers of tables, by format."""
    common: dict[str, Any] = {"check": check_rows, "modules": MODULES, "read": read}
    return [
        Parser(
            name="table_csv",
            what="table of questions, CSV",
            seeds=csv_seeds,
            parse=functools.partial(parse, ".csv"),
            suffix=".csv",
            **common,
        ),
        Parser(
            name="table_jsonl",
            what="table of questions, JSON lines",
            seeds=json_seeds,
            parse=functools.partial(parse, ".jsonl"),
            mutation=mutate_lines,
            suffix=".jsonl",
            **common,
        ),
        Parser(
            name="table_parquet",
            what="table of questions, Parquet",
            seeds=parquet_seeds,
            parse=functools.partial(parse, ".parquet"),
            suffix=".parquet",
            share=0.1,
            **common,
        ),
    ]

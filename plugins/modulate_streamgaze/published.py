"""Published results on StreamGaze, with notes on what is not comparable, from published.json."""

import json
from functools import cache
from pathlib import Path

from modulate.interfaces.components import Reference, ReferenceRow

FILE = Path(__file__).with_name("published.json")


@cache
def published() -> Reference:
    """Return the rows of GazeQwen's Table 1 (arXiv 2603.25841).

    Columns are the benchmark's short names of the tasks, in the order of that table.
    """
    found = json.loads(FILE.read_text(encoding="utf-8"))
    task_of = {label: task for task, label in found["labels"].items()}
    columns = [task_of[label] for label in found["columns"]]
    rows = [
        ReferenceRow(
            name,
            found["overall"][name],
            found["source"],
            dict(zip(columns, values, strict=True)) if values else {},
        )
        for name, values in found["rows"].items()
    ]
    return Reference(found["labels"], tuple(rows), tuple(found["notes"]))

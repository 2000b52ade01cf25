"""Predictions of runs as one table: a row for each run, condition and sample. Imports no torch."""

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, Literal

from modulate.errors import DataError, PluginError, near_matches
from modulate.evaluation.predictions import Prediction, read_predictions
from modulate.interfaces.sample import Sample
from modulate.runs.run import Run
from modulate.utils.atomic_files import write_atomically

Format = Literal["jsonl", "csv", "parquet"]

FORMATS: dict[str, Format] = {".jsonl": "jsonl", ".csv": "csv", ".parquet": "parquet"}
"""Format of a file by its suffix."""

RUN_COLUMNS: dict[str, str] = {
    "run": "folder of the run",
    "recipe": "name of its recipe",
    "seed": "seed of its recipe",
    "trained_with": "condition of its training: signal, blank or none",
    "split": "split that was evaluated",
}
"""Columns that say which run a row is of, and what each holds."""

PREDICTION_COLUMNS = tuple(field.name for field in fields(Prediction))
"""Columns of the answers, as in predictions.jsonl."""

QUESTION_COLUMNS: dict[str, str] = {
    "question": "text of the question",
    "options": "texts of the options",
    "right_answer": "text of the right option, or the first accepted answer",
    "given_answer": "text of the option that was chosen, or the generated text",
    "files": "names of the videos and pictures",
    "source": "where the data set has the question from, such as file and line",
}
"""Columns that the data set adds, and what each holds."""


def export_rows(
    run: Run,
    split: str = "test",
    conditions: Sequence[str] = (),
    samples: Iterable[Sample] | None = None,
) -> list[dict[str, Any]]:
    """Return a run's answers as rows: all conditions, or those named.

    ``samples``: those of the split, for the columns :data:`QUESTION_COLUMNS`. Raises
    :class:`~modulate.errors.MissingFileError` for a run that was not evaluated, and
    :class:`DataError` for an unknown condition, or for an answer to none of the samples.
    """
    found = read_predictions(run.predictions(split))
    for name in conditions:
        if name not in found:
            raise DataError(
                f"{run.folder} has no answers under {name!r}. {near_matches(name, found)}"
            )
    asked = None if samples is None else {sample.id: sample for sample in samples}
    recipe = run.recipe
    head = {
        "run": str(run.folder),
        "recipe": recipe.name,
        "seed": recipe.seed,
        "trained_with": recipe.training.condition,
        "split": split,
    }
    return [
        {**head, **asdict(record), **(_question(run, record, asked) if asked is not None else {})}
        for condition, records in found.items()
        if not conditions or condition in conditions
        for record in records
    ]


def _question(run: Run, record: Prediction, asked: Mapping[str, Sample]) -> dict[str, Any]:
    sample = asked.get(record.id)
    if sample is None:
        raise DataError(
            f"{run.folder} answers {record.id}, which the data set does not ask: the data have"
            " changed since."
        )
    chosen = record.prediction
    given = record.text
    # With four letters for all, a letter may stand for no option.
    if chosen is not None and chosen < len(sample.options):
        given = sample.options[chosen]
    right = sample.answers[0] if sample.answers else None
    if sample.answer is not None:
        right = sample.options[sample.answer]
    return {
        "question": sample.question,
        "options": list(sample.options),
        "right_answer": right,
        "given_answer": given,
        "files": [clip.file.name for clip in sample.clips],
        "source": sample.extra.get("source"),
    }


def write_rows(rows: Sequence[Mapping[str, Any]], path: Path, form: Format) -> None:
    """Write rows to a file.

    In CSV, lists are JSON and nothing is an empty cell. Raises
    :class:`~modulate.errors.StorageError`, and :class:`PluginError` if the library for Parquet is
    missing.
    """
    if form == "parquet":
        _write_parquet(rows, path)
        return
    text = _csv(rows) if form == "csv" else _json_lines(rows)
    write_atomically(path, lambda temporary: temporary.write_text(text, "utf-8", newline=""))


def _json_lines(rows: Sequence[Mapping[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _csv(rows: Sequence[Mapping[str, Any]]) -> str:
    file = io.StringIO(newline="")
    writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({key: _cell(value) for key, value in row.items()})
    return file.getvalue()


def _cell(value: Any) -> Any:
    if isinstance(value, bool):
        return "true" if value else "false"
    return json.dumps(value, ensure_ascii=False) if isinstance(value, list | tuple) else value


def _write_parquet(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise PluginError(
            "Parquet files need the library pyarrow: pip install 'modulate[table]'"
        ) from error
    table = pyarrow.Table.from_pylist([dict(row) for row in rows])
    # A column without any value would have a type that few programs read.
    schema = pyarrow.schema(
        field.with_type(pyarrow.string()) if pyarrow.types.is_null(field.type) else field
        for field in table.schema
    )
    write_atomically(
        path, lambda temporary: pyarrow.parquet.write_table(table.cast(schema), temporary)
    )

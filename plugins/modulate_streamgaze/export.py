"""Export a run's predictions in the benchmark's result format, for its own scorer.

There is one file for each task, ``<task>_output.json``: the source file's entries with all their
keys, reduced to the questions that the run answered. Multiple-choice entries gain
``model_predictions``, one for each question in order; proactive test points gain ``response`` and
``response_time_sec``. Source of the format: StreamGaze's released code.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from modulate.errors import DataError, near_matches, shown
from modulate.evaluation.predictions import FAILED_RULES, FailedRule, Prediction, read_predictions
from modulate.utils.atomic_files import write_text
from modulate.utils.safe_load import read_json
from modulate_streamgaze.questions import LETTERS, TASKS, family, usable_questions

REPLIES = ("Yes", "No")


def answers_of(path: Path, condition: str) -> list[Prediction]:
    """Return the answers under ``condition`` in a run's file of predictions.

    Raises :class:`MissingFileError`, or :class:`DataError` if there are none.
    """
    records = read_predictions(path)
    if condition not in records:
        raise DataError(
            f"{path}: the run has no predictions under {condition!r}."
            f" {near_matches(condition, records)}"
        )
    return records[condition]


def refuse_failed(failed: Sequence[Prediction], answered: int, rule: FailedRule) -> None:
    """Raise :class:`DataError` if any of ``answered`` answers ``failed``.

    The benchmark would count them as wrong replies, which they are not. ``rule`` is the run's own
    rule for failed samples.
    """
    if failed:
        first = failed[0]
        raise DataError(
            f"{failures(failed, answered, rule)} The first: {first.id}: {first.error} Mend what"
            " failed and evaluate the run again, or export them so with --allow-failed."
        )


def failures(failed: Sequence[Prediction], answered: int, rule: FailedRule) -> str:
    """Return a text on how the export treats the answers that ``failed``, of ``answered``.

    ``rule`` is the run's own rule for failed samples.
    """
    text = (
        f"{len(failed)} of {answered} answers failed. The benchmark's format has no word for"
        " that: each is exported with an empty reply, which its scorer counts as wrong."
    )
    difference = (
        f" The run's own figures differ: there, such samples are {FAILED_RULES[rule]}"
        f" (evaluation.failed: {rule})."
    )
    return text + (difference if rule != "wrong" else "")


def export(
    predictions: Sequence[Prediction], qa: Path, out: Path, condition: str
) -> dict[str, int]:
    """Write the predictions under ``condition`` as result files into ``out``.

    ``qa`` is the folder of the run's question files. A failed question gets an empty reply, which
    the benchmark scores as wrong. Returns {task: number of questions or test points}. Raises
    :class:`DataError` if there is no prediction under the condition, or if the question files are
    not those of the run.
    """
    known = {record.condition for record in predictions}
    if condition not in known:
        raise DataError(
            f"The run has no predictions under {condition!r}. {near_matches(condition, known)}"
        )
    by_task: dict[str, dict[tuple[int, ...], Prediction]] = {}
    for record in predictions:
        if record.condition == condition:
            by_task.setdefault(record.task, {})[_place(record)] = record
    unknown = sorted(by_task.keys() - set(TASKS))
    if unknown:
        raise DataError(
            f"{shown(unknown[0])} is no task of StreamGaze; only runs on StreamGaze's files can be"
            f" exported. {near_matches(unknown[0], TASKS)}"
        )
    files = {task: _result(task, qa / f"{task}.json", found) for task, found in by_task.items()}
    for task, entries in files.items():
        text = json.dumps(entries, indent=2, ensure_ascii=False) + "\n"
        write_text(out / f"{task}_output.json", text)
    return {task: len(by_task[task]) for task in TASKS if task in by_task}


def _place(record: Prediction) -> tuple[int, ...]:
    """Return (entry, question[, test point]) from the end of a prediction's id."""
    parts = record.id.split("/")
    count = 3 if family(record.task) == "proactive" else 2
    if len(parts) != count + 2 or not all(
        part.isdecimal() and len(part) < 10 for part in parts[2:]
    ):
        raise DataError(
            f"The prediction {shown(record.id)} does not say which question it answers; only runs"
            " on StreamGaze's files can be exported."
        )
    return tuple(map(int, parts[2:]))


def _result(
    task: str, path: Path, found: Mapping[tuple[int, ...], Prediction]
) -> list[dict[str, Any]]:
    items = {item.place: item for item in usable_questions(path)[0]} if path.is_file() else {}
    # A question file that was edited since would silently give other questions the run's answers.
    for place, record in found.items():
        if (
            place not in items
            or items[place].id != record.id
            or items[place].answer != record.answer
        ):
            raise DataError(
                f"{path} is not the file that the run was evaluated on: {record.id} is not in it,"
                " or its answer differs. Name the right folder with --qa."
            )
        if record.prediction is not None and record.prediction >= len(LETTERS):
            raise DataError(
                f"{record.id} is answered with option {record.prediction}, counted from 0; the"
                f" benchmark has letters for {len(LETTERS)} options."
            )
    entries = []
    answered_entries = {place[0] for place in found}
    for e, entry in enumerate(read_json(path, "Question file")):
        questions = []
        replies = []
        for q, question in enumerate(entry["questions"] if e in answered_entries else ()):
            if family(task) == "proactive":
                points = [
                    {**point, **_response(found[e, q, i])}
                    for i, point in enumerate(question["test_info"])
                    if (e, q, i) in found
                ]
                questions += [{**question, "test_info": points}] if points else []
            elif (e, q) in found:
                questions.append(question)
                replies.append(_reply(question, found[e, q]))
        if questions:
            entries.append(
                {
                    **entry,
                    "questions": questions,
                    **({"model_predictions": replies} if replies else {}),
                }
            )
    return entries


def _reply(question: Mapping[str, Any], record: Prediction) -> dict[str, Any]:
    letter = "" if record.prediction is None else LETTERS[record.prediction]
    # Questions are answered in batches, so the time of a single one is unknown.
    return {
        "question": question["question"],
        "time_stamp": question["time_stamp"],
        "model_prediction": letter,
        "model_response_time_sec": None,
    }


def _response(record: Prediction) -> dict[str, Any]:
    if record.prediction is None:
        return {"response": "", "response_time_sec": None}
    # A run that chooses among four letters may answer C or D although there are only two options.
    return {
        "response": (REPLIES if record.prediction < len(REPLIES) else LETTERS)[record.prediction],
        "response_time_sec": None,
    }

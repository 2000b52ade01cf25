"""Parse StreamGaze's question files: multiple choice and proactive, in both key conventions.

No entry is skipped: one that cannot be parsed raises :class:`~modulate.errors.DataError` with file,
entry and question. Unused keys are preserved for result files. Only the last part of a video's path
counts, and it must not lead out of the data set's folder. This module imports no torch. Source of
the formats: StreamGaze, arXiv 2512.01707, and its released question files.
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from modulate.errors import DataError, near_matches, shown
from modulate.interfaces.prompt import without_letters
from modulate.interfaces.signal import MAX_SECONDS
from modulate.utils.paths import checked_name
from modulate.utils.safe_load import parse_json, read_json

TASKS = (
    "past_scene_recall",
    "past_object_transition_prediction",
    "past_gaze_sequence_matching",
    "past_non_fixated_object_identification",
    "present_object_identification_easy",
    "present_object_identification_hard",
    "present_object_attribute_recognition",
    "present_future_action_prediction",
    "proactive_gaze_triggered_alert",
    "proactive_object_appearance_alert",
)
"""The ten tasks, named by the stems of their files: past, present, proactive."""

LETTERS = "ABCDEFGH"
ALERT = "Based on the video so far, should the alert be triggered?"
VIDEO_SUFFIXES = frozenset({".mp4", ".mkv", ".mov", ".avi", ".webm", ".m4v"})
_CLOCK = re.compile(r"(?:(\d{1,9}):)?(\d{1,9}):(\d{1,2}(?:\.\d+)?)", re.ASCII)
_SECONDS = re.compile(r"\d+(?:\.\d*)?|\.\d+", re.ASCII)
_ROOT = re.compile(r"^(?:[A-Za-z]:)?/+")
"""Root of an absolute path on the machine that wrote a question file.

It is removed: only the last part of a path counts.
"""


@dataclass(frozen=True)
class Item:
    """One question, or one test point of a proactive question.

    ``video`` is the base name in the file, ``time`` the question's time in seconds of the video,
    ``clip`` the (start, end) in seconds if the file prescribes it. ``answer`` is an index into
    ``options``. ``place`` is (entry, question) or (entry, question, test point), counted from 0.
    ``extra`` holds the unused keys, by the object that held them.
    """

    task: str
    video: str
    place: tuple[int, ...]
    question: str
    options: tuple[str, ...]
    answer: int
    time: float
    clip: tuple[float, float] | None = None
    groups: Mapping[str, str] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def stem(self) -> str:
        """The video's name without its suffix, as fixation files use it."""
        return video_stem(self.video)

    @property
    def id(self) -> str:
        """Unique and stable: task / video / entry / question [/ test point]."""
        return "/".join([self.task, self.stem, *map(str, self.place)])


def family(task: str) -> str:
    """Return "past", "present" or "proactive", which decides the visible part of the video."""
    return task.partition("_")[0]


def video_stem(name: str) -> str:
    """Return a name without a video suffix; names such as ``P01.R02`` keep their dot."""
    path = PurePosixPath(name)
    return path.stem if path.suffix.lower() in VIDEO_SUFFIXES else path.name


def parse_time(value: object) -> float:
    """Return seconds from ``MM:SS``, ``HH:MM:SS`` or a number of seconds (number or text).

    Seconds may have fractions. Raises :class:`DataError` for anything else: negative, not finite,
    :data:`MAX_SECONDS` or more, or 60 or more in a field that should carry over.
    """
    hint = (
        f"Time {shown(value)} is not readable; allowed: MM:SS, HH:MM:SS, or seconds (0 or more, in"
        " a video)."
    )
    if isinstance(value, str) and (match := _CLOCK.fullmatch(value.strip())):
        hours = int(match[1] or 0)
        minutes = int(match[2])
        seconds = float(match[3])
        if seconds >= 60 or (match[1] is not None and minutes >= 60):
            raise DataError(hint)
        return _in_video(3600 * hours + 60 * minutes + seconds, hint)
    if (
        isinstance(value, bool)
        or not isinstance(value, str | int | float)
        or (isinstance(value, str) and not _SECONDS.fullmatch(value.strip()))
    ):
        raise DataError(hint)
    try:
        # float() accepts fewer kinds of white space than strip().
        number = float(value.strip() if isinstance(value, str) else value)
    except OverflowError:
        raise DataError(hint) from None
    return _in_video(number, hint)


def _in_video(seconds: float, hint: str) -> float:
    if not 0 <= seconds < MAX_SECONDS:  # also refuses NaN
        raise DataError(hint)
    return seconds


def parse_options(value: object) -> tuple[tuple[str, ...], bool]:
    """Return the texts of the options, and whether they had letters such as "A. cup".

    The letters are removed, because the prompt adds its own. They count as letters only if all
    options have them, from A on without a gap. Raises :class:`DataError`, also for all letters in
    another order: the meaning of the answer's letter would be ambiguous.
    """
    if not isinstance(value, list) or not 2 <= len(value) <= len(LETTERS):
        raise DataError(
            f"Options must be a list of 2 to {len(LETTERS)} texts; got {shown(value, 300)}."
        )
    if not all(
        isinstance(option, str | int | float) and not isinstance(option, bool) for option in value
    ):
        raise DataError(f"Options must be texts; got {shown(value, 300)}.")
    texts = [str(option).strip() for option in value]
    options, prefixed = without_letters(texts)
    empty = [LETTERS[index] for index, text in enumerate(options) if not text]
    if empty:
        raise DataError(
            f"Option {', '.join(empty)} is empty in {shown(value, 300)}; every option needs a text."
        )
    return options, prefixed


def parse_answer(value: object, n_options: int) -> int:
    """Return the index of the answer's letter.

    Raises :class:`DataError` if it names no option.
    """
    letters = LETTERS[:n_options]
    letter = value.strip().upper() if isinstance(value, str) else ""
    if len(letter) != 1 or letter not in letters:
        raise DataError(
            f"Options ≠ letters: the answer is {shown(value)}, but there are {n_options} options,"
            f" {letters[0]} to {letters[-1]}."
        )
    return letters.index(letter)


def read_questions(path: Path) -> list[Item]:
    """Read one task's file; its stem is the task.

    Raises :class:`MissingFileError` or :class:`DataError`, naming the place.
    """
    _check_task(path)
    return _items(read_json(path, "Question file"), path)


def parse_questions(data: bytes, path: Path) -> list[Item]:
    """Return the questions in ``data``, the bytes of the file ``path``.

    Raises :class:`DataError`, naming the place.
    """
    _check_task(path)
    return _items(parse_json(data, str(path)), path)


def _check_task(path: Path) -> None:
    if path.stem not in TASKS:
        raise DataError(f"{path.name} is no task of StreamGaze. {near_matches(path.stem, TASKS)}")


def _items(entries: Any, path: Path) -> list[Item]:
    items = [
        item
        for e, entry in enumerate(_listed(entries, path))
        for item in _entry_items(path, e, entry)
    ]
    if not items:
        raise DataError(f"{path.name} holds no question; remove the file or fill it.")
    return items


def usable_questions(path: Path) -> tuple[list[Item], list[str], list[Any]]:
    """Return the readable items of a file, the errors of all other entries, and the raw entries.

    Serves to inspect files that may be broken.
    """
    try:
        _check_task(path)
        entries = _listed(read_json(path, "Question file"), path)
    except DataError as error:
        return [], [str(error)], []
    items = list[Item]()
    problems = list[str]()
    for e, entry in enumerate(entries):
        try:
            items += _entry_items(path, e, entry)
        except DataError as error:
            problems.append(str(error))
    return items, problems, entries


def _listed(entries: Any, path: Path) -> list[Any]:
    if not isinstance(entries, list):
        raise DataError(f"{path} must hold a list of entries; got {_kind(entries)}.")
    return entries


def _entry_items(path: Path, e: int, entry: Any) -> list[Item]:
    with _located(f"{path.name}, entry {e}"):
        return [
            item
            for q, question in _questions(entry)
            for item in _question_items(path.name, path.stem, entry, question, (e, q))
        ]


def _questions(entry: Any) -> Iterator[tuple[int, dict[str, Any]]]:
    if not isinstance(entry, dict):
        raise DataError(
            f"An entry must be an object with video_path and questions; got {_kind(entry)}."
        )
    for q, question in enumerate(_list_of(entry, "questions")):
        if not isinstance(question, dict):
            raise DataError(f"Question {q} must be an object; got {_kind(question)}.")
        yield q, question


def _question_items(
    file: str, task: str, entry: dict[str, Any], question: dict[str, Any], place: tuple[int, int]
) -> list[Item]:
    video = _video(entry)
    groups = _groups(entry)
    with _located(f"{file}, entry {place[0]} ({video}), question {place[1]}"):
        text = _text(question, "question")
        source = {"entry": _without(entry, "questions")}
        if family(task) == "proactive":
            extra = source | {"question": _without(question, "question", "test_info")}
            points = enumerate(_list_of(question, "test_info"))
            return [
                _test_point(task, video, (*place, p), text, point, groups, extra)
                for p, point in points
            ]
        options, prefixed = parse_options(question.get("options"))
        answer = parse_answer(question.get("answer"), len(options))
        kept = _without(question, "question", "options", "answer") | {
            "task_type": question.get("task_type", task)
        }
        time = parse_time(question.get("time_stamp"))
        return [
            Item(
                task,
                video,
                place,
                text,
                options,
                answer,
                time,
                None,
                groups,
                source | {"question": kept, "options_had_letters": prefixed},
            )
        ]


def _test_point(
    task: str,
    video: str,
    place: tuple[int, ...],
    text: str,
    point: Any,
    groups: Mapping[str, str],
    extra: dict[str, Any],
) -> Item:
    with _located(f"test point {place[-1]}"):
        if not isinstance(point, dict):
            raise DataError(f"A test point must be an object; got {_kind(point)}.")
        kind = point.get("type")
        if isinstance(kind, bool) or kind not in (0, 1):
            raise DataError(
                f"A test point's type must be 1 (alert) or 0 (none); got {shown(kind)}."
            )
        clip = _clip(point.get("input_video_clip"))
        extra = extra | {"test_point": point}
        return Item(
            task,
            video,
            place,
            f"{text} {ALERT}",
            ("Yes", "No"),
            1 - int(kind),
            parse_time(point.get("realtime")),
            clip,
            groups,
            extra,
        )


def _clip(value: object) -> tuple[float, float] | None:
    if value is None:
        return None
    if not isinstance(value, list) or len(value) != 2:
        raise DataError(f"input_video_clip must be [start, end]; got {shown(value)}.")
    start = parse_time(value[0])
    end = parse_time(value[1])
    if end <= start:
        raise DataError(f"input_video_clip must end after it starts; got {shown(value)}.")
    return start, end


def _video(entry: Mapping[str, Any]) -> str:
    stated = {
        key: entry[key].strip().replace("\\", "/")
        for key in ("video_path", "video")
        if isinstance(entry.get(key), str)
    }
    names = {
        PurePosixPath(checked_name(_ROOT.sub("", text), key)).name for key, text in stated.items()
    }
    if len(names) != 1 or not (name := names.pop()):
        raise DataError(
            "An entry needs one video under video_path or video; got"
            f" {shown({key: entry[key] for key in ('video_path', 'video') if key in entry}, 300)}."
        )
    return name


def _groups(entry: Mapping[str, Any]) -> dict[str, str]:
    stated = {
        key: str(entry[key]) for key in ("viewer", "participant") if entry.get(key) is not None
    }
    return {"video": video_stem(_video(entry))} | stated


def _text(mapping: Mapping[str, Any], key: str) -> str:
    value = mapping.get(key)
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{key!r} must be a text; got {shown(value)}.")
    return value.strip()


def _list_of(mapping: Mapping[str, Any], key: str) -> list[Any]:
    value = mapping.get(key)
    if not isinstance(value, list) or not value:
        raise DataError(
            f"{key!r} must be a list that is not empty; got {shown(value)}. Keys here:"
            f" {shown(', '.join(mapping) or 'none', 300)}."
        )
    return value


def _without(mapping: Mapping[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in mapping.items() if key not in keys}


def _kind(value: object) -> str:
    return f"{type(value).__name__} {str(value)[:60]!r}"


@contextmanager
def _located(where: str) -> Iterator[None]:
    """Prefix errors with their place, unless they already start with it."""
    try:
        yield
    except DataError as error:
        text = str(error)
        raise DataError(text if text.startswith(where) else f"{where}: {text}") from error

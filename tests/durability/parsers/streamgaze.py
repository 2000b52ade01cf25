"""Parsers of StreamGaze: questions, alerts, split files, and names of files inside them."""

import json
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

from tests.durability import mutations as mutate
from tests.durability.parsers.parser import Parser, decoded

MCQ = Path("present_object_identification_easy.json")
ALERTS = Path("proactive_gaze_triggered_alert.json")
NAMES = tuple(f"P{index:02}.R0{index % 3}.mp4" for index in range(6))


def question_seeds() -> list[bytes]:
    one = {
        "question": "What is it?",
        "time_stamp": "00:12",
        "answer": "B",
        "options": ["cup", "pan", "jar", "lid"],
        "task_type": "x",
    }
    two = {
        "question": "And now?",
        "time_stamp": 75.5,
        "answer": "a",
        "options": ["A. cup", "B. pan"],
    }
    entry = {
        "video_path": "videos/P01.R02.mp4",
        "response_time": "[00:00 - 00:12]",
        "questions": [one, two],
        "viewer": 3,
    }
    return [
        json.dumps(tree).encode()
        for tree in (
            [entry],
            [entry, {"video": "b.mp4", "questions": [two | {"time_stamp": "1:02:03"}]}],
        )
    ]


def alert_seeds() -> list[bytes]:
    points = [
        {"realtime": "00:05", "type": 0},
        {
            "realtime": 60,
            "type": 1,
            "input_video_clip": [52, "01:00"],
            "salience_map_path": "s.png",
        },
    ]
    question = {
        "question": "Tell me when I see the cup.",
        "time_stamp": "00:02",
        "target_object": "cup",
        "test_info": points,
    }
    return [json.dumps([{"video": "a.mp4", "questions": [question]}]).encode()]


def check_items(result: Any, data: bytes) -> None:
    tree = json.loads(data)
    asked = [question for entry in tree for question in entry["questions"]]
    assert (
        len(result) == sum(len(q["test_info"]) for q in asked)
        if "test_info" in asked[0]
        else len(result) == len(asked)
    )
    assert len({item.id for item in result}) == len(result)
    for item in result:
        assert (
            0 <= item.answer < len(item.options) <= 8
            and all(option.strip() for option in item.options)
            and item.question.strip()
        )
        assert 0 <= item.time < 1e7 and (
            item.clip is None or 0 <= item.clip[0] < item.clip[1] < 1e7
        )
        assert item.video and PurePosixPath(item.video).name == item.video and item.video != ".."
        json.dumps(dict(item.extra), ensure_ascii=False, allow_nan=False).encode()
        question = tree[item.place[0]]["questions"][item.place[1]]
        if "test_info" not in question:
            assert "ABCDEFGH"[item.answer] == question["answer"].strip().upper()
        elif len(item.place) == 3:
            assert item.answer == 1 - question["test_info"][item.place[2]]["type"]


def split_seeds() -> list[bytes]:
    stems = [name.removesuffix(".mp4") for name in NAMES]
    return [
        json.dumps(
            {
                "train": stems[:3],
                "val": [NAMES[3]],
                "test": [f"videos/{NAMES[4]}"],
                "unused": stems[5:],
            }
        ).encode()
    ]


def check_split(result: Any, data: bytes) -> None:
    assert set(result) == {name.removesuffix(".mp4") for name in NAMES} and set(
        result.values()
    ) <= {"train", "val", "test", "unused"}
    tree = json.loads(data)
    for stem, split in result.items():
        assert any(
            PurePosixPath(name.strip().replace("\\", "/")).name in (stem, f"{stem}{s}")
            for name in tree[split]
            for s in (".mp4", ".mkv", ".avi", ".mov", ".webm", ".m4v")
        ) or any(
            PurePosixPath(name.strip().replace("\\", "/")).stem == stem for name in tree[split]
        )


def check_name(result: str, data: bytes) -> None:
    parts = PurePosixPath(result).parts
    assert (
        ".." not in parts
        and not result.startswith("/")
        and "\0" not in result
        and "\\" not in result
        and not (result[1:2] == ":" and result[0].isalpha())
    )


def parsers() -> list[Parser]:
    """Return the parsers of StreamGaze."""
    from modulate.utils.paths import checked_name
    from modulate_streamgaze.splits import file_split, parse_split

    split = Parser(
        name="split",
        what="split file, JSON",
        seeds=split_seeds,
        parse=lambda data: parse_split(data, Path("split.json"), NAMES),
        check=check_split,
        modules=("modulate_streamgaze.splits",),
        mutation=mutate.mutate_json,
        read=lambda path: file_split(path, NAMES),
        suffix=".json",
        only=("parse_split", "file_split", "_split", "_lists", "_near"),
    )
    names = Parser(
        name="names",
        what="names of files in data files",
        seeds=lambda: [b"egtea/v00.mp4", b"a\\b.mp4", b"..v/P01.R02"],
        parse=lambda data: checked_name(decoded(data), "q.json"),
        check=check_name,
        modules=("modulate.utils.paths",),
        only=("checked_name",),
    )
    return [
        _question_parser(
            "questions",
            "multiple-choice questions, JSON",
            question_seeds,
            MCQ,
            never=("_test_point", "_clip", "usable_questions"),
        ),
        _question_parser(
            "alerts",
            "proactive questions, JSON",
            alert_seeds,
            ALERTS,
            never=("parse_options", "parse_answer", "usable_questions"),
        ),
        split,
        names,
    ]


def _question_parser(
    name: str, what: str, seeds: Callable[[], list[bytes]], file: Path, never: tuple[str, ...]
) -> Parser:
    """Return the parser of question files called ``file``: its name says the task."""
    from modulate_streamgaze.questions import parse_questions, read_questions

    return Parser(
        name=name,
        what=what,
        seeds=seeds,
        parse=lambda data: parse_questions(data, file),
        check=check_items,
        modules=("modulate_streamgaze.questions",),
        mutation=mutate.mutate_json,
        read=lambda path: read_questions(path.replace(path.with_name(file.name))),
        suffix=".json",
        never=never,
    )

"""The files of a small tree with StreamGaze's layout."""

import json
from fractions import Fraction

import av
import numpy as np

from modulate_streamgaze.questions import TASKS

EGTEA = ("OP01-R01-PastaSalad", "OP01-R02-Pizza", "P02-R01-Pizza", "P03-R05-Cheeseburger")
EGOEXO = ("0049ed5a-eb8c-4e0b-a5d5-1b6c2a3d4e5f", "11111111-eb8c-4e0b-a5d5-1b6c2a3d4e5f")
HOLO = ("R005-7July-GoPro", "z017-june-15-22-nav")
VIDEOS = (*EGTEA, *EGOEXO, *HOLO)
HEADER = (
    "start_time,end_time,center_x,center_y,duration,"
    "start_time_seconds,end_time_seconds,fixation_id,duration_seconds\n"
)
SECONDS = 12


def write_video(path, seconds=SECONDS, width=640, height=16):
    """Write a video with two frames a second; the last one ends at ``seconds``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=2)
        stream.width = width
        stream.height = height
        stream.pix_fmt = "yuv420p"
        for index in range(2 * seconds):
            frame = av.VideoFrame.from_ndarray(
                np.full((height, width, 3), 10 * index % 256, np.uint8), format="rgb24"
            )
            frame.pts = index
            frame.time_base = Fraction(1, 2)
            out.mux(stream.encode(frame))
        out.mux(stream.encode())


def fixation(number, start, end, x=0.25, y=0.75):
    return f"{start},{end},{x},{y},{end - start},{start},{end},{number},{end - start}\n"


def entry(task, stem, number):
    """Return an entry with both key conventions, both kinds of time, and an unknown key."""
    head = {"video_path": f"videos/{stem}.mp4"} if number % 2 else {"video": stem}
    head |= {"response_time": "[00:00 - 00:10]", "generator": "v2"}
    if task.startswith("proactive"):
        points = [
            {"realtime": "00:10", "type": 1, "note": "n"},
            {"realtime": "00:03", "type": 0, "input_video_clip": [1, 3]},
        ]
        return head | {
            "questions": [
                {
                    "question": "Alert me.",
                    "time_stamp": "00:02",
                    "target_object": "cup",
                    "test_info": points,
                }
            ]
        }
    times = ("00:10", 6) if number % 2 else ("00:00:10", "6.0")
    options = (
        ["A. cup", "B. pan", "C. jar", "D. lid"] if number % 2 else ["cup", "pan", "jar", "lid"]
    )
    kind = {"task_type": task} if number % 3 else {}
    return head | {
        "questions": [
            {
                "question": f"What {index}?",
                "time_stamp": time,
                "answer": "BD"[index],
                "options": options,
                **kind,
            }
            for index, time in enumerate(times)
        ]
    }


def write_tree(root, video):
    """Write ten tasks on eight videos, each with fixations at 4.0–7.0 and 9.5–10.4 s.

    ``video``: the bytes of each of them.
    """
    for folder in ("qa", "videos/original_video", "fixations/egtea", "fixations/others"):
        (root / folder).mkdir(parents=True)
    for stem in VIDEOS:
        (root / f"videos/original_video/{stem}.mp4").write_bytes(video)
        place = "egtea" if stem in EGTEA else "others"
        (root / f"fixations/{place}/{stem}_fixation_filtered.csv").write_text(
            HEADER + fixation(0, 4.0, 7.0) + fixation(1, 9.5, 10.4, 0.5, 0.5)
        )
    for task in TASKS:
        (root / f"qa/{task}.json").write_text(
            json.dumps([entry(task, stem, number) for number, stem in enumerate(VIDEOS)])
        )

"""Generate a tabletop world on disk: videos, gaze, hand, question files, splits.

The folder appears complete or not at all, and the same numbers give the same world.

Layout: ``videos/original_video/<stem>.mp4``, ``fixations/<stem>_fixation_filtered.csv``,
``gaze/<stem>_gaze.csv`` (60 Hz samples), ``hand/<stem>_hand.csv``, ``qa/<task>.json``,
``splits.json`` (viewers and tables differ between splits), ``splits_by_viewer.json`` (the same
viewers assigned anew), ``manifest.json``.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from modulate.errors import DataError
from modulate.utils.safe_load import read_json
from modulate_tabletop.clips import (
    DRIFT,
    MAX_DRIFT,
    OBJECTS,
    OBJECTS_RANGE,
    VARIABLE_EVERY,
    Clip,
    make_clip,
    write_video,
)
from modulate_tabletop.questions import (
    MULTIPLE_CHOICE,
    TASKS,
    Alert,
    MultipleChoice,
    alert_entry,
    answer_positions,
    choice_entry,
    draft,
)
from modulate_tabletop.viewer import Viewer

GENERATOR = 1  # increase it whenever the same numbers would give another world
SPLITS = ("train", "val", "test")
VIDEOS_PER_VIEWER = 10
WORLD = ("train", "val", "test", "seed", "objects", "drift")
"""The numbers that define a world, in the order of :func:`jobs`."""

NUMBERS = ("generator", *WORLD)
DEFAULTS = {"objects": OBJECTS, "drift": DRIFT}
"""Values for manifests written before these numbers could be set."""

FIXATION_HEADER = (
    "start_time,end_time,center_x,center_y,duration,"
    "start_time_seconds,end_time_seconds,fixation_id,duration_seconds"
)
Progress = Callable[[int, int], object]  # (finished videos, all videos)
Question = MultipleChoice | Alert


@dataclass(frozen=True)
class Job:
    """One video to generate."""

    stem: str
    split: str
    seed: tuple[int, int, int]  # world, split, number within the split
    viewer: Viewer
    variable: bool  # frame rate
    objects: int = OBJECTS
    drift: float = DRIFT

    def clip(self) -> Clip:
        """Draw the clip."""
        return make_clip(self.stem, self.seed, self.viewer, self.variable, self.objects, self.drift)


def jobs(
    train: int, val: int, test: int, seed: int, objects: int = OBJECTS, drift: float = DRIFT
) -> list[Job]:
    """Return the videos of a world; each split has its own viewers, about one for ten videos."""
    result: list[Job] = []
    seen = 0
    for code, (split, count) in enumerate(zip(SPLITS, (train, val, test), strict=True)):
        people = max(min(2, count), -(-count // VIDEOS_PER_VIEWER))
        viewers = [
            Viewer.random(
                f"viewer_{seen + viewer + 1:02d}", np.random.default_rng((seed, code, viewer, 1))
            )
            for viewer in range(people)
        ]
        seen += people
        for index in range(count):
            number = len(result) + 1
            result.append(
                Job(
                    f"tabletop_{number:04d}",
                    split,
                    (seed, code, index),
                    viewers[index % people],
                    number % VARIABLE_EVERY == 3,
                    objects,
                    drift,
                )
            )
    return result


def make_world(
    root: Path,
    *,
    train: int,
    val: int,
    test: int,
    seed: int = 0,
    objects: int = OBJECTS,
    drift: float = DRIFT,
    workers: int | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Generate the world in ``root`` unless it exists; return its manifest.

    ``train``, ``val`` and ``test`` are numbers of videos, ``objects`` is the largest number on a
    table, ``drift`` the largest shift of the camera in pixels. ``workers`` is the number of
    processes (None: one for each core); the files do not depend on it. The returned manifest also
    has ``root``, ``reused`` and ``seconds``. Raises :class:`~modulate.errors.DataError` if ``root``
    holds anything else, or a world with other numbers.
    """
    begun = time.monotonic()
    root = Path(root).expanduser()
    wanted = {
        "generator": GENERATOR,
        "seed": seed,
        "train": train,
        "val": val,
        "test": test,
        "objects": objects,
        "drift": float(drift),
    }
    bad = [f"{key} = {value}" for key, value in wanted.items() if value < 0]
    if bad:
        raise DataError(
            f"A tabletop world cannot have {', '.join(bad)}; counts and seed must be 0 or more."
        )
    if not OBJECTS_RANGE[0] <= objects <= OBJECTS_RANGE[1] or not drift <= MAX_DRIFT:
        raise DataError(
            f"A tabletop world has {OBJECTS_RANGE[0]} to {OBJECTS_RANGE[1]} objects and a drift of"
            f" 0 to {MAX_DRIFT:g} pixels; got objects = {objects}, drift = {drift}."
        )
    if train + val + test == 0:
        raise DataError("A tabletop world needs at least one video; got train = val = test = 0.")
    manifest = _existing(root, wanted)
    reused = manifest is not None
    if manifest is None:
        with _folder_for(root) as folder:
            manifest = _fill(folder, wanted, workers or os.cpu_count() or 1, progress)
            try:
                folder.replace(root)
            except OSError:  # another process finished first
                existing = _existing(root, wanted)
                if existing is None:
                    raise
                manifest = existing
                reused = True
    return {
        **manifest,
        "root": str(root),
        "reused": reused,
        "seconds": round(time.monotonic() - begun, 1),
    }


def world_in(root: Path) -> dict[str, Any] | None:
    """Return the manifest of the world in ``root``, or None if it is missing or empty.

    Raises :class:`~modulate.errors.DataError` for anything else.
    """
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return None
    try:
        manifest = {**DEFAULTS, **read_json(root / "manifest.json")}
        for key in NUMBERS:
            if not isinstance(manifest[key], int | float):
                raise TypeError(key)
    except (OSError, ValueError, KeyError, TypeError):
        raise DataError(
            f"{root} is not empty and holds no tabletop world (no readable manifest.json); name"
            " another folder, or empty it."
        ) from None
    return manifest


def _existing(root: Path, wanted: Mapping[str, float]) -> dict[str, Any] | None:
    """Return the manifest of the world in ``root``, or None; raise DataError for another world."""
    found = world_in(root)
    if found is None:
        return None
    differences = [
        f"{key} is {found[key]}, wanted {wanted[key]}"
        for key in wanted
        if found[key] != wanted[key]
    ]
    if differences:
        raise DataError(
            f"{root} holds another tabletop world: {'; '.join(differences)}. Name another folder,"
            " or"
            " delete this one."
        )
    return found


@contextmanager
def _folder_for(root: Path) -> Iterator[Path]:
    """Provide a temporary folder beside ``root``, which is deleted unless it was renamed."""
    root.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{root.name}.", dir=root.parent))
    folder.chmod(0o755)  # mkdtemp makes it private, but other users may read a world
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _fill(
    folder: Path, wanted: Mapping[str, Any], workers: int, progress: Progress | None
) -> dict[str, Any]:
    parameters = {key: wanted[key] for key in WORLD}
    todo = jobs(**parameters)
    for name in ("videos/original_video", "fixations", "gaze", "hand", "qa"):
        (folder / name).mkdir(parents=True)
    drafts: list[list[Question]] = []
    for questions in _run(todo, folder, list(parameters.values()), min(workers, len(todo))):
        drafts.append(questions)
        if progress is not None:
            progress(len(drafts), len(todo))
    counts = _write_questions(folder / "qa", todo, drafts, wanted["seed"])
    _write_splits(folder, todo, wanted["seed"])
    manifest = {
        **wanted,
        "viewers": len({job.viewer.name for job in todo}),
        "variable_frame_rate": sum(job.variable for job in todo),
        "questions": counts,
    }
    _dump(folder / "manifest.json", manifest)
    return manifest


def _run(
    todo: list[Job], folder: Path, world: Sequence[float], workers: int
) -> Iterator[list[Question]]:
    """Generate the videos in order, in this process if they are few; yield their questions.

    Workers are new interpreters rather than forks: this process may hold threads and a GPU, and its
    main module may lack a guard.
    """
    if workers == 1 or len(todo) <= 6:
        yield from (make_files(job, folder) for job in todo)
        return
    size = max(2, -(-len(todo) // (4 * workers)))
    command = [sys.executable, "-m", "modulate_tabletop.make", str(folder), *map(str, world)]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        "OMP_NUM_THREADS": "1",
    }

    def part(start: int) -> list[list[Question]]:
        done = subprocess.run(
            [*command, str(start), str(start + size)],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(
                f"A worker that generates videos {start + 1} to {start + size} failed:"
                f" {done.stderr.strip()[-2000:]}"
            )
        return [
            [_question(question) for question in questions] for questions in json.loads(done.stdout)
        ]

    pool = ThreadPoolExecutor(workers)
    try:
        for drafts in pool.map(part, range(0, len(todo), size)):
            yield from drafts
    finally:
        pool.shutdown(cancel_futures=True)


def _question(fields: dict[str, Any]) -> Question:
    """Rebuild a question from the JSON of a worker."""
    if "wrong" in fields:
        return MultipleChoice(**{**fields, "wrong": tuple(fields["wrong"])})
    return Alert(**{**fields, "points": tuple((time, raised) for time, raised in fields["points"])})


def _work(folder: str, *numbers: str) -> None:
    """Run as a worker: generate videos ``start`` to ``stop``, print their questions as JSON."""
    train, val, test, seed, objects = map(int, numbers[:5])
    start, stop = map(int, numbers[6:])
    drafts = [
        make_files(job, Path(folder))
        for job in jobs(train, val, test, seed, objects, float(numbers[5]))[start:stop]
    ]
    print(json.dumps([[asdict(question) for question in questions] for questions in drafts]))


def make_files(job: Job, folder: Path) -> list[Question]:
    """Write one video with its gaze and hand files; return its questions."""
    clip = job.clip()
    write_video(folder / "videos" / "original_video" / f"{job.stem}.mp4", clip)
    rows = []
    for number, fixation in enumerate(clip.fixations):
        start = f"{fixation.start:.3f}"
        end = f"{fixation.end:.3f}"
        length = f"{fixation.end - fixation.start:.3f}"
        rows.append(
            f"{start},{end},{fixation.x:.5f},{fixation.y:.5f},{length},{start},{end},{number},{length}"
        )
    _csv(folder / "fixations" / f"{job.stem}_fixation_filtered.csv", FIXATION_HEADER, rows)
    _csv(
        folder / "gaze" / f"{job.stem}_gaze.csv",
        "time_seconds,x,y",
        [f"{time:.4f},{x:.5f},{y:.5f}" for time, x, y in clip.samples],
    )
    hand = zip(clip.times, clip.hand, strict=True)
    _csv(
        folder / "hand" / f"{job.stem}_hand.csv",
        "time_seconds,x,y",
        [f"{time:.3f},{x:.5f},{y:.5f}" for time, (x, y) in hand],
    )
    return draft(np.random.default_rng((*job.seed, 2)), clip)


def _write_questions(
    folder: Path, todo: list[Job], drafts: list[list[Question]], seed: int
) -> dict[str, dict[str, int]]:
    """Write the ten question files; return the number of questions or test points of each split.

    A file without any question is omitted.
    """
    counts: dict[str, dict[str, int]] = {}
    for number, task in enumerate(TASKS):
        entries, counts[task] = [], dict.fromkeys(SPLITS, 0)
        letters = {
            split: iter(
                answer_positions(np.random.default_rng((seed, number, code, 3)), 12 * len(todo))
            )
            for code, split in enumerate(SPLITS)
        }
        for job, questions in zip(todo, drafts, strict=True):
            head = {"video_path": f"{job.stem}.mp4", "viewer": job.viewer.name}
            choices = [
                question
                for question in questions
                if isinstance(question, MultipleChoice) and question.task == task
            ]
            alerts = [
                question
                for question in questions
                if isinstance(question, Alert) and question.task == task
            ]
            entries += [
                choice_entry(question, next(letters[job.split]), head) for question in choices
            ]
            entries += [alert_entry(alerts, head)] if alerts else []
            counts[task][job.split] += (
                len(choices)
                if task in MULTIPLE_CHOICE
                else sum(len(question.points) for question in alerts)
            )
        if entries:
            _dump(folder / f"{task}.json", entries)
    return counts


def _write_splits(folder: Path, todo: list[Job], seed: int) -> None:
    _dump(
        folder / "splits.json",
        {split: [job.stem for job in todo if job.split == split] for split in SPLITS},
    )
    per_split = [len({job.viewer.name for job in todo if job.split == split}) for split in SPLITS]
    shuffled = (
        np.random.default_rng((seed, 4))
        .permutation(sorted({job.viewer.name for job in todo}))
        .tolist()
    )
    ends = np.cumsum(per_split)
    groups = {
        split: set(shuffled[end - count : end])
        for split, count, end in zip(SPLITS, per_split, ends, strict=True)
    }
    _dump(
        folder / "splits_by_viewer.json",
        {split: [job.stem for job in todo if job.viewer.name in groups[split]] for split in SPLITS},
    )


def _csv(path: Path, header: str, rows: list[str]) -> None:
    path.write_text("\n".join([header, *rows, ""]), encoding="utf-8")


def _dump(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    _work(*sys.argv[1:])

"""Check a StreamGaze tree on disk, task by task, for what would fail in training.

Of each video, only the first frame is decoded.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from modulate.data.video import VideoInfo, probe
from modulate.errors import ModulateError
from modulate.interfaces.inspection import Level
from modulate.interfaces.sample import Sample
from modulate.interfaces.visual_grid import VisualGrid
from modulate_gaze.activity import Mode, activity, align
from modulate_gaze.scanpath import Scanpath
from modulate_streamgaze.data_report import DataReport, TaskFigures
from modulate_streamgaze.dataset import StreamGaze
from modulate_streamgaze.fixations import find_gaze, read_clamped
from modulate_streamgaze.groups import People
from modulate_streamgaze.questions import TASKS, Item, family, usable_questions
from modulate_streamgaze.splits import UNUSED

MODES: tuple[Mode, ...] = ("midpoint", "overlap")
CHUNK = 64  # clips that are aligned together
KNOWN = {
    "entry": {"video_path", "video", "response_time", "questions", "viewer", "participant"},
    "question": {
        "question",
        "time_stamp",
        "answer",
        "options",
        "task_type",
        "first_appearance",
        "target_object",
        "test_info",
    },
    "test point": {"realtime", "type", "input_video_clip", "salience_map_path"},
}
"""Keys of the published question files; unknown keys are preserved and counted."""


Steps = Callable[[tuple[float, float], bool], VisualGrid]
"""Returns the time steps of a clip: ``steps(window, training)``."""


def check_tree(
    data: StreamGaze,
    steps: Steps,
    training_differs: bool = False,
    advance: Callable[[], object] = lambda: None,
) -> tuple[DataReport, dict[str, list[Sample]]]:
    """Read the whole tree of ``data``; problems become findings, never exceptions.

    Returns the report, and by split the samples whose files can be read. ``training_differs``:
    whether training samples other steps than an evaluation. ``advance()`` is called once for each
    video.
    """
    report = DataReport()
    items = _questions(report, data)
    items = _used(report, data, items)
    stems = sorted({item.stem for found in items.values() for item in found})
    infos = _videos(report, data, stems, advance)
    _people(report, data, stems)
    scanpaths = _scanpaths(report, data, stems)
    samples: dict[str, list[Sample]] = {}
    for task, found in items.items():
        clips = _Clips(data, steps, training_differs, infos, scanpaths)
        report.tasks[task] = clips.figures(report, found)
        for item, sample in clips.readable:
            samples.setdefault(report.split_of.get(item.stem, "train"), []).append(sample)
    _coverage(report)
    return report, samples


# --- files


def _questions(report: DataReport, data: StreamGaze) -> dict[str, list[Item]]:
    try:
        files = {path.stem: path for path in data.question_files}
    except ModulateError as error:
        report.add("error", str(error))
        return {}
    wanted = data.params.tasks or TASKS
    for name in sorted(files.keys() - set(TASKS)):
        report.add(
            "error" if data.params.tasks is None else "info",
            f"{files[name]} is no task of StreamGaze; move it, or name the tasks to use.",
        )
    for name in (task for task in wanted if task not in files):
        report.add(
            "error" if data.params.tasks else "warning",
            f"There is no question file for the task {name}.",
        )
    items = dict[str, list[Item]]()
    counts = Counter[str]()
    unknown = Counter[str]()
    for task in (task for task in TASKS if task in files):
        found, problems, entries = usable_questions(files[task])
        items[task] = found  # unused tasks, too: the split depends on the videos of all
        if task not in wanted:
            continue
        if problems:
            report.add(
                "error", f"{task}: {len(problems)} entries cannot be read. First: {problems[0]}"
            )
        _count_keys(entries, family(task) == "proactive", counts, unknown)
    report.conventions = dict(sorted(counts.items()))
    report.unknown = dict(sorted(unknown.items()))
    if unknown:
        report.add(
            "info",
            "Keys that are not used, but kept:"
            f" {', '.join(f'{key} ({n})' for key, n in report.unknown.items())}.",
        )
    if not any(items.get(task) for task in wanted):
        report.add("error", f"{data.root / 'qa'} holds no question that can be read.")
    return items


def _count_keys(
    entries: Iterable[Any], proactive: bool, counts: Counter[str], unknown: Counter[str]
) -> None:
    for entry in (e for e in entries if isinstance(e, dict)):
        questions = [q for q in _list(entry.get("questions")) if isinstance(q, dict)]
        points = [p for q in questions for p in _list(q.get("test_info")) if isinstance(p, dict)]
        unknown.update(
            f"{where}.{key}"
            for where, ds in (("entry", [entry]), ("question", questions), ("test point", points))
            for d in ds
            for key in d.keys() - KNOWN[where]
        )
        counts.update(f"video under {key}" for key in ("video_path", "video") if key in entry)
        for question in () if proactive else questions:
            counts[
                "task_type given" if "task_type" in question else "task_type from the file's name"
            ] += 1
        times = (
            [p.get("realtime") for p in points]
            if proactive
            else [q.get("time_stamp") for q in questions]
        )
        counts.update(
            (
                "times in seconds"
                if isinstance(time, int | float) or ":" not in str(time)
                else "times by the clock"
            )
            for time in times
        )
        clips = sum("input_video_clip" in p for p in points)
        if clips:
            counts["test points with input_video_clip"] += clips


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _used(
    report: DataReport, data: StreamGaze, items: dict[str, list[Item]]
) -> dict[str, list[Item]]:
    """Return the items of the used tasks, without videos that are listed as unused.

    If the split fails, no video is excluded.
    """
    # The data set would refuse broken entries; give it the readable ones, so that the split and
    # all later checks can run.
    data.items = items
    found = {
        task: its
        for task, its in items.items()
        if data.params.tasks is None or task in data.params.tasks
    }
    if not items:
        return found
    try:
        splits = data.splits
    except ModulateError as error:
        report.add("error", f"The split {data.params.split!r} cannot be made: {error}")
        return found
    report.split_of = splits
    report.splits = dict(Counter(splits.values()))
    for name in ("train", "val", "test"):
        if not any(splits[item.stem] == name for its in found.values() for item in its):
            report.add("error", f"The split {name!r} has no question.")
    return {
        task: [item for item in its if splits[item.stem] != UNUSED] for task, its in found.items()
    }


def _videos(
    report: DataReport, data: StreamGaze, stems: Sequence[str], advance: Callable[[], object]
) -> dict[str, VideoInfo]:
    try:
        files: Mapping[str, Path] = data.video_files
    except ModulateError as error:
        report.add("error", str(error))
        files = data.video_files = {}  # later checks must not raise the same error again
    _missing(report, "videos", [stem for stem in stems if stem not in files], len(stems))
    infos = {}
    broken = dict[str, str]()
    for stem in (stem for stem in stems if stem in files):
        try:
            infos[stem] = probe(files[stem])
        except ModulateError as error:
            broken[stem] = str(error)
        advance()
    if broken:
        report.add(
            "error",
            f"{len(broken)} of {len(stems)} videos cannot be read. First:"
            f" {next(iter(broken.values()))}",
        )
    return infos


def _people(report: DataReport, data: StreamGaze, stems: Sequence[str]) -> None:
    try:
        people = data.people
    except ModulateError as error:
        report.add("error", str(error))
        people = data.people = People({stem: {} for stem in stems}, ())
    counts = {
        what: sum(what in people.known.get(stem, {}) for stem in stems)
        for what in ("participant", "source")
    }
    report.add(
        "info",
        f"Of {len(stems)} videos the participant is known for {counts['participant']}, the data set"
        f" for {counts['source']}.",
    )


def _scanpaths(report: DataReport, data: StreamGaze, stems: Sequence[str]) -> dict[str, Scanpath]:
    if not data.params.fixations:
        report.add(
            "info", "No fixations are asked for (`fixations` is empty): samples carry no gaze."
        )
        return {}
    try:
        files: Mapping[str, Path] = data.fixation_files
    except ModulateError as error:
        report.add("error", str(error))
        files = data.fixation_files = {}
    missing = [stem for stem in stems if stem not in files]
    if missing and data.params.gaze is not None:
        missing = _makeable(report, data, missing)
    _missing(report, "fixation files", missing, len(stems))
    found = dict[str, Scanpath]()
    broken = list[str]()
    outside = 0
    for stem in (stem for stem in stems if stem in files):
        try:
            found[stem] = Scanpath.read(files[stem])
            outside += found[stem].n_outside
        except ModulateError as error:
            broken.append(str(error))
    if broken:
        report.add(
            "error",
            f"{len(broken)} of {len(stems)} fixation files cannot be read. First: {broken[0]}",
        )
    _clamped(report, data, stems, sum(map(len, found.values())))
    if outside:
        report.add(
            "info", f"{outside} of {sum(map(len, found.values()))} fixations lie outside the frame."
        )
    return found


def _clamped(report: DataReport, data: StreamGaze, stems: Sequence[str], total: int) -> None:
    """Report how clamping gaze to the frame changed the number of fixations."""
    try:
        known = read_clamped(data.root / folder for folder in data.params.fixations)
    except ModulateError as error:
        report.add("warning", str(error))
        return
    counts = [known[stem] for stem in stems if stem in known]
    if counts:
        moved, left = (sum(numbers) for numbers in zip(*counts, strict=True))
        report.add(
            "info",
            f"Gaze outside the frame was moved to its edge when fixations were made: {moved} of"
            f" {total} fixations exist only because of that, {left} would exist only without it"
            f" ({len(counts)} of {len(stems)} videos). The benchmark leaves HoloAssist's where"
            " it is.",
        )


def _makeable(report: DataReport, data: StreamGaze, missing: list[str]) -> list[str]:
    assert data.params.gaze is not None
    try:
        gaze = find_gaze(
            {source: data.root / folder for source, folder in data.params.gaze.folders.items()}
        )
    except ModulateError as error:
        report.add("error", str(error))
        return missing
    left = [stem for stem in missing if stem not in gaze]
    report.add(
        "info",
        f"{len(missing) - len(left)} fixation files are not there yet and will be made of gaze"
        " files.",
    )
    return left


def _missing(report: DataReport, what: str, missing: Sequence[str], total: int) -> None:
    if missing:
        names = f"{', '.join(missing[:3])}{' …' if len(missing) > 3 else ''}"
        report.add("error", f"{len(missing)} of {total} {what} are missing: {names}.")


# --- figures


class _Clips:
    """Computes the figures of one task; ``readable``: its questions whose files can be read."""

    def __init__(
        self,
        data: StreamGaze,
        steps: Steps,
        training_differs: bool,
        infos: Mapping[str, VideoInfo],
        scanpaths: Mapping[str, Scanpath],
    ) -> None:
        self.data = data
        self.steps = steps
        self.training_differs = training_differs
        self.infos = infos
        self.scanpaths = scanpaths
        self.readable: list[tuple[Item, Sample]] = []

    def figures(self, report: DataReport, items: Sequence[Item]) -> TaskFigures:
        """Return the figures of the questions ``items``, and report those beyond their video."""
        stems = {item.stem for item in items}
        lengths = sorted(self.infos[stem].duration for stem in stems & self.infos.keys())
        task = TaskFigures(
            len(items),
            len(stems),
            len(stems - self.infos.keys()),
            (lengths[0], median(lengths), lengths[-1]) if lengths else None,
        )
        late = self._late(report, items)
        task.beyond = len(late)
        self.readable = [
            (item, self.data.sample_of(item))
            for item in items
            if item.stem in self.infos
            and item.id not in late
            # Without fixations, samples carry no gaze.
            and (item.stem in self.scanpaths or not self.data.params.fixations)
        ]
        if self.readable and self.data.params.fixations:
            self._add_gaze(task)
        return task

    def _late(self, report: DataReport, items: Sequence[Item]) -> set[str]:
        """Return the ids of questions beyond the end of their video."""
        ends = {stem: info.duration + 1 / info.fps for stem, info in self.infos.items()}
        late = [
            item
            for item in items
            if item.stem in ends and self.data.window(item)[1] > ends[item.stem]
        ]
        if late:
            item = late[0]
            report.add(
                "error",
                f"{item.task}: {len(late)} questions lie beyond their video's end. First: {item.id}"
                f" at {self.data.window(item)[1]:.2f} s, end"
                f" {self.infos[item.stem].duration:.2f} s.",
            )
        return {item.id for item in late}

    def _add_gaze(self, task: TaskFigures) -> None:
        signals = [
            self.data.clip_signal(sample, sample.clip, self.scanpaths[item.stem])
            for item, sample in self.readable
        ]
        task.clips = len(signals)
        task.fixations = float(median(map(len, signals)))
        task.without = sum(len(signal) == 0 for signal in signals) / len(signals)
        for training, shares in ((False, task.active), (True, task.active_training)):
            if not training or self.training_differs:
                grids = [self.steps(s.clip.window, training) for _, s in self.readable]
                active = _active(signals, grids)
                shares.update({mode: n / len(signals) for mode, n in active.items()})


def _active(signals: Sequence[Any], grids: Sequence[VisualGrid]) -> Counter[str]:
    """Return the number of clips whose gaze is active at some step, by mode."""
    counts = Counter({str(mode): 0 for mode in MODES})
    for start in range(0, len(grids), CHUNK):
        chunk = grids[start : start + CHUNK]
        aligned = align(signals[start : start + CHUNK], chunk)
        for mode in MODES:
            reached = aligned.steps_of((activity(aligned, mode) > 0).any(-1))
            counts[mode] += sum(
                bool(part.any()) for part in reached.split([grid.steps for grid in chunk])
            )
    return counts


def _coverage(report: DataReport) -> None:
    clips = sum(task.clips for task in report.tasks.values())
    for name, where in (("active", ""), ("active_training", " in training")):
        rows = [
            (task.clips, getattr(task, name))
            for task in report.tasks.values()
            if getattr(task, name)
        ]
        for mode in MODES if rows else ():
            without = clips - round(sum(n * shares[mode] for n, shares in rows))
            if without:
                level: Level = "error" if without == clips and mode == "overlap" else "warning"
                share = f"{100 * without / clips:.1f} %"
                report.add(
                    level,
                    f"With `active: {mode}` gaze is active at no sampled step{where} for"
                    f" {without:,} of {clips:,} questions ({share}).",
                )

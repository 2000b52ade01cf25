"""StreamGaze as a data set: questions, videos and fixations of one folder, checked before use.

Another data set with the same layout can use :class:`StreamGaze`, too: pass a
:class:`StreamGazeParams`, or subclass both, create the files in ``prepare`` and end with
``super().prepare()``. Nothing is read before the first call of a method.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
from jaxtyping import Float64
from pydantic import BaseModel

from modulate.errors import DataError, MissingFileError, near_matches
from modulate.interfaces.components import Dataset, Reference
from modulate.interfaces.inspection import Inspection
from modulate.interfaces.sample import Sample, SampleClip
from modulate.interfaces.signal import Signal
from modulate_gaze.scanpath import Scanpath
from modulate_streamgaze.files import find_fixations, find_videos, require
from modulate_streamgaze.fixations import find_gaze, make_fixations, size_of
from modulate_streamgaze.groups import People, gather
from modulate_streamgaze.params import ADDED_LATER, StreamGazeParams
from modulate_streamgaze.published import published
from modulate_streamgaze.questions import TASKS, Item, family, read_questions
from modulate_streamgaze.splits import (
    ALL,
    SPLITS,
    UNUSED,
    file_split,
    gazeqwen_split,
    participant_split,
    source_split,
)

SIGNAL = "gaze"
"""Registered name of the signal in the fixation files."""


def by_midpoint(
    fixations: Float64[np.ndarray, "fixation 4"], start: float, end: float
) -> Float64[np.ndarray, "fixation 4"]:
    """Return the fixations whose midpoint lies in [start, end] seconds, as in GazeQwen's code.

    That code stores fixations as float32, and torch rounds a scalar to the type of the tensor it is
    compared with. So midpoint and window are rounded to float32 (steps of 4 μs after a minute,
    0.2 ms after an hour) and compared without tolerance, both ends included.
    """
    middle = fixations[:, 2].astype(np.float32)
    return fixations[(middle >= np.float32(start)) & (middle <= np.float32(end))]


class StreamGaze(Dataset):
    """The ten tasks as samples.

    Methods raise :class:`MissingFileError` or :class:`DataError` if files are missing or disagree.
    """

    Params = StreamGazeParams

    def __init__(self, params: StreamGazeParams) -> None:
        self.params = params
        self.root = params.root.expanduser()

    def prepare(self) -> None:
        """Compute missing fixation files from gaze files, and check all files.

        A subclass that creates files does so first. Raises :class:`DataError` if a gaze file cannot
        be read.
        """
        self._make_fixations()
        self.check()

    usual_recipe = "gazeqwen"

    @classmethod
    def recognize(cls, path: Path) -> BaseModel | None:
        """Return the parameters of a folder with question files in `qa`."""
        return StreamGazeParams(root=path) if (path / "qa").is_dir() else None

    def inspect(self, inspection: Inspection) -> Mapping[str, Sequence[Sample]]:
        """Add the figures of every task, and what is wrong with the tree."""
        # The check needs this class.
        from modulate_streamgaze.data_check import check_tree

        report, samples = check_tree(
            self, inspection.steps, inspection.training_differs, inspection.advance
        )
        report.add_to(inspection)
        return samples

    def _make_fixations(self) -> None:
        gaze = self.params.gaze
        if gaze is None:
            return
        folders = [self.root / folder for folder in self.params.fixations]
        folders[0].mkdir(parents=True, exist_ok=True)
        existing = find_fixations(folders)
        stems = [
            stem
            for stem, split in sorted(self.splits.items())
            if split != UNUSED and stem not in existing
        ]
        if not stems:
            return
        found = find_gaze({source: self.root / folder for source, folder in gaze.folders.items()})
        counts = make_fixations(
            stems, found, folders[0], gaze.extraction, size_of(self.video_files)
        )
        if counts.failed:
            stem, reason = next(iter(counts.failed.items()))
            raise DataError(
                f"{len(counts.failed)} of {len(stems)} fixation files could not be made. First,"
                f" {stem}: {reason}"
            )

    def check(self) -> None:
        """Read all questions and check that every video in use has its files.

        Results are cached, so repeated calls are cheap.
        """
        used = sorted(stem for stem, split in self.splits.items() if split != UNUSED)
        require(used, self.video_files, "videos", str(self.root / self.params.videos))
        if self.params.fixations:
            require(
                used,
                self.fixation_files,
                "fixation files",
                ", ".join(str(self.root / folder) for folder in self.params.fixations),
            )

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks in use, in the benchmark's order."""
        return (
            tuple(self.items)
            if self.params.tasks is None
            else tuple(task for task in self.items if task in self.params.tasks)
        )

    @cached_property
    def items(self) -> dict[str, list[Item]]:
        """The questions of all files, by task.

        Files of unused tasks count, too: the split depends on the videos of all questions, and
        must not change with ``tasks``.
        """
        files = {path.stem: path for path in self.question_files}
        for task in self.params.tasks or ():
            if task not in TASKS:
                raise DataError(f"Unknown task {task!r}. {near_matches(task, TASKS)}")
            if task not in files:
                raise MissingFileError(
                    f"No question file for task {task!r} in {self.root / 'qa'}."
                    f" {near_matches(task, files)}"
                )
        if self.params.tasks is None and (odd := [name for name in files if name not in TASKS]):
            raise DataError(
                f"{self.root / 'qa'} holds {odd[0]}.json, which is no task."
                f" {near_matches(odd[0], TASKS)} Move it, or name the tasks to use."
            )
        wanted = [task for task in TASKS if task in files]
        if not wanted:
            raise MissingFileError(
                f"No question file of StreamGaze in {self.root / 'qa'}; expected any of"
                f" {', '.join(TASKS)} (.json)."
            )
        return {task: read_questions(files[task]) for task in wanted}

    @property
    def question_files(self) -> list[Path]:
        """The JSON files in ``qa``, sorted.

        Raises :class:`MissingFileError` when the folders are not there.
        """
        for folder, what in ((self.root, "Data set folder"), (self.root / "qa", "Question folder")):
            if not folder.is_dir():
                raise MissingFileError(
                    f"{what} {folder} does not exist; `root` must be the folder that holds"
                    " qa/*.json and the videos."
                )
        return sorted((self.root / "qa").glob("*.json"))

    @cached_property
    def splits(self) -> dict[str, str]:
        """{video stem: "train" | "val" | "test" | "unused"} of every video in the questions."""
        names: dict[str, str] = {}
        for item in (item for items in self.items.values() for item in items):
            # One file may name "x", another "x.mp4": one video, whose file name is the longer.
            first, second = sorted((names.get(item.stem, item.video), item.video), key=len)
            if first not in (item.stem, second):
                raise DataError(
                    f"Questions name both {first!r} and {second!r}; fixation files cannot tell them"
                    " apart, rename one video."
                )
            names[item.stem] = second
        if self.params.split == "gazeqwen":
            return gazeqwen_split(list(names.values()))
        people = self.people.known if self.params.split in ("participant", "source") else {}
        # Two data sets may both have a participant P01, so the key includes the data set.
        persons = {
            stem: f"{row.get('source', '')}/{row['participant']}"
            for stem, row in people.items()
            if "participant" in row
        }
        if self.params.split == "participant":
            self.people.require("participant", names)
            return participant_split(persons, self.params.split_seed)
        if self.params.split == "source":
            return source_split(
                self.people.require("source", names),
                persons,
                self.params.test_source,
                self.params.split_seed,
            )
        return file_split(self.root / self.params.split, list(names.values()))

    @cached_property
    def people(self) -> People:
        """Participant and original data set of each video, as far as known."""
        params = self.params
        videos = self.video_files if (self.root / params.videos).is_dir() else {}
        everything = [item for items in self.items.values() for item in items]
        return gather(
            everything,
            self.root,
            self.root / params.metadata,
            None if params.groups is None else self.root / params.groups,
            videos,
        )

    @cached_property
    def video_files(self) -> dict[str, Path]:
        """{stem: file} of all videos found."""
        return find_videos(self.root / self.params.videos)

    @cached_property
    def fixation_files(self) -> dict[str, Path]:
        """{video stem: file} of all fixation files found."""
        return find_fixations([self.root / folder for folder in self.params.fixations])

    def window(self, item: Item) -> tuple[float, float]:
        """Return (start, end), in seconds, of the video that a question may see."""
        kind = family(item.task)
        seconds = {
            "past": self.params.past_seconds,
            "present": self.params.present_seconds,
            "proactive": self.params.proactive_seconds,
        }[kind]
        if seconds is None:
            return item.clip or (0.0, item.time)
        end = item.clip[1] if item.clip else item.time
        return max(0.0, end - seconds), end

    def signals(self, item: Item) -> dict[str, Path]:
        """Return {kind of signal: file} of a question's video; subclasses may add kinds."""
        return {SIGNAL: self.fixation_files[item.stem]} if self.params.fixations else {}

    def samples(self, split: str) -> list[Sample]:
        """Return the samples of ``split``, or of all three splits ("all").

        Tasks follow each other, and questions keep the order of their files.
        """
        if split not in (*SPLITS, ALL):
            raise DataError(f"Unknown split {split!r}. {near_matches(split, (*SPLITS, ALL))}")
        self.check()
        wanted = SPLITS if split == ALL else (split,)
        lists = {
            task: [item for item in self.items[task] if self.splits[item.stem] in wanted]
            for task in self.tasks
        }
        total = sum(map(len, lists.values()))
        if not total:
            raise DataError(
                f"Split {split!r} has no question: {sum(v in wanted for v in self.splits.values())}"
                f" of {len(self.splits)} videos belong to it (split: {self.params.split}), tasks:"
                f" {', '.join(self.tasks)}."
            )
        limits: dict[str, int] = {str(name): n for name, n in self.params.limits.items()}
        shares = _shares(
            {task: len(items) for task, items in lists.items()}, limits.get(split, total)
        )
        return [
            self.sample_of(item)
            for task, items in lists.items()
            for item in _spread(items, shares[task])
        ]

    def clip_signal(self, sample: Sample, clip: SampleClip, signal: Signal) -> Signal:
        """Return the part of a video's ``signal`` that belongs to a ``clip`` of ``sample``.

        Gaze follows the parameters ``fixation_rule`` and ``proactive_fixations``.
        """
        start, end = clip.window
        # The rules are for gaze only, and hand paths are scanpaths, too.
        if signal.kind != SIGNAL or not isinstance(signal, Scanpath):
            return signal.within(start, end)
        if self.params.fixation_rule == "midpoint":
            signal = Scanpath(by_midpoint(signal.fixations, start, end), signal.n_resorted)
        else:
            signal = signal.within(start, end)
        if self.params.proactive_fixations == "origin" and family(sample.task) == "proactive":
            signal = Scanpath(signal.fixations * [0.0, 0.0, 1.0, 1.0], signal.n_resorted)
        return signal

    def sample_of(self, item: Item) -> Sample:
        """Return one question as a sample; its video and signals must exist."""
        clip = SampleClip(self.video_files[item.stem], self.window(item), self.signals(item))
        groups = {**item.groups, **self.people.known[item.stem]}
        extra = {"place": list(item.place), "time": item.time, **item.extra}
        return Sample(
            item.id,
            item.task,
            (clip,),
            item.question,
            item.options,
            item.answer,
            groups=groups,
            extra=extra,
        )

    def reference(self) -> Reference:
        """Return the rows of GazeQwen's Table 1."""
        return published()

    def fingerprint(self) -> str:
        """Return a hash of everything that determines the samples.

        That is the question files, the names and sizes of fixation files and videos, the split, and
        the parameters.
        """
        digest = hashlib.sha256()
        for path in self.question_files:
            digest.update(f"{path.name}\0{path.stat().st_size}\0".encode() + path.read_bytes())
        gaze = self.fixation_files if self.params.fixations else {}
        sizes = [
            [(stem, path.name, path.stat().st_size) for stem, path in sorted(files.items())]
            for files in (gaze, self.video_files)
        ]
        # Names of folders do not count, because moved data are the same data. The parameters of the
        # split do not count either, because the split itself is hashed.
        excluded = {
            "root",
            "videos",
            "fixations",
            "gaze",
            "split",
            "split_seed",
            "test_source",
            "metadata",
            "groups",
        }
        settings = self.params.model_dump(mode="json", exclude=excluded)
        for name in ADDED_LATER:
            if settings[name] == StreamGazeParams.model_fields[name].default:
                del settings[name]
        if self.params.gaze is not None:
            settings["extraction"] = self.params.gaze.extraction.model_dump(mode="json")
        digest.update(
            json.dumps([sizes, settings, sorted(self.splits.items())], sort_keys=True).encode()
        )
        return f"streamgaze-{digest.hexdigest()[:16]}"


def _shares(available: dict[str, int], limit: int) -> dict[str, int]:
    """Divide ``limit`` among the tasks, as evenly as their sizes allow."""
    shares = dict.fromkeys(available, 0)
    left = min(limit, sum(available.values()))
    while left:
        for task, n in available.items():
            if left and shares[task] < n:
                shares[task] += 1
                left -= 1
    return shares


def _spread(items: list[Item], n: int) -> list[Item]:
    """Return ``n`` evenly spaced items, so that a limit does not keep only the first videos."""
    return [items[i * len(items) // n] for i in range(n)]

"""StreamGaze as a data set: question files, videos and fixation files of one folder, read together
and checked before use.

Another data set that writes the same layout can be read with :class:`StreamGaze` too: hand it a
:class:`StreamGazeParams`, or subclass both, make the files in ``prepare`` and end with
``super().prepare()``. Nothing is read before the first call of a method.
"""

import hashlib
import json
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Float64
from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from modulate.errors import DataError, MissingFileError, near_matches
from modulate.interfaces.components import Dataset, Params, Reference, Sample
from modulate.interfaces.params import Departure
from modulate.interfaces.signal import Signal
from modulate_gaze.scanpath import Scanpath
from modulate_streamgaze.files import find_fixations, find_videos, require
from modulate_streamgaze.fixations import GazeFiles, find_gaze, make_fixations, size_of
from modulate_streamgaze.groups import People, gather
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
"""The registered kind of signal that the fixation files hold."""

LATER = ("fixation_rule", "proactive_fixations")
"""Parameters that came later: left at their defaults, they leave a data set's fingerprint what it
was.
"""


def rule_departures(fixation_rule: str, proactive_fixations: str) -> list[Departure]:
    """Return what follows from the rules that GazeQwen's code has for fixations."""
    found: list[tuple[bool, Departure]] = [
        (
            fixation_rule == "midpoint",
            (
                "warning",
                (
                    "fixation_rule is `midpoint`: a fixation that lasts beyond the question, as the"
                    " one that it asks about, is left out."
                ),
            ),
        ),
        (
            proactive_fixations == "origin",
            (
                "warning",
                (
                    "proactive_fixations is `origin`: in the proactive tasks every fixation lies at"
                    " (0, 0), and tells nothing."
                ),
            ),
        ),
    ]
    return [departure for present, departure in found if present]


def by_midpoint(
    fixations: Float64[np.ndarray, "fixation 4"], start: float, end: float
) -> Float64[np.ndarray, "fixation 4"]:
    """Return the fixations whose midpoint lies in [start, end] seconds, as GazeQwen's code finds
    them.

    Its fixations are float32, and torch rounds a number that a tensor is compared with to the
    tensor's type: so midpoint and window are rounded to float32 (steps of 4 μs after a minute, of
    0.2 ms after an hour), and then compared without tolerance, both ends included.
    """
    middle = fixations[:, 2].astype(np.float32)
    return fixations[(middle >= np.float32(start)) & (middle <= np.float32(end))]


class StreamGazeParams(Params):
    """Where the files are, what of a video a question may see, and which videos are for what."""

    root: Path = Field(
        description="folder that holds qa/*.json; the other paths are relative to it"
    )
    tasks: tuple[str, ...] | None = Field(
        None, description="stems of the question files to use; all that are found if absent"
    )
    videos: Path = Field(
        Path("videos/original_video"),
        description="folder of the videos, searched with its sub-folders",
    )
    fixations: tuple[Path, ...] = Field(
        (Path("fixations"),),
        description=(
            "folders searched, with sub-folders, for <stem>_fixation_filtered.csv; none: samples"
            " carry no gaze file"
        ),
    )
    past_seconds: PositiveFloat | None = Field(
        None,
        description=(
            "seconds seen before a past question; from the start of the video if absent"
            " (StreamGaze)"
        ),
    )
    present_seconds: PositiveFloat | None = Field(
        60.0,
        description=(
            "seconds seen before a present question (StreamGaze: 60); from the start if absent"
        ),
    )
    proactive_seconds: PositiveFloat | None = Field(
        None,
        description=(
            "seconds seen before a proactive test point; if absent its input_video_clip, or else"
            " from the start of the video (StreamGaze)"
        ),
    )
    gaze: GazeFiles | None = Field(
        None,
        description=(
            "data sets' own gaze files; missing fixation files are made of them, in the first"
            " folder of `fixations`"
        ),
    )
    fixation_rule: Literal["overlap", "midpoint"] = Field(
        "overlap",
        description=(
            "overlap: a fixation belongs to a clip when any part of it lies in its window."
            " midpoint: when its midpoint does, both in float32, as in GazeQwen's code, which so"
            " drops the very fixation that a question about the present asks about"
        ),
    )
    proactive_fixations: Literal["own", "origin"] = Field(
        "own",
        description=(
            "origin: in the proactive tasks every fixation is moved to (0, 0), as GazeQwen's code"
            " does when it evaluates, by mistake"
        ),
    )
    split: str = Field(
        "gazeqwen",
        description=(
            "gazeqwen: 70/15/15 by video, seed 42. participant: as near to 70/15/15 as whole"
            " participants allow. source: one data set tests. Or a JSON file with lists of videos"
            " under train, val, test, unused"
        ),
    )
    split_seed: int = Field(42, description="of the splits by participant and by source")
    test_source: str | None = Field(
        None,
        description="with split: source, the data set that tests: egtea, egoexolearn, holoassist …",
    )
    metadata: Path = Field(
        Path("metadata"),
        description=(
            "folder of CSVs that may name videos' participants and data sets; used where it is"
            " there"
        ),
    )
    groups: Path | None = Field(
        None,
        description="CSV with the columns video, participant, source, for what nothing else tells",
    )
    limits: dict[Literal["train", "val", "test", "all"], PositiveInt] = Field(
        default_factory=dict,
        description=(
            "largest number of samples per split, taken evenly from the tasks and from all along"
            " their files"
        ),
    )

    def departures(self) -> list[Departure]:
        """Name what GazeQwen's code does otherwise."""
        return rule_departures(self.fixation_rule, self.proactive_fixations)

    @model_validator(mode="after")
    def _have_an_effect(self) -> "StreamGazeParams":
        if self.test_source is not None and self.split != "source":
            raise ValueError(
                f"`test_source` has no effect on split: {self.split}; it is for split: source"
            )
        if self.split == "source" and self.test_source is None:
            raise ValueError(
                "split: source needs `test_source`, the data set that is held out: egtea,"
                " egoexolearn, holoassist …"
            )
        if not self.fixations and (
            self.gaze is not None
            or self.fixation_rule != "overlap"
            or self.proactive_fixations != "own"
        ):
            raise ValueError(
                "`gaze`, `fixation_rule` and `proactive_fixations` have no effect without"
                " `fixations`"
            )
        return self


class StreamGaze(Dataset):
    """The ten tasks as samples.

    Raises :class:`MissingFileError` or :class:`DataError` for anything that does not fit together.
    """

    Params = StreamGazeParams

    def __init__(self, params: StreamGazeParams) -> None:
        self.params = params
        self.root = params.root.expanduser()

    def prepare(self) -> None:
        """Make what fixation files can be made of gaze files, and check all files; a subclass that
        makes files does so before.

        Raises :class:`DataError` when a gaze file cannot be read, with the first of them.
        """
        self._make_fixations()
        self.check()

    def _make_fixations(self) -> None:
        gaze = self.params.gaze
        if gaze is None:
            return
        folders = [self.root / folder for folder in self.params.fixations]
        folders[0].mkdir(parents=True, exist_ok=True)
        there = find_fixations(folders)
        stems = [
            stem
            for stem, split in sorted(self.splits.items())
            if split != UNUSED and stem not in there
        ]
        if not stems:
            return
        found = find_gaze({source: self.root / folder for source, folder in gaze.folders.items()})
        made = make_fixations(stems, found, folders[0], gaze.extraction, size_of(self.video_files))
        if made.failed:
            stem, reason = next(iter(made.failed.items()))
            raise DataError(
                f"{len(made.failed)} of {len(stems)} fixation files could not be made. First,"
                f" {stem}: {reason}"
            )

    def check(self) -> None:
        """Read all questions and check that every video in use has its files.

        Cheap when repeated: what was read is kept.
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
        """The questions of all files found, by task.

        All, because the split goes by the videos of all: it must not depend on ``tasks``.
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
        """{video stem: "train" | "val" | "test" | "unused"} of every video that any question names."""
        names: dict[str, str] = {}
        for item in (item for items in self.items.values() for item in items):
            # one file may say "x", another "x.mp4": one video, and the longer name is the base name
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
        # two data sets may both have a P01
        persons = {
            stem: f"{told.get('source', '')}/{told['participant']}"
            for stem, told in people.items()
            if "participant" in told
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
        """Who looked and which data set each video is from, as far as that is known."""
        p = self.params
        videos = self.video_files if (self.root / p.videos).is_dir() else {}
        everything = [item for items in self.items.values() for item in items]
        return gather(
            everything,
            self.root,
            self.root / p.metadata,
            None if p.groups is None else self.root / p.groups,
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
        """Return (start, end) in seconds of what a question may see."""
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
        """Return {kind of signal: file} of a question's video; a subclass may add kinds."""
        return {SIGNAL: self.fixation_files[item.stem]} if self.params.fixations else {}

    def samples(self, split: str) -> list[Sample]:
        """Return the samples of ``split``, or of all three ("all"): task by task, each in the order
        of its file.
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

    def clip_signal(self, sample: Sample, signal: Signal) -> Signal:
        """Return what of a video's ``signal`` belongs to ``sample``, by the parameters
        ``fixation_rule`` and ``proactive_fixations`` if it is gaze.
        """
        start, end = sample.window
        if signal.kind != SIGNAL or not isinstance(
            signal, Scanpath
        ):  # hand paths are scanpaths too
            return signal.within(start, end)
        if self.params.fixation_rule == "midpoint":
            signal = Scanpath(by_midpoint(signal.fixations, start, end), signal.n_resorted)
        else:
            signal = signal.within(start, end)
        if self.params.proactive_fixations == "origin" and family(sample.task) == "proactive":
            signal = Scanpath(signal.fixations * [0.0, 0.0, 1.0, 1.0], signal.n_resorted)
        return signal

    def sample_of(self, item: Item) -> Sample:
        """Return one question as a sample. Its video and its signals must be there."""
        video = self.video_files[item.stem]
        signals = self.signals(item)
        groups = {**item.groups, **self.people.known[item.stem]}
        extra = {"place": list(item.place), "time": item.time, **item.extra}
        return Sample(
            item.id,
            item.task,
            video,
            self.window(item),
            item.question,
            item.options,
            item.answer,
            signals,
            groups,
            extra,
        )

    def reference(self) -> Reference:
        """Return the rows of GazeQwen's Table 1."""
        return published()

    def fingerprint(self) -> str:
        """Return a hash of the question files, the fixation files' and videos' names and sizes, the
        split, and what shapes the samples.
        """
        digest = hashlib.sha256()
        for path in self.question_files:
            digest.update(f"{path.name}\0{path.stat().st_size}\0".encode() + path.read_bytes())
        gaze = self.fixation_files if self.params.fixations else {}
        sizes = [
            [(stem, path.name, path.stat().st_size) for stem, path in sorted(files.items())]
            for files in (gaze, self.video_files)
        ]
        # not the folders' names: moved data are the same data; and who is in which split is told by
        # the splits themselves
        left_out = {
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
        settings = self.params.model_dump(mode="json", exclude=left_out)
        fresh = {
            name for name in LATER if settings[name] == StreamGazeParams.model_fields[name].default
        }
        settings = {name: value for name, value in settings.items() if name not in fresh}
        if self.params.gaze is not None:
            settings["extraction"] = self.params.gaze.extraction.model_dump(mode="json")
        digest.update(
            json.dumps([sizes, settings, sorted(self.splits.items())], sort_keys=True).encode()
        )
        return f"streamgaze-{digest.hexdigest()[:16]}"


def _shares(available: dict[str, int], limit: int) -> dict[str, int]:
    """Divide ``limit`` among the tasks as evenly as their sizes allow."""
    shares = dict.fromkeys(available, 0)
    left = min(limit, sum(available.values()))
    while left:
        for task, n in available.items():
            if left and shares[task] < n:
                shares[task] += 1
                left -= 1
    return shares


def _spread(items: list[Item], n: int) -> list[Item]:
    """Return ``n`` of ``items``, evenly spaced, so that a limit does not keep the first videos
    only.
    """
    return [items[i * len(items) // n] for i in range(n)]

"""Check the videos, pictures and signals that samples name."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from modulate import plugins
from modulate.data.picture import read_picture
from modulate.data.video import probe, read_frames
from modulate.errors import MissingFileError, ModulateError
from modulate.interfaces.components import Dataset
from modulate.interfaces.inspection import Inspection, place_of
from modulate.interfaces.sample import Sample, SampleClip
from modulate.interfaces.signal import Signal

Clips = Mapping[Path, Sequence[tuple[Sample, SampleClip]]]
"""The clips that show each file, with their samples."""


def check_media(
    inspection: Inspection, samples: Sequence[Sample], decode: bool = False
) -> dict[Path, float]:
    """Check videos and pictures, and the windows of clips; return the end (s) of each video.

    ``decode``: decode the last frame that a window needs, too.
    """
    by_file: dict[Path, list[tuple[Sample, SampleClip]]] = defaultdict(list)
    for sample in samples:
        for clip in sample.clips:
            by_file[clip.file].append((sample, clip))
    ends: dict[Path, float] = {}
    missing: list[str] = []
    broken: list[str] = []
    for file, clips in by_file.items():
        try:
            if clips[0][1].is_image:
                read_picture(file)
            else:
                ends[file] = _end(file, clips, decode)
        except MissingFileError:
            missing.append(f"{_places(clips)}: {file}")
        except ModulateError as error:
            broken.append(f"{_places(clips)}: {error}")
        inspection.advance()
    total = len(by_file)
    if missing:
        inspection.add(
            "error", f"{len(missing)} of {total} videos or pictures are missing.", missing
        )
    if broken:
        inspection.add(
            "error", f"{len(broken)} of {total} videos or pictures cannot be read.", broken
        )
    _check_windows(inspection, by_file, ends)
    return ends


def _end(file: Path, clips: Sequence[tuple[Sample, SampleClip]], decode: bool) -> float:
    info = probe(file)
    end = info.duration + 1 / info.fps
    if decode:
        needed = max(clip.window[1] for _, clip in clips)
        read_frames(file, [min(needed, info.duration)])
    return end


def _places(clips: Sequence[tuple[Sample, SampleClip]]) -> str:
    first = place_of(clips[0][0])
    others = len(clips) - 1
    return f"{first} and {others} more" if others else first


def _check_windows(inspection: Inspection, by_file: Clips, ends: Mapping[Path, float]) -> None:
    outside: list[str] = []
    for file, clips in by_file.items():
        for sample, clip in clips:
            start, end = clip.window
            where = f"{place_of(sample)}: {start:g} to {end:g} s of {file.name}"
            if clip.is_image:
                if start < 0 or end < start:
                    outside.append(f"{where}, which is no window of a picture")
            elif start < 0 or end <= start:
                outside.append(f"{where}, which is no window")
            elif file in ends and end > ends[file]:
                outside.append(f"{where}, which ends at {ends[file]:.2f} s")
    if outside:
        count = sum(map(len, by_file.values()))
        inspection.add(
            "error", f"{len(outside)} of {count} windows lie outside of their video.", outside
        )


# --- signals


def check_signals(
    inspection: Inspection,
    dataset: Dataset,
    samples: Sequence[Sample],
    kinds: Sequence[str],
    ends: Mapping[Path, float],
) -> None:
    """Check the signals of samples: files, events at all, and events within the clips.

    Args:
        inspection: gets the findings.
        dataset: says which part of a signal belongs to a clip.
        samples: all samples.
        kinds: kinds that the recipe reads; a sample without one of them is an error.
        ends: end (s) of each readable video.
    """
    present = {kind for sample in samples for clip in sample.clips for kind in clip.signals}
    for kind in dict.fromkeys((*kinds, *sorted(present))):
        lacking = [
            place_of(sample)
            for sample in samples
            if not any(kind in clip.signals for clip in sample.clips)
        ]
        if lacking:
            inspection.add(
                "error" if kind in kinds else "warning",
                f"{len(lacking)} of {len(samples)} samples have no {kind!r} signal.",
                lacking,
            )
        if kind in present:
            _KindCheck(inspection, dataset, kind, ends).check(samples)


class _KindCheck:
    """Checks the signals of one kind, each file read once."""

    def __init__(
        self, inspection: Inspection, dataset: Dataset, kind: str, ends: Mapping[Path, float]
    ) -> None:
        self._inspection = inspection
        self._dataset = dataset
        self._kind = kind
        self._ends = ends
        self._files: dict[Path, Signal | None] = {}
        self._missing: list[str] = []
        self._broken: list[str] = []
        self._empty: list[str] = []
        self._elsewhere: dict[tuple[Path, Path], str] = {}

    def check(self, samples: Sequence[Sample]) -> None:
        """Add findings on all clips that have a signal of the kind."""
        try:
            signal_class = plugins.get("signal", self._kind)
        except ModulateError as error:
            self._inspection.add("error", str(error))
            return
        clips = [
            (sample, clip)
            for sample in samples
            for clip in sample.clips
            if self._kind in clip.signals
        ]
        silent = [
            f"{place_of(sample)}: {clip.window[0]:g} to {clip.window[1]:g} s"
            for sample, clip in clips
            if not self._reaches(signal_class, sample, clip)
        ]
        self._report(len(clips), silent)

    def _reaches(self, signal_class: type[Signal], sample: Sample, clip: SampleClip) -> bool:
        """Return whether the clip has an event, or its signal a finding of its own."""
        path = clip.signals[self._kind]
        signal = self._read(signal_class, path, sample)
        if signal is None:
            return True
        end = self._ends.get(clip.file)
        span = signal.span()
        if end is not None and span is not None and (span[1] < 0 or span[0] > end):
            text = (
                f"{place_of(sample)}: {path.name}, from {span[0]:.2f} to {span[1]:.2f} s;"
                f" {clip.file.name} ends at {end:.2f} s"
            )
            self._elsewhere.setdefault((path, clip.file), text)
            return True
        # A picture without a window was looked at for as long as its signal lasts.
        whole = clip.is_image and clip.window == (0.0, 0.0)
        return whole or len(self._dataset.clip_signal(sample, clip, signal)) > 0

    def _read(self, signal_class: type[Signal], path: Path, sample: Sample) -> Signal | None:
        """Return the signal; None if there is none, which is noted the first time."""
        if path not in self._files:
            self._files[path] = None
            self._inspection.advance()
            if not path.is_file():
                self._missing.append(f"{place_of(sample)}: {path}")
                return None
            try:
                with plugins.registry().blame("signal", self._kind, f"read of {path}"):
                    signal = signal_class.read(path)
            except ModulateError as error:
                self._broken.append(f"{place_of(sample)}: {error}")
                return None
            if len(signal) == 0:
                self._empty.append(f"{place_of(sample)}: {path}")
                return None
            self._files[path] = signal
        return self._files[path]

    def _report(self, clips: int, silent: list[str]) -> None:
        kind = self._kind
        of_files = f"of {len(self._files)} {kind!r} files"
        found: list[tuple[str, list[str]]] = [
            (f"{len(self._missing)} {of_files} are missing.", self._missing),
            (f"{len(self._broken)} {of_files} cannot be read.", self._broken),
        ]
        for text, rows in found:
            if rows:
                self._inspection.add("error", text, rows)
        if self._empty:
            self._inspection.add(
                "warning", f"{len(self._empty)} {of_files} hold no event.", self._empty
            )
        if self._elsewhere:
            self._inspection.add(
                "error" if len(self._elsewhere) == len(self._files) else "warning",
                f"{len(self._elsewhere)} {of_files} lie outside of their video, before its first"
                " frame or after its end: are they on another clock? Times must be seconds from the"
                " video's first frame.",
                list(self._elsewhere.values()),
            )
        if silent:
            self._inspection.add(
                "warning",
                f"{len(silent)} of {clips} clips have no {kind!r} event in their window.",
                silent,
            )

"""Check whether a dataset's signals reach the sampled steps.

At most the first frame of every video is decoded.
"""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from modulate.checks.findings import CheckReport
from modulate.data.feature_extractor import apply_clock
from modulate.data.video import VideoInfo, probe
from modulate.errors import ModulateError, SignalWarning, VideoError
from modulate.inference.pipeline import Pipeline
from modulate.interfaces.components import SignalEncoder
from modulate.interfaces.sample import Sample, SampleClip
from modulate.interfaces.signal import Signal
from modulate.interfaces.visual_grid import VisualGrid, picture_grid, visual_grid

CHUNK = 16
"""Clips encoded at once."""

MAX_ERRORS = 5
"""Unusable samples that are reported one by one."""


_Probed = list[tuple[Signal, VisualGrid]]
"""The signal of each clip of a sample that has one, with the clip's grid."""


class Probes:
    """Metadata of video files, each read once."""

    def __init__(self) -> None:
        self._found: dict[Path, VideoInfo] = {}

    def __getitem__(self, path: Path) -> VideoInfo:
        if path not in self._found:
            self._found[path] = probe(path)
        return self._found[path]

    def end(self, path: Path) -> float:
        """Return the end of the last frame, s."""
        return self[path].duration + 1 / self[path].fps


def coverage(
    report: CheckReport,
    pipeline: Pipeline,
    encoder: SignalEncoder,
    samples: Mapping[str, Sequence[Sample]],
    grid: VisualGrid,
    per_step: int,
    probes: Probes,
) -> None:
    """Add to ``report`` the share of samples with an active signal, by split, and findings.

    ``grid``: that of any clip, for its rows and columns. ``per_step``: frames that the host merges
    into a step. ``encoder`` must be on the CPU.
    """
    errors: list[str] = []
    off_clock = 0
    for split, items in samples.items():
        active = 0
        ready: list[_Probed] = []
        for sample in items:
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", SignalWarning)  # a finding, below
                    found = _probed(pipeline, sample, grid, per_step, probes, split == "train")
                    off_clock += any(map(pipeline.signals.off_clock, sample.clips))
                ready.append(found)
            except ModulateError as error:
                errors.append(f"Sample {sample.id} ({split}): {error}")
        # In chunks, because the encoded features of a whole split would not fit into memory.
        for start in range(0, len(ready), CHUNK):
            active += _count_active(encoder, ready[start : start + CHUNK])
        if items:
            report.coverage[split] = active / len(items)
    if report.coverage:
        report.figures["samples whose signal is active"] = ", ".join(
            f"{100 * share:.1f} % {split}" for split, share in report.coverage.items()
        )
    _add_off_clock(report, off_clock, sum(map(len, samples.values())))
    for split, share in report.coverage.items():
        if share < 1:
            report.add(
                "error" if share == 0 else "warning",
                f"In {100 * (1 - share):.1f} % of the {split} samples the signal is active at no"
                " sampled step.",
            )
    for text in errors[:MAX_ERRORS]:
        report.add("error", text)
    if len(errors) > MAX_ERRORS:
        report.add("error", f"… and {len(errors) - MAX_ERRORS} more samples that cannot be used.")


def _count_active(encoder: SignalEncoder, samples: Sequence[_Probed]) -> int:
    """Return how many of ``samples`` have a clip whose signal is active at some step."""
    signals = [signal for clips in samples for signal, _ in clips]
    grids = [grid for clips in samples for _, grid in clips]
    with torch.no_grad():
        active: Tensor = encoder(signals, grids).active
    steps = [sum(grid.steps for _, grid in clips) for clips in samples]
    return sum(bool(part.any()) for part in active.split(steps))


def _add_off_clock(report: CheckReport, count: int, total: int) -> None:
    """Add a finding if the signals of ``count`` of all samples lie outside of their videos."""
    if count:
        report.add(
            "error" if count == total else "warning",
            f"In {count} of {total} samples the whole signal lies outside the video, before its"
            " first frame or after its end: is it on another clock? Times must be seconds from the"
            " video's first frame.",
        )


def _probed(
    pipeline: Pipeline,
    sample: Sample,
    grid: VisualGrid,
    per_step: int,
    probes: Probes,
    training: bool,
) -> _Probed:
    """Return the signals and grids of a sample's clips, as if frames came exactly on time."""
    found = []
    for clip in sample.clips:
        signal = pipeline.signal(sample, clip)
        whole = (
            picture_grid(grid.rows, grid.cols, pipeline.signals.window(clip))
            if clip.is_image
            else _video_grid(pipeline, clip, grid, per_step, probes, training)
        )
        if signal is not None:
            found.append((signal, whole))
    return found


def _video_grid(
    pipeline: Pipeline,
    clip: SampleClip,
    grid: VisualGrid,
    per_step: int,
    probes: Probes,
    training: bool,
) -> VisualGrid:
    end = probes.end(clip.file)
    if clip.window[1] > end:
        raise VideoError(
            f"the question at {clip.window[1]:.2f} s lies after the end of {clip.file}, which"
            f" ends at {end:.2f} s."
        )
    times = pipeline.times(clip, training)
    # The same grid that the host would return for these frame times, without decoding any.
    whole = visual_grid(times, per_step, grid.rows, grid.cols, clip.window)
    return apply_clock(pipeline.recipe.sampling, clip.window, whole, len(times))

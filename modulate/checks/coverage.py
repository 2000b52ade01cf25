"""Check whether a dataset's signals reach the sampled steps.

At most the first frame of every video is decoded.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from modulate.checks.findings import CheckReport
from modulate.data.feature_extractor import apply_clock
from modulate.data.video import VideoInfo, probe
from modulate.errors import ModulateError, VideoError
from modulate.inference.pipeline import Pipeline
from modulate.interfaces.components import Sample, SignalEncoder
from modulate.interfaces.signal import Signal
from modulate.interfaces.visual_grid import VisualGrid, visual_grid

CHUNK = 16
"""Clips encoded at once."""

MAX_ERRORS = 5
"""Unusable samples that are reported one by one."""


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
    outside = _Outside(pipeline, probes)
    for split, items in samples.items():
        active = 0
        ready: list[tuple[Signal, VisualGrid]] = []
        for sample in items:
            try:
                ready.append(_probed(pipeline, sample, grid, per_step, probes, split == "train"))
                outside.look(sample)
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
    outside.add_finding(report, sum(map(len, samples.values())))
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


def _count_active(encoder: SignalEncoder, clips: Sequence[tuple[Signal, VisualGrid]]) -> int:
    """Return how many of ``clips`` have a signal that is active at some step."""
    signals = [signal for signal, _ in clips]
    grids = [grid for _, grid in clips]
    with torch.no_grad():
        active: Tensor = encoder(signals, grids).active
    return sum(bool(steps.any()) for steps in active.split([grid.steps for grid in grids]))


class _Outside:
    """Count samples whose whole signal lies before the first frame or after the end of their video.

    This is the usual sign of a signal on another clock.
    """

    def __init__(self, pipeline: Pipeline, probes: Probes) -> None:
        self.kinds = pipeline.signals.kinds
        self.probes = probes
        self.count = 0
        self._known: dict[tuple[Path, Path], bool] = {}

    def look(self, sample: Sample) -> None:
        """Count ``sample`` if one of its signals has events, but none during its video."""
        if any(
            self._is_outside(kind, sample.signals[name], sample.video)
            for name, kind in self.kinds.items()
            if name in sample.signals
        ):
            self.count += 1

    def _is_outside(self, kind: type[Signal], path: Path, video: Path) -> bool:
        # Many samples share a video and its signal files.
        if (path, video) not in self._known:
            signal = kind.read(path)
            self._known[path, video] = (
                len(signal) > 0 and len(signal.within(0.0, self.probes.end(video))) == 0
            )
        return self._known[path, video]

    def add_finding(self, report: CheckReport, total: int) -> None:
        """Add a finding if any of the ``total`` samples was counted."""
        if self.count:
            report.add(
                "error" if self.count == total else "warning",
                f"In {self.count} of {total} samples the whole signal lies outside the video,"
                " before its first frame or after its end: is it on another clock? Times must be"
                " seconds from the video's first frame.",
            )


def _probed(
    pipeline: Pipeline,
    sample: Sample,
    grid: VisualGrid,
    per_step: int,
    probes: Probes,
    training: bool,
) -> tuple[Signal, VisualGrid]:
    """Return a sample's signal and the grid of its clip, as if frames came exactly on time."""
    end = probes.end(sample.video)
    if sample.window[1] > end:
        raise VideoError(
            f"the question at {sample.window[1]:.2f} s lies after the end of {sample.video}, which"
            f" ends at {end:.2f} s."
        )
    times = pipeline.times(sample, training)
    # The same grid that the host would return for these frame times, without decoding any.
    whole = visual_grid(times, per_step, grid.rows, grid.cols, sample.window)
    return pipeline.signal(sample), apply_clock(
        pipeline.recipe.sampling, sample.window, whole, len(times)
    )

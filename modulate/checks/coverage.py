"""Whether a data set's signals reach the steps that are sampled, found without decoding more than
the first frame of every video.
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

CHUNK = 16  # clips encoded at once


class Probes:
    """What files say about their videos, each looked at once."""

    def __init__(self) -> None:
        self._found: dict[Path, VideoInfo] = {}

    def __getitem__(self, path: Path) -> VideoInfo:
        if path not in self._found:
            self._found[path] = probe(path)
        return self._found[path]

    def end(self, path: Path) -> float:
        """Return when the last frame has been on screen as long as reading frames allows, s."""
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
    """Add the share of samples whose signal is active at some step, by split, and findings on those
    whose is not.

    ``grid``: of any clip, for its rows and columns; ``per_step``: frames that the host merges into
    a step. ``encoder`` must be on the CPU.
    """
    wrong: list[str] = []
    outside = _Outside(pipeline, probes)
    for split, items in samples.items():
        active = 0
        ready: list[tuple[Signal, VisualGrid]] = []
        for sample in items:
            try:
                ready.append(_probed(pipeline, sample, grid, per_step, probes, split == "train"))
                outside.look(sample)
            except ModulateError as error:
                wrong.append(f"Sample {sample.id} ({split}): {error}")
        for start in range(0, len(ready), CHUNK):
            chunk = ready[start : start + CHUNK]
            with torch.no_grad():
                reached: Tensor = encoder([s for s, _ in chunk], [g for _, g in chunk]).active
            active += sum(bool(part.any()) for part in reached.split([g.steps for _, g in chunk]))
        if items:
            report.coverage[split] = active / len(items)
    if report.coverage:
        report.figures["samples whose signal is active"] = ", ".join(
            f"{100 * share:.1f} % {split}" for split, share in report.coverage.items()
        )
    outside.tell(report, sum(map(len, samples.values())))
    for split, share in report.coverage.items():
        if share < 1:
            report.add(
                "error" if share == 0 else "warning",
                f"In {100 * (1 - share):.1f} % of the {split} samples the signal is active at no"
                " sampled step.",
            )
    for text in wrong[:5]:
        report.add("error", text)
    if len(wrong) > 5:
        report.add("error", f"… and {len(wrong) - 5} more samples that cannot be used.")


class _Outside:
    """Counts samples whose signal as a whole lies outside their video: before its first frame or
    beyond its end.
    """

    def __init__(self, pipeline: Pipeline, probes: Probes) -> None:
        self.kinds = pipeline.signals.kinds
        self.probes = probes
        self.count = 0
        self._known: dict[tuple[Path, Path], bool] = {}

    def look(self, sample: Sample) -> None:
        """Count ``sample`` when a signal of it has events, but none while its video runs."""
        if any(
            self._is_outside(kind, sample.signals[name], sample.video)
            for name, kind in self.kinds.items()
            if name in sample.signals
        ):
            self.count += 1

    def _is_outside(self, kind: type[Signal], path: Path, video: Path) -> bool:
        if (path, video) not in self._known:
            signal = kind.read(path)
            self._known[path, video] = (
                len(signal) > 0 and len(signal.within(0.0, self.probes.end(video))) == 0
            )
        return self._known[path, video]

    def tell(self, report: CheckReport, n: int) -> None:
        """Add the finding, if there is one."""
        if self.count:
            report.add(
                "error" if self.count == n else "warning",
                f"In {self.count} of {n} samples the whole signal lies outside the video, before"
                " its first frame or beyond its end: is it on another clock? Times must be seconds"
                " from the video's first frame.",
            )


def _probed(
    pipeline: Pipeline,
    sample: Sample,
    grid: VisualGrid,
    per_step: int,
    probes: Probes,
    training: bool,
) -> tuple[Signal, VisualGrid]:
    """Return a sample's signal and the grid that its sampling will make, frames taken to come
    exactly when they are asked for.
    """
    end = probes.end(sample.video)
    if sample.window[1] > end:
        raise VideoError(
            f"the question at {sample.window[1]:.2f} s lies beyond the end of {sample.video}, which"
            f" ends at {end:.2f} s."
        )
    times = pipeline.times(sample, training)
    whole = visual_grid(times, per_step, grid.rows, grid.cols, sample.window)
    return pipeline.signal(sample), apply_clock(
        pipeline.recipe.sampling, sample.window, whole, len(times)
    )

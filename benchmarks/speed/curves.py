"""Growth of the cost of conditioning with frames, clips, layers and fixations."""

import csv
import math
import statistics
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from benchmarks.speed import fixtures
from benchmarks.speed.bench import Bench, with_random_writers
from benchmarks.speed.timing import interleaved
from modulate import ClipInput, Injection, Modulation, visual_grid
from modulate.interfaces.params import ComponentSpec
from modulate_gaze.scanpath import Scanpath

ROWS = 13
COLS = 18
D_FEATURES = 192  # as in the bench's clips


def modulation_for(
    bench: Bench, layers: tuple[int, ...] = fixtures.INJECTED, encoder: str = "coord_pe"
) -> Modulation:
    """Return a modulation of the bench host with non-zero residuals."""
    return with_random_writers(
        Modulation.for_host(
            bench.pipeline.model,
            encoder=ComponentSpec(name=encoder, params={"dim": 256}),
            modulator=ComponentSpec(name="gaze_resampler"),
            injection=Injection(layers=layers),
            d_features=D_FEATURES,
        )
    )


def clip(frames: int = fixtures.FRAMES, fixations: int = fixtures.FRAMES) -> ClipInput:
    """Return a clip with one frame a second and evenly spread fixations."""
    grid = visual_grid([float(time) for time in range(frames)], 2, ROWS, COLS)
    times = np.linspace(0, frames - 1, fixations)
    features = torch.randn(
        grid.steps, grid.tokens_per_step, D_FEATURES, generator=torch.Generator().manual_seed(0)
    )
    return ClipInput(
        Scanpath(
            np.stack(
                [np.full(fixations, 0.4), np.full(fixations, 0.6), times, np.full(fixations, 0.2)],
                1,
            )
        ),
        grid,
        features,
    )


def conditioning_seconds(modulation: Modulation, clips: list[ClipInput], repeats: int) -> float:
    """Return the processor time, s, of these clips' latents and of all layers' residuals."""

    @torch.inference_mode()
    def call() -> None:
        latents = modulation.latents(clips)
        for index in range(len(latents.parts)):
            modulation.residual(index, latents.mixtures(index))

    return statistics.median(cost.cpu for cost in interleaved([call], repeats)[0])


def read_fixations(count: int, repeats: int) -> float:
    """Return the seconds to read a file of ``n`` fixations and select those of a clip."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "a_fixation_filtered.csv"
        with path.open("w", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(["start_time_seconds", "duration_seconds", "center_x", "center_y"])
            rows.writerows([round(0.3 * index, 3), 0.2, 0.5, 0.5] for index in range(count))
        return statistics.median(
            cost.cpu
            for cost in interleaved([lambda: Scanpath.read(path).within(10.0, 26.0)], repeats)[0]
        )


def measure(bench: Bench) -> dict[str, Any]:
    """Return the points (x, seconds) of each curve, and the exponent between the last two."""
    repeats = bench.repeats
    usual = modulation_for(bench)
    heat = modulation_for(bench, encoder="heatmap_dur")
    found = {
        "frames": [
            (frames, conditioning_seconds(usual, [clip(frames)], repeats))
            for frames in (2, 4, 8, 16, 32, 64)
        ],
        "clips in a batch": [
            (clips, conditioning_seconds(usual, [clip()] * clips, repeats))
            for clips in (1, 2, 4, 8)
        ],
        "injected layers": [
            (
                layers,
                conditioning_seconds(
                    modulation_for(bench, tuple(range(layers))), [clip()], repeats
                ),
            )
            for layers in (1, 2, 4, 8, 12)
        ],
        "fixations in a clip (coord_pe)": [
            (fixations, conditioning_seconds(usual, [clip(fixations=fixations)], repeats))
            for fixations in (10, 100, 1000, 10_000, 100_000)
        ],
        "fixations in a clip (heatmap_dur)": [
            (fixations, conditioning_seconds(heat, [clip(fixations=fixations)], repeats))
            for fixations in (10, 100, 1000, 10_000, 100_000)
        ],
        "fixations in a file, read": [
            (fixations, read_fixations(fixations, repeats))
            for fixations in (10, 100, 1000, 10_000, 100_000)
        ],
    }
    return {
        name: {"points": points, "exponent": exponent(points)} for name, points in found.items()
    }


def exponent(points: list[tuple[int, float]]) -> float:
    """Return p if the seconds grow as x^p between the last two points; 1 is linear."""
    (first_x, first_seconds), (last_x, last_seconds) = points[-2:]
    return math.log(last_seconds / first_seconds) / math.log(last_x / first_x)


def svg(name: str, points: list[tuple[int, float]], width: int = 420, height: int = 260) -> str:
    """Return a log-log plot of seconds over x, with a line of linear growth as reference."""
    left = 64
    bottom = height - 44
    top = 30
    right = width - 30  # half of the last label extends beyond
    xs = [math.log10(x) for x, _ in points]
    ys = [math.log10(y) for _, y in points]
    low = math.floor(min(ys))
    high = math.ceil(max(ys))
    at_x = lambda x: left + (right - left) * (x - xs[0]) / (xs[-1] - xs[0])  # noqa: E731
    at_y = lambda y: bottom - (bottom - top) * (y - low) / (high - low)  # noqa: E731
    back = max(low, ys[-1] - (xs[-1] - xs[0]))
    parts = [
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}"'
            f' width="{width}" height="{height}" role="img" font-family="sans-serif"'
            ' font-size="12">'
        ),
        f"<title>Seconds that conditioning adds, over {name}</title>",
        (
            f'<rect width="{width}" height="{height}" fill="white"/><text x="{left}" y="18">seconds'
            f" added, over {name}</text>"
        ),
    ]
    for y in range(low, high + 1):
        parts.append(
            f'<line x1="{left}" x2="{right}" y1="{at_y(y):.1f}" y2="{at_y(y):.1f}" stroke="#ddd"/>'
        )
        parts.append(
            f'<text x="{left - 6}" y="{at_y(y) + 4:.1f}" text-anchor="end">{10.0**y:g}</text>'
        )
    for (x, _), place in zip(points, xs, strict=True):
        parts.append(
            f'<text x="{at_x(place):.1f}" y="{bottom + 18}" text-anchor="middle">{x:,}</text>'
        )
    start = xs[-1] - (ys[-1] - back)
    parts.append(
        f'<line x1="{at_x(start):.1f}" y1="{at_y(back):.1f}" x2="{at_x(xs[-1]):.1f}"'
        f' y2="{at_y(ys[-1]):.1f}" stroke="#999" stroke-dasharray="4 3"/>'
    )
    line = " ".join(f"{at_x(x):.1f},{at_y(y):.1f}" for x, y in zip(xs, ys, strict=True))
    parts.append(f'<polyline points="{line}" fill="none" stroke="#0b5fa5" stroke-width="2"/>')
    parts += [
        f'<circle cx="{at_x(x):.1f}" cy="{at_y(y):.1f}" r="3" fill="#0b5fa5"/>'
        for x, y in zip(xs, ys, strict=True)
    ]
    parts.append(
        f'<text x="{right}" y="{height - 6}" text-anchor="end" fill="#555">dashed:'
        " linear</text></svg>"
    )
    return "\n".join(parts) + "\n"

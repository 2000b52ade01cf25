"""Bars with intervals and curves, as inline SVG that follows the page's colors."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from modulate.report.html import Html, tag
from modulate.report.table import interval, percent

WIDTH = 860
LABEL = 300
_ROW = 16
_GAP = 12


@dataclass(frozen=True)
class Bar:
    """One bar: share in [0, 1], its interval, and the number of its color."""

    series: int
    value: float
    low: float | None
    high: float | None


def bars(
    groups: Sequence[tuple[str, Sequence[Bar]]],
    series: Sequence[str],
    alt: str,
    chance: Sequence[float | None] = (),
) -> Html:
    """Return horizontal bars in groups, on a scale from 0 to 100 %, with whiskers, values and a
    legend. ``chance``: a tick in each group.
    """
    plot = WIDTH - LABEL - 150

    def x(share: float) -> float:
        return LABEL + plot * share

    top = 30
    height = top + sum(len(b) * _ROW + _GAP for _, b in groups) + 26
    parts = _legend(series)
    for share in (0, 0.25, 0.5, 0.75, 1):
        parts.append(
            tag("line", x1=x(share), x2=x(share), y1=top - 4, y2=height - 22, class_="grid")
        )
        parts.append(
            tag("text", f"{100 * share:g} %", x=x(share), y=height - 7, text_anchor="middle")
        )
    y = float(top)
    for g, (name, own) in enumerate(groups):
        lines = _wrapped(name, 42)
        middle = y + len(own) * _ROW / 2 + 4 - 7 * (len(lines) - 1)
        parts += [
            tag("text", line, x=LABEL - 10, y=middle + 14 * i, text_anchor="end")
            for i, line in enumerate(lines)
        ]
        if g < len(chance) and (guess := chance[g]) is not None:
            parts.append(
                tag(
                    "line",
                    x1=x(guess),
                    x2=x(guess),
                    y1=y - 2,
                    y2=y + len(own) * _ROW,
                    class_="stage",
                )
            )
        for bar in own:
            parts += _bar(bar, x, y)
            y += _ROW
        y += _GAP
    return tag(
        "svg", *parts, viewBox=f"0 0 {WIDTH} {height:g}", width=WIDTH, role="img", aria_label=alt
    )


def _bar(bar: Bar, x: Callable[[float], float], y: float) -> list[Html]:
    parts = [
        tag(
            "rect",
            x=f"{x(0):.1f}",
            y=y + 2,
            width=f"{x(bar.value) - x(0):.1f}",
            height=_ROW - 4,
            class_=f"f{bar.series % 5}",
        )
    ]
    end = x(bar.value)
    text = percent(bar.value)
    if bar.low is not None and bar.high is not None:
        middle = y + _ROW / 2
        parts.append(
            tag(
                "line",
                x1=f"{x(bar.low):.1f}",
                x2=f"{x(bar.high):.1f}",
                y1=middle,
                y2=middle,
                class_="whisker",
            )
        )
        parts += [
            tag(
                "line",
                x1=f"{x(v):.1f}",
                x2=f"{x(v):.1f}",
                y1=middle - 3,
                y2=middle + 3,
                class_="whisker",
            )
            for v in (bar.low, bar.high)
        ]
        end = max(end, x(bar.high))
        text = f"{text} {interval(bar.low, bar.high)}"
    return [*parts, tag("text", text, x=f"{end + 6:.1f}", y=y + 12, font_size=11)]


def _legend(series: Sequence[str]) -> list[Html]:
    parts = []
    x = 0.0
    for i, name in enumerate(series):
        parts.append(tag("rect", x=x, y=4, width=12, height=12, class_=f"f{i % 5}"))
        parts.append(tag("text", name, x=x + 17, y=14))
        x += 17 + 7.0 * len(name) + 18
    return parts


def _wrapped(text: str, most: int) -> list[str]:
    """Break a long name after an underscore, hyphen or space."""
    lines = []
    while len(text) > most:
        cut = max((i + 1 for i, letter in enumerate(text[:most]) if letter in "_- "), default=most)
        lines.append(text[:cut])
        text = text[cut:]
    return [*lines, text]


@dataclass(frozen=True)
class Curve:
    """One line: points (step, value), steps ascending."""

    name: str
    points: tuple[tuple[float, float], ...]


def curves(title: str, lines: Sequence[Curve], stages: Sequence[tuple[str, float]] = ()) -> Html:
    """Return a small plot of lines over steps; ``stages``: name and first step of each training
    stage, marked where it begins.
    """
    width = 330
    height = 190
    left = 46
    bottom = 26
    top = 24
    xs = [p[0] for line in lines for p in line.points]
    ys = [p[1] for line in lines for p in line.points]
    low, high, step = _ticks(min(ys), max(ys))
    right = max(max(xs), 1.0)

    def x(value: float) -> float:
        return left + (width - left - 10) * value / right

    def y(value: float) -> float:
        return height - bottom - (height - bottom - top) * (value - low) / (high - low)

    parts = [tag("text", title, x=left, y=14, font_weight=600)]
    for k in range(round((high - low) / step) + 1):
        value = low + k * step
        parts.append(
            tag(
                "line",
                x1=left,
                x2=width - 10,
                y1=f"{y(value):.1f}",
                y2=f"{y(value):.1f}",
                class_="grid",
            )
        )
        parts.append(
            tag("text", f"{value:.4g}", x=left - 6, y=f"{y(value) + 4:.1f}", text_anchor="end")
        )
    parts += [
        tag("text", "0", x=left, y=height - 8),
        tag("text", f"{right:g} steps", x=width - 10, y=height - 8, text_anchor="end"),
    ]
    for name, first in stages:
        if first > 0:
            parts.append(
                tag(
                    "line",
                    x1=f"{x(first):.1f}",
                    x2=f"{x(first):.1f}",
                    y1=top,
                    y2=height - bottom,
                    class_="stage",
                )
            )
            side = -1 if first > right / 2 else 1
            parts.append(
                tag(
                    "text",
                    name,
                    x=f"{x(first) + 4 * side:.1f}",
                    y=height - bottom - 5,
                    text_anchor="end" if side < 0 else "start",
                )
            )
    for i, line in enumerate(lines):
        points = " ".join(f"{x(a):.1f},{y(b):.1f}" for a, b in line.points)
        parts.append(tag("polyline", points=points, class_=f"l{i % 5}"))
        if len(line.points) == 1:
            parts.append(
                tag(
                    "circle",
                    cx=f"{x(line.points[0][0]):.1f}",
                    cy=f"{y(line.points[0][1]):.1f}",
                    r=3,
                    class_=f"f{i % 5}",
                )
            )
    ends = "; ".join(f"{line.name} ends at {line.points[-1][1]:.4g}" for line in lines)
    return tag(
        "svg",
        *parts,
        viewBox=f"0 0 {width} {height}",
        width=width,
        role="img",
        aria_label=f"{title} over training steps: {ends}",
        class_="small",
    )


def _ticks(low: float, high: float) -> tuple[float, float, float]:
    """Return rounded ends of a scale, and a round distance of its three to six ticks."""
    largest = max(abs(low), abs(high), 1e-12)
    if high - low < 1e-12 * max(1.0, largest):  # as good as constant
        low, high = (0.0, 1.0) if 0 <= low <= 1 else (low - 0.5 * largest, high + 0.5 * largest)
    rough = (high - low) / 4
    size = 10 ** math.floor(math.log10(rough))
    step = next(m * size for m in (1, 2, 5, 10) if m * size >= rough * 0.999)
    return math.floor(low / step + 1e-9) * step, math.ceil(high / step - 1e-9) * step, step


def thinned(
    points: Sequence[tuple[float, float]], most: int = 120
) -> tuple[tuple[tuple[float, float], ...], int]:
    """Return means over windows of equal size so that at most ``most`` points remain, and that
    size.
    """
    size = max(1, math.ceil(len(points) / most))
    chunks = [points[i : i + size] for i in range(0, len(points), size)]
    return (
        tuple((sum(p[0] for p in c) / len(c), sum(p[1] for p in c) / len(c)) for c in chunks),
        size,
    )

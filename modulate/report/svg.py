"""Bars with intervals, and curves, as inline SVG that follows the page's colors."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from modulate.report.html import Html, tag
from modulate.report.table import interval, percent

Point = tuple[float, float]

COLORS = ("blue", "orange", "green", "gray", "purple")
"""Names of the page's series colors, in order; further series start over."""

# --- bars, all lengths in pixels

WIDTH = 860
LABEL_WIDTH = 300
_VALUE_WIDTH = 150
_ROW = 16
_GAP = 12
_TOP = 30
_BOTTOM = 26
_LABEL_CHARACTERS = 42


@dataclass(frozen=True)
class Bar:
    """One bar: a share in [0, 1], its interval, and the index of its series."""

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
    """Return grouped horizontal bars from 0 to 100 %, with whiskers, values and a legend.

    Args:
        groups: name and bars of each group.
        series: names for the legend, by index.
        alt: text for readers who do not see the picture.
        chance: chance level of each group, drawn as a dashed line.
    """
    bars_height = sum(len(group) * _ROW + _GAP for _, group in groups)
    height = _TOP + bars_height + _BOTTOM
    parts = [*_legend(series), *_percent_grid(height)]
    y = float(_TOP)
    for i, (name, group) in enumerate(groups):
        parts += _group_label(name, y + len(group) * _ROW / 2)
        guess = chance[i] if i < len(chance) else None
        if guess is not None:
            parts.append(_vertical(_bar_x(guess), y - 2, y + len(group) * _ROW, "stage"))
        for bar in group:
            parts += _bar(bar, y)
            y += _ROW
        y += _GAP
    view_box = f"0 0 {WIDTH} {height:g}"
    return tag("svg", *parts, viewBox=view_box, width=WIDTH, role="img", aria_label=alt)


def _bar_x(share: float) -> float:
    return LABEL_WIDTH + (WIDTH - LABEL_WIDTH - _VALUE_WIDTH) * share


def _legend(series: Sequence[str]) -> list[Html]:
    parts = []
    x = 0.0
    for i, name in enumerate(series):
        parts.append(tag("rect", x=x, y=4, width=12, height=12, class_=_color("f", i)))
        parts.append(tag("text", name, x=x + 17, y=14))
        x += 17 + 7.0 * len(name) + 18
    return parts


def _percent_grid(height: float) -> list[Html]:
    parts = []
    for share in (0, 0.25, 0.5, 0.75, 1):
        x = _bar_x(share)
        parts.append(_vertical(x, _TOP - 4, height - 22, "grid"))
        parts.append(tag("text", f"{100 * share:g} %", x=x, y=height - 7, text_anchor="middle"))
    return parts


def _group_label(name: str, center: float) -> list[Html]:
    lines = _wrapped(name, _LABEL_CHARACTERS)
    first = center + 4 - 7 * (len(lines) - 1)
    return [
        tag("text", line, x=LABEL_WIDTH - 10, y=first + 14 * i, text_anchor="end")
        for i, line in enumerate(lines)
    ]


def _wrapped(text: str, most: int) -> list[str]:
    """Break a long name after an underscore, hyphen or space; without one, anywhere."""
    lines = []
    while len(text) > most:
        breaks = [i + 1 for i, letter in enumerate(text[:most]) if letter in "_- "]
        cut = max(breaks, default=most)
        lines.append(text[:cut])
        text = text[cut:]
    return [*lines, text]


def _bar(bar: Bar, y: float) -> list[Html]:
    """Return one bar with its whisker and its value, ``y`` being its upper edge."""
    start = _bar_x(0)
    end = _bar_x(bar.value)
    color = _color("f", bar.series)
    size = {"width": f"{end - start:.1f}", "height": _ROW - 4}
    parts = [tag("rect", x=f"{start:.1f}", y=y + 2, **size, class_=color)]
    text = percent(bar.value)
    if bar.low is not None and bar.high is not None:
        parts += _whisker(bar.low, bar.high, y + _ROW / 2)
        end = max(end, _bar_x(bar.high))
        text = f"{text} {interval(bar.low, bar.high)}"
    return [*parts, tag("text", text, x=f"{end + 6:.1f}", y=y + 12, font_size=11)]


def _whisker(low: float, high: float, y: float) -> list[Html]:
    ends = [f"{_bar_x(value):.1f}" for value in (low, high)]
    return [
        tag("line", x1=ends[0], x2=ends[1], y1=y, y2=y, class_="whisker"),
        *(_vertical(x, y - 3, y + 3, "whisker") for x in ends),
    ]


def _vertical(x: float | str, top: float, bottom: float, class_: str) -> Html:
    return tag("line", x1=x, x2=x, y1=top, y2=bottom, class_=class_)


def _color(prefix: str, series: int) -> str:
    return f"{prefix}{series % len(COLORS)}"


# --- curves, all lengths in pixels

_PLOT_WIDTH = 330
_PLOT_HEIGHT = 190
_LEFT = 46
_RIGHT = _PLOT_WIDTH - 10
_PLOT_TOP = 24
_PLOT_BOTTOM = _PLOT_HEIGHT - 26


@dataclass(frozen=True)
class Curve:
    """One line: points (step, value), steps ascending."""

    name: str
    points: tuple[Point, ...]


def curves(title: str, lines: Sequence[Curve], stages: Sequence[tuple[str, float]] = ()) -> Html:
    """Return a small plot of lines over steps.

    ``stages``: name and first step of each training stage, marked where it begins.
    """
    last_step = max(*(step for line in lines for step, _ in line.points), 1.0)
    values = [value for line in lines for _, value in line.points]
    low, high, tick = _ticks(min(values), max(values))

    def x(step: float) -> float:
        return _LEFT + (_RIGHT - _LEFT) * step / last_step

    def y(value: float) -> float:
        return _PLOT_BOTTOM - (_PLOT_BOTTOM - _PLOT_TOP) * (value - low) / (high - low)

    parts = [tag("text", title, x=_LEFT, y=14, font_weight=600)]
    for i in range(round((high - low) / tick) + 1):
        parts += _value_tick(low + i * tick, y)
    bottom = _PLOT_HEIGHT - 8
    parts.append(tag("text", "0", x=_LEFT, y=bottom))
    parts.append(tag("text", f"{last_step:g} steps", x=_RIGHT, y=bottom, text_anchor="end"))
    for name, first_step in stages:
        if first_step > 0:
            parts += _stage(name, x(first_step), right_half=first_step > last_step / 2)
    for i, line in enumerate(lines):
        parts += _curve(i, [(x(step), y(value)) for step, value in line.points])
    ends = "; ".join(f"{line.name} ends at {line.points[-1][1]:.4g}" for line in lines)
    return tag(
        "svg",
        *parts,
        viewBox=f"0 0 {_PLOT_WIDTH} {_PLOT_HEIGHT}",
        width=_PLOT_WIDTH,
        role="img",
        aria_label=f"{title} over training steps: {ends}",
        class_="small",
    )


def _value_tick(value: float, y: Callable[[float], float]) -> list[Html]:
    height = f"{y(value):.1f}"
    return [
        tag("line", x1=_LEFT, x2=_RIGHT, y1=height, y2=height, class_="grid"),
        tag("text", f"{value:.4g}", x=_LEFT - 6, y=f"{y(value) + 4:.1f}", text_anchor="end"),
    ]


def _stage(name: str, x: float, right_half: bool) -> list[Html]:
    # In the right half the name stands left of its line, or it would run out of the plot.
    text_x = x - 4 if right_half else x + 4
    anchor = "end" if right_half else "start"
    return [
        _vertical(f"{x:.1f}", _PLOT_TOP, _PLOT_BOTTOM, "stage"),
        tag("text", name, x=f"{text_x:.1f}", y=_PLOT_BOTTOM - 5, text_anchor=anchor),
    ]


def _curve(series: int, points: Sequence[Point]) -> list[Html]:
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    parts = [tag("polyline", points=path, class_=_color("l", series))]
    if len(points) == 1:
        # A line through a single point is invisible.
        ((x, y),) = points
        parts.append(tag("circle", cx=f"{x:.1f}", cy=f"{y:.1f}", r=3, class_=_color("f", series)))
    return parts


def _ticks(low: float, high: float) -> tuple[float, float, float]:
    """Return rounded ends of a scale, and the round distance of its three to six ticks."""
    largest = max(abs(low), abs(high), 1e-12)
    if high - low < 1e-12 * max(1.0, largest):
        # Constant values have no range of their own: show [0, 1], or half their size either way.
        if 0 <= low <= 1:
            low, high = (0.0, 1.0)
        else:
            low, high = (low - 0.5 * largest, high + 0.5 * largest)
    rough = (high - low) / 4
    magnitude = 10 ** math.floor(math.log10(rough))
    step = next(m * magnitude for m in (1, 2, 5, 10) if m * magnitude >= rough * 0.999)
    return math.floor(low / step + 1e-9) * step, math.ceil(high / step - 1e-9) * step, step


def thinned(points: Sequence[Point], most: int = 120) -> tuple[tuple[Point, ...], int]:
    """Return means over windows of equal size, at most ``most`` of them, and the window size."""
    size = max(1, math.ceil(len(points) / most))
    windows = [points[start : start + size] for start in range(0, len(points), size)]
    return tuple(map(_mean_point, windows)), size


def _mean_point(points: Sequence[Point]) -> Point:
    steps = sum(step for step, _ in points)
    values = sum(value for _, value in points)
    return steps / len(points), values / len(points)

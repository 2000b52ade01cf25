"""The gallery as HTML: frames with the signal on them, answers side by side, and the strength of
the residual on every visual token.
"""

import base64
import math

import numpy as np
from numpy.typing import NDArray

from modulate.report.gallery import Gallery, Shown, Step
from modulate.report.html import Html, table, tag
from modulate.report.table import NONE, Table

CONDITIONS = {
    "signal": "with the signal",
    "none": "no residual (LoRA on)",
    "blank": "empty signal",
    "host": "bare host",
}


def section(gallery: Gallery) -> list[Html]:
    """Return the gallery: how its samples were chosen, then one card each."""
    counts = "; ".join(f"{kind}: {n}" for kind, n in gallery.kinds.items())
    how = (
        f"Samples of {gallery.name}, answered again for this page. “Without” is the condition"
        f" {gallery.without}. There are of each kind: {counts}. Samples are taken from the kinds in"
        " turn, so rare kinds are over-represented here; the tables above have the shares."
    )
    reading = (
        "Rings mark where the signal was while a time step lasted. Tiles show ‖Δh‖/‖h‖ of each"
        " visual token at an injected layer: how large the residual written there is beside the"
        " hidden state that it is added to; and ‖Δh − Δh(blank)‖/‖h‖, how far it is from the one"
        " that an empty signal gives, which may be more than its own size. Within one sample all"
        " tiles share one scale, whose top is given."
    )
    return [
        tag("p", how, class_="soft"),
        tag("p", reading, class_="soft"),
        *(_card(i, shown) for i, shown in enumerate(gallery.samples, 1)),
    ]


def _card(number: int, shown: Shown) -> Html:
    sample = shown.sample
    top = max(
        (float(grid.max()) for found in (shown.strength, shown.due) for grid in found.values()),
        default=0.0,
    )
    parts: list[Html | None] = [
        tag("h4", f"{number}. {sample.question}"),
        tag(
            "p",
            f"{sample.task} · {sample.video.name}, {sample.window[0]:.1f}–{sample.window[1]:.1f} s"
            f" · {shown.kind}",
            class_="soft",
        ),
        (
            None
            if shown.agrees
            else tag(
                "p",
                "Answered otherwise here than in predictions.jsonl: the run's weights, data or host"
                " have changed since.",
                class_="warn",
            )
        ),
        table(_answers(number, shown), bold=[sample.answer]),
        _strip(
            "What was seen, by time step",
            [_seen(number, step, None, 0.0, "") for step in shown.steps],
            shown,
        ),
    ]
    for layer, grid in shown.strength.items():
        mean = float(grid.mean())
        most = float(grid.max())
        n, largest = shown.elsewhere[layer]
        where = f" and on {n} other tokens, up to {largest:.3g}" if n else ""
        text = (
            f"Residual at layer {layer}: mean ‖Δh‖/‖h‖ {mean:.3g}, largest {most:.3g}{where} (full"
            f" color: {top:.3g})"
        )
        parts.append(
            _strip(
                text,
                [
                    _seen(number, step, grid[step.index], top, f"layer {layer}")
                    for step in shown.steps
                ],
                shown,
            )
        )
        due = shown.due[layer]
        text = (
            f"its distance from what an empty signal gives: mean {float(due.mean()):.3g}, largest"
            f" {float(due.max()):.3g}"
        )
        parts.append(
            _strip(
                text,
                [
                    _seen(number, step, due[step.index], top, f"layer {layer}, due to the signal")
                    for step in shown.steps
                ],
                shown,
            )
        )
    return tag("section", *parts, class_="sample", aria_label=f"Sample {number}")


def _answers(number: int, shown: Shown) -> Table:
    conditions = list(shown.answers)
    probabilities = {c: _softmax(answer.logits) for c, answer in shown.answers.items()}
    rows = []
    for i, option in enumerate(shown.sample.options):
        cells = []
        for c in conditions:
            chosen = " ◀" if shown.answers[c].prediction == i else ""
            cells.append(
                (f"{100 * probabilities[c][i]:.1f} %" if i < len(probabilities[c]) else NONE)
                + chosen
            )
        rows.append((option, "right answer" if i == shown.sample.answer else "", *cells))
    columns = ("Option", "", *(CONDITIONS.get(c, c) for c in conditions))
    return Table(
        f"sample-{number}",
        "Probability of each option; ◀ marks the answer given",
        columns,
        tuple(rows),
        text_columns=2,
    )


def _softmax(logits: tuple[float, ...]) -> list[float]:
    powers = [math.exp(v - max(logits)) for v in logits]
    return [p / sum(powers) for p in powers]


def _strip(text: str, pictures: list[Html], shown: Shown) -> Html:
    left_out = shown.n_steps - len(shown.steps)
    note = f" ({left_out} of {shown.n_steps} steps are left out)" if left_out else ""
    return tag("div", tag("p", text + note), tag("div", *pictures, class_="steps"), class_="strip")


def _seen(
    number: int, step: Step, strength: NDArray[np.float32] | None, top: float, what: str
) -> Html:
    """One step's frame with the signal's marks; with ``strength``, (row, col), also a tile on every
    token, over a dimmed frame.
    """
    width, height = step.size
    start, end = step.span
    name = f"frame-{number}-{step.index}"
    uri = "data:image/jpeg;base64," + base64.b64encode(step.jpeg).decode()
    parts = (
        [tag("use", href=f"#{name}")]
        if strength is not None
        else [tag("image", href=uri, id=name, width=width, height=height)]
    )  # once, then referred to
    where = (
        "; ".join(
            f"{mark.text} at {100 * mark.x:.0f} % from the left, {100 * mark.y:.0f} % from the top"
            for mark in step.marks
        )
        or "no signal"
    )
    alt = f"Frame of step {step.index}: {where}"
    caption = f"step {step.index}, {start:.2f}–{end:.2f} s"
    if strength is not None:
        parts += _tiles(strength, top, width, height)
        row, col = np.unravel_index(int(strength.argmax()), strength.shape)
        alt = (
            f"{what}, step {step.index}: largest {float(strength.max()):.3g} in row {row + 1} of"
            f" {strength.shape[0]}, column {col + 1} of {strength.shape[1]}; {where}"
        )
        caption = f"step {step.index}: up to {float(strength.max()):.3g}"
    elif not step.marks:
        caption += ", no signal"
    radius = max(width, height) / 24
    points = [(f"{mark.x * width:.1f}", f"{mark.y * height:.1f}") for mark in step.marks]
    for x, y in points:  # a light ring around a dark one can be seen on any frame
        parts += [
            tag("circle", cx=x, cy=y, r=f"{radius:.1f}", fill="none", stroke=color, stroke_width=w)
            for color, w in (("#000", radius / 2.5), ("#ffe000", radius / 5))
        ]
    picture = tag(
        "svg", *parts, viewBox=f"0 0 {width} {height}", width=168, role="img", aria_label=alt
    )
    return tag("figure", picture, tag("figcaption", caption))


def _tiles(strength: NDArray[np.float32], top: float, width: int, height: int) -> list[Html]:
    rows, cols = strength.shape
    tiles = [tag("rect", width=width, height=height, fill="#000", fill_opacity=0.55)]
    for r in range(rows):
        for c in range(cols):
            share = float(strength[r, c]) / top if top > 0 else 0.0
            if share > 0.004:
                place = {
                    "x": f"{c * width / cols:.1f}",
                    "y": f"{r * height / rows:.1f}",
                    "width": f"{width / cols:.1f}",
                    "height": f"{height / rows:.1f}",
                }
                tiles.append(
                    tag("rect", **place, fill="#ff6a00", fill_opacity=f"{0.9 * share:.3f}")
                )
    return tiles

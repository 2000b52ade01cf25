"""The gallery as HTML: frames with the signal's marks, answers, and residuals on visual tokens."""

import base64
import math
from collections.abc import Callable
from functools import partial

import numpy as np
from numpy.typing import NDArray

from modulate.interfaces.sample import SampleClip
from modulate.report.gallery import Gallery, GalleryClip, GallerySample, OtherTokens, StepPicture
from modulate.report.html import Html, table, tag
from modulate.report.table import NONE, Table

CONDITION_LABELS = {
    "signal": "with the signal",
    "none": "no residual (LoRA on)",
    "blank": "empty signal",
    "host": "bare host",
}

SHOWN_WIDTH = 168
"""Width of a picture on the page, pixels."""

READING = (
    "Rings mark the signal during each time step. The first row of tiles per injected layer shows"
    " ‖Δh‖/‖h‖ of each visual token: the norm of the residual relative to that of the hidden state"
    " it is added to. The second row shows ‖Δh − Δh(blank)‖/‖h‖: the distance from the residual of"
    " an empty signal, which may exceed the residual's own norm. All tiles of a sample share one"
    " color scale, whose maximum is given."
)


def gallery_section(gallery: Gallery) -> list[Html]:
    """Return the gallery's section: how samples were chosen, then one card per sample."""
    counts = "; ".join(f"{kind}: {n}" for kind, n in gallery.kinds.items())
    choice = (
        f"Samples of {gallery.run_name}, answered again for this page. “Without” means the"
        f" condition {gallery.without}. Samples of each kind: {counts}. The gallery draws from the"
        " kinds in turn, so it over-represents rare ones; see the tables above for their shares."
    )
    return [
        tag("p", choice, class_="soft"),
        tag("p", READING, class_="soft"),
        *(_card(number, shown) for number, shown in enumerate(gallery.samples, 1)),
    ]


def _card(number: int, shown: GallerySample) -> Html:
    sample = shown.sample
    origin = " · ".join([sample.task, *map(_origin, sample.clips), shown.kind])
    parts: list[Html | None] = [
        tag("h4", f"{number}. {sample.question}"),
        tag("p", origin, class_="soft"),
    ]
    if not shown.reproduced:
        warning = (
            "This answer differs from predictions.jsonl: the run's weights, data or host have"
            " changed since."
        )
        parts.append(tag("p", warning, class_="warn"))
    if any(answer.is_free_text for answer in shown.answers.values()):
        parts.append(table(_texts(number, shown)))
    else:
        parts.append(
            table(_answers(number, shown), bold=[] if sample.answer is None else [sample.answer])
        )
    # One scale for all tiles of the sample, so that clips, layers and steps can be compared.
    grids = [
        grid
        for clip in shown.clips
        for grid in (*clip.strength.values(), *clip.signal_effect.values())
    ]
    top = max((float(grid.max()) for grid in grids), default=0.0)
    for place, clip in enumerate(shown.clips):
        frame_ids = f"frame-{number}" + (f"-clip{place + 1}" if place else "")
        of_clip = f" of {sample.clips[place].file.name}" if len(shown.clips) > 1 else ""
        parts.append(_strip(f"Frames{of_clip} by time step", clip, partial(_frame, frame_ids)))
        for layer in clip.strength:
            parts += _layer_strips(frame_ids, clip, layer, shown.other_tokens[layer], top)
    return tag("section", *parts, class_="sample", aria_label=f"Sample {number}")


def _origin(clip: SampleClip) -> str:
    if clip.is_image:
        return clip.file.name
    start, end = clip.window
    return f"{clip.file.name}, {start:.1f}–{end:.1f} s"


def _answers(number: int, shown: GallerySample) -> Table:
    answers = shown.answers.values()
    probabilities = [_softmax(answer.logits) for answer in answers]
    rows = []
    for i, option in enumerate(shown.sample.options):
        cells = []
        for answer, shares in zip(answers, probabilities, strict=True):
            # A prompt may offer fewer options than the question has.
            share = f"{100 * shares[i]:.1f} %" if i < len(shares) else NONE
            cells.append(f"{share} ◀" if answer.prediction == i else share)
        rows.append((option, "correct answer" if i == shown.sample.answer else "", *cells))
    columns = ("Option", "", *(CONDITION_LABELS.get(name, name) for name in shown.answers))
    return Table(
        f"sample-{number}",
        "Probability of each option; ◀ marks the chosen one",
        columns,
        tuple(rows),
        text_columns=2,
    )


def _texts(number: int, shown: GallerySample) -> Table:
    rows = [
        (
            CONDITION_LABELS.get(name, name),
            answer.text or "",
            "exact" if answer.correct else "",
            f"{100 * answer.score('token_f1'):.0f} %",
        )
        for name, answer in shown.answers.items()
    ]
    accepted = next(iter(shown.answers.values())).answers
    return Table(
        f"sample-{number}",
        f"Generated answers; accepted: {'; '.join(accepted)}",
        ("Condition", "answer", "", "token F1"),
        tuple(rows),
        text_columns=3,
    )


def _softmax(logits: tuple[float, ...]) -> list[float]:
    powers = [math.exp(logit - max(logits)) for logit in logits]
    return [power / sum(powers) for power in powers]


def _layer_strips(
    frame_ids: str, clip: GalleryClip, layer: int, others: OtherTokens, top: float
) -> list[Html]:
    strength = clip.strength[layer]
    effect = clip.signal_effect[layer]
    on_others = f"; {others.count} other tokens, up to {others.largest:.3g}" if others.count else ""
    strength_text = (
        f"Residual at layer {layer}: mean ‖Δh‖/‖h‖ {float(strength.mean()):.3g}, maximum"
        f" {float(strength.max()):.3g}{on_others} (full color: {top:.3g})"
    )
    effect_text = (
        f"Distance from the residual of an empty signal: mean {float(effect.mean()):.3g}, maximum"
        f" {float(effect.max()):.3g}"
    )

    def tiles(grid: NDArray[np.float32], what: str) -> Callable[[StepPicture], Html]:
        return lambda step: _tiled_frame(frame_ids, step, grid[step.index], top, what)

    return [
        _strip(strength_text, clip, tiles(strength, f"layer {layer}")),
        _strip(effect_text, clip, tiles(effect, f"layer {layer}, effect of the signal")),
    ]


def _strip(text: str, clip: GalleryClip, draw: Callable[[StepPicture], Html]) -> Html:
    """Return a row of pictures, one for each step that is shown."""
    left_out = clip.n_steps - len(clip.steps)
    if left_out:
        text += f" ({left_out} of {clip.n_steps} steps are not shown)"
    pictures = tag("div", *map(draw, clip.steps), class_="steps")
    return tag("div", tag("p", text), pictures, class_="strip")


# --- pictures of one step


def _frame(frame_ids: str, step: StepPicture) -> Html:
    """Return the frame of a step with the signal's marks."""
    width, height = step.size
    uri = "data:image/jpeg;base64," + base64.b64encode(step.jpeg).decode()
    image = tag("image", href=uri, id=_frame_id(frame_ids, step), width=width, height=height)
    alt = f"Frame of step {step.index}: {_marks_text(step)}"
    start, end = step.span
    caption = f"step {step.index}, {start:.2f}–{end:.2f} s"
    if not step.marks:
        caption += ", no signal"
    return _picture(step, [image], alt, caption)


def _tiled_frame(
    frame_ids: str, step: StepPicture, values: NDArray[np.float32], top: float, what: str
) -> Html:
    """Return the dimmed frame of a step with a tile on every visual token.

    ``values``: (row, col); ``top``: the value of full color.
    """
    # The frame is embedded once and referred to here, which keeps the page small.
    frame = tag("use", href=f"#{_frame_id(frame_ids, step)}")
    rows, cols = values.shape
    row, col = np.unravel_index(int(values.argmax()), values.shape)
    largest = float(values.max())
    alt = (
        f"{what}, step {step.index}: maximum {largest:.3g} in row {row + 1} of {rows}, column"
        f" {col + 1} of {cols}; {_marks_text(step)}"
    )
    caption = f"step {step.index}: up to {largest:.3g}"
    return _picture(step, [frame, *_tiles(values, top, step.size)], alt, caption)


def _frame_id(frame_ids: str, step: StepPicture) -> str:
    return f"{frame_ids}-{step.index}"


def _marks_text(step: StepPicture) -> str:
    marks = [
        f"{mark.text} at {100 * mark.x:.0f} % from the left, {100 * mark.y:.0f} % from the top"
        for mark in step.marks
    ]
    return "; ".join(marks) or "no signal"


def _picture(step: StepPicture, parts: list[Html], alt: str, caption: str) -> Html:
    width, height = step.size
    radius = max(width, height) / 24
    rings = []
    for mark in step.marks:
        # A light ring on a dark one is visible on any frame.
        for color, stroke in (("#000", radius / 2.5), ("#ffe000", radius / 5)):
            rings.append(
                tag(
                    "circle",
                    cx=f"{mark.x * width:.1f}",
                    cy=f"{mark.y * height:.1f}",
                    r=f"{radius:.1f}",
                    fill="none",
                    stroke=color,
                    stroke_width=stroke,
                )
            )
    picture = tag(
        "svg",
        *parts,
        *rings,
        viewBox=f"0 0 {width} {height}",
        width=SHOWN_WIDTH,
        role="img",
        aria_label=alt,
    )
    return tag("figure", picture, tag("figcaption", caption))


def _tiles(values: NDArray[np.float32], top: float, size: tuple[int, int]) -> list[Html]:
    width, height = size
    rows, cols = values.shape
    tiles = [tag("rect", width=width, height=height, fill="#000", fill_opacity=0.55)]
    for row in range(rows):
        for col in range(cols):
            share = float(values[row, col]) / top if top > 0 else 0.0
            # Fainter tiles are invisible and would only make the page larger.
            if share <= 0.004:
                continue
            tiles.append(
                tag(
                    "rect",
                    x=f"{col * width / cols:.1f}",
                    y=f"{row * height / rows:.1f}",
                    width=f"{width / cols:.1f}",
                    height=f"{height / rows:.1f}",
                    fill="#ff6a00",
                    fill_opacity=f"{0.9 * share:.3f}",
                )
            )
    return tiles

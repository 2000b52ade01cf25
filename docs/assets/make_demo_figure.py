"""Draw the README's figure from a finished run: ``python docs/assets/make_demo_figure.py RUN OUT``.

The modulation is attached to its host again and answers one test question with gaze, without gaze
and with another clip's gaze. Nothing in the picture is written by hand but its labels.
"""

import argparse
import base64
import math
from html import escape
from pathlib import Path

from modulate.evaluation.predictions import Prediction
from modulate.inference.pipeline import Pipeline
from modulate.report.gallery import CORRECT_WITH, GallerySample, StepPicture, build_gallery
from modulate.report.runs import read_run

SIDE = 190
"""Width and height of a frame, pixels of the figure."""

GAP = 14
MARGIN = 24
WIDTH = 2 * MARGIN + 4 * SIDE + 3 * GAP
FRAMES_TOP = 62
ANSWERS_TOP = FRAMES_TOP + SIDE + 62
ROW = 26
BAR = 170
"""Length of a bar at 100 %."""

COLUMNS = {"signal": "with gaze", "none": "without gaze"}
BLUE, ORANGE, TEXT, SOFT, PAPER = "#2563eb", "#b45309", "#1f2328", "#59636e", "#ffffff"


def text(x: float, y: float, content: str, size: int = 14, **attributes: str) -> str:
    """Return an SVG text element."""
    extra = "".join(f' {name.replace("_", "-")}="{value}"' for name, value in attributes.items())
    return f'<text x="{x:g}" y="{y:g}" font-size="{size}"{extra}>{escape(content)}</text>'


def frame(step: StepPicture, left: float) -> list[str]:
    """Return one time step's frame with a ring at each fixation, and its caption."""
    width, height = step.size
    scale = SIDE / max(width, height)
    uri = "data:image/jpeg;base64," + base64.b64encode(step.jpeg).decode()
    parts = [
        f'<image href="{uri}" x="{left}" y="{FRAMES_TOP}" width="{width * scale:g}"'
        f' height="{height * scale:g}"/>'
    ]
    for mark in step.marks:
        x = left + mark.x * width * scale
        y = FRAMES_TOP + mark.y * height * scale
        for color, stroke in (("#000", 6), ("#ffe000", 3)):
            parts.append(
                f'<circle cx="{x:.1f}" cy="{y:.1f}" r="13" fill="none" stroke="{color}"'
                f' stroke-width="{stroke}"/>'
            )
    start, end = step.span
    caption = f"{start:.1f}–{end:.1f} s"
    parts.append(text(left, FRAMES_TOP + SIDE + 18, caption, 12, fill=SOFT))
    return parts


def probabilities(answer: Prediction) -> list[float]:
    """Return the softmax of an answer's logits, one number per option."""
    powers = [math.exp(logit - max(answer.logits)) for logit in answer.logits]
    return [power / sum(powers) for power in powers]


def answers(shown: GallerySample) -> list[str]:
    """Return the options with a bar per condition; the correct option is bold."""
    parts = []
    first = MARGIN + 150
    for column, (condition, label) in enumerate(COLUMNS.items()):
        left = first + column * (BAR + 130)
        parts.append(text(left, ANSWERS_TOP, label, 13, fill=SOFT))
        for row, share in enumerate(probabilities(shown.answers[condition])):
            y = ANSWERS_TOP + 12 + row * ROW
            color = BLUE if row == shown.sample.answer else ORANGE
            length = max(1.0, BAR * share)
            parts.append(
                f'<rect x="{left}" y="{y}" width="{length:.1f}" height="16" fill="{color}"/>'
            )
            parts.append(text(left + length + 6, y + 13, f"{100 * share:.1f} %", 13))
    for row, option in enumerate(shown.sample.options):
        correct = row == shown.sample.answer
        label = f"{option} ✓" if correct else option
        weight = "600" if correct else "400"
        parts.append(text(MARGIN, ANSWERS_TOP + 25 + row * ROW, label, 14, font_weight=weight))
    return parts


def figure(shown: GallerySample) -> str:
    """Return the whole figure as SVG."""
    height = ANSWERS_TOP + 12 + len(shown.sample.options) * ROW + MARGIN
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}"'
        f' height="{height}" font-family="system-ui, sans-serif" fill="{TEXT}">',
        f'<rect width="{WIDTH}" height="{height}" rx="8" fill="{PAPER}"/>',
        text(MARGIN, 36, shown.sample.question, 18, font_weight="600"),
    ]
    for column, step in enumerate(shown.clips[0].steps[:4]):
        parts += frame(step, MARGIN + column * (SIDE + GAP))
    return "\n".join([*parts, *answers(shown), "</svg>"]) + "\n"


def main() -> None:
    """Answer samples of a run again and draw the first that is correct only with gaze."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="a run's folder, such as runs/gazeqwen_tiny")
    parser.add_argument("out", type=Path, help="the SVG to write")
    parser.add_argument("--cache", type=Path, default=Path("data/cache"))
    options = parser.parse_args()
    evaluated = read_run(options.run)
    gallery = build_gallery(evaluated, Pipeline(evaluated.recipe, options.cache), 1, most_steps=4)
    chosen = next(shown for shown in gallery.samples if shown.kind == CORRECT_WITH)
    if not chosen.reproduced:
        raise SystemExit("The answers differ from predictions.jsonl: evaluate the run again.")
    options.out.write_text(figure(chosen), encoding="utf-8")


if __name__ == "__main__":
    main()

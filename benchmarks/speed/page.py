"""Write docs/benchmarks.md from docs/benchmarks.json and the texts of this package."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.speed.curves import svg

ROOT = Path(__file__).parents[2]
DATA = ROOT / "docs/benchmarks.json"
PAGE = ROOT / "docs/benchmarks.md"
PLOTS = ROOT / "docs/benchmarks"

# {row: (description, required relation of ratio and bar, bar)}
BARS: dict[str, tuple[str, str, float]] = {
    "bare": ("control: the bare host's forward over another bare host's", "=", 1.0),
    "attached": ("attached, not conditioned: forward over the bare host's", "≤", 1.01),
    "conditioned": ("conditioned forward over the bare host's, features given", "≤", 1.05),
    "gpu conditioned": ("the same at 7B shapes, bfloat16, on a GPU", "≤", 1.02),
    "generate": ("conditioned generate, 64 tokens, over the bare host's", "≤", 1.02),
    "epoch_2": ("training, second epoch: samples a second over the released way's", "≥", 10.0),
    "epoch_1": ("training, first epoch: samples a second over the released way's", "≥", 3.0),
    "lora forward": ("our LoRA (rank 8, q and v): forward over PEFT's", "≤", 1.0),
    "lora generate": ("our LoRA: generate, 64 tokens, over PEFT's", "≤", 1.0),
    "lora step": ("our LoRA: forward and backward over PEFT's", "≤", 1.0),
    "step": (
        "stage-1 step over its floor: host forward, backward above the first injected layer",
        "≤",
        1.15,
    ),
    "memory": (
        "peak memory above the loaded weights, stage-1 step over the released way's",
        "≤",
        0.5,
    ),
    "resampler": (
        "resampler for one clip: one call for each layer and step over all at once",
        "≥",
        5.0,
    ),
    "start --help": ("seconds until `modulate --help` has printed", "<", 0.5),
    "start ls": ("seconds until `modulate ls` has printed", "<", 0.5),
    "start plugins": ("seconds until `modulate plugins` has printed", "<", 0.5),
}

# {row: setting}; the ratio is the time without the setting over the time with it.
SAVED: dict[str, str] = {
    "scoring tower": "scoring, `features.vision_tower_cache_gib`, `vision_tower_cache_by: clip`",
    "scoring states": "scoring, `features.hidden_state_cache_gib`",
    "scoring together": "scoring, `evaluation.batch_by: clip`",
    "scoring together, tower": "scoring, `batch_by: clip` and `vision_tower_cache_gib`",
    "scoring together, states": "scoring, `batch_by: clip` and `hidden_state_cache_gib`",
    "later tower": "a later stage-1 step, `training.batch_by: clip` and `vision_tower_cache_gib`",
    "later states": "a later stage-1 step, `training.batch_by: clip` and `hidden_state_cache_gib`",
}


def load() -> dict[str, Any]:
    """Return the recorded figures."""
    return (
        json.loads(DATA.read_text()) if DATA.is_file() else {"rows": {}, "curves": {}, "runs": {}}
    )


def write(figures: Mapping[str, Any], discussion: str) -> None:
    """Write figures, plots and page; ``discussion`` is the text below the tables."""
    DATA.write_text(json.dumps(figures, indent=1, ensure_ascii=False) + "\n")
    PLOTS.mkdir(exist_ok=True)
    curves = figures["curves"].get("found", {})
    for name, curve in curves.items():
        (PLOTS / f"{slug(name)}.svg").write_text(svg(name, curve["points"]))
    PAGE.write_text(
        "\n".join(
            [
                HEAD,
                *table(figures["rows"]),
                "",
                *machines(figures),
                "",
                *saved(figures["rows"]),
                *_curves(curves),
                discussion,
            ]
        ).rstrip()
        + "\n"
    )


def slug(name: str) -> str:
    """Return ``name`` as a file name."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def verdict(row: Mapping[str, Any], sign: str, bar: float) -> str:
    """Return "met", "not met" or "open", depending on the side of the interval.

    An equality is met if the bar lies within the interval.
    """
    if sign == "=":
        return "met" if row["low"] <= bar <= row["high"] else "not met"
    good = [
        value >= bar if sign == "≥" else value <= bar if sign == "≤" else value < bar
        for value in (row["low"], row["high"])
    ]
    return "met" if all(good) else "not met" if not any(good) else "open"


def table(rows: Mapping[str, Any]) -> list[str]:
    """Return the lines of the main table."""
    lines = [
        "| what | bar | median | 95 % interval | pairs | | seconds | run |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, (text, sign, bar) in BARS.items():
        row = rows.get(name)
        if row is None:
            lines.append(f"| {text} | {sign} {bar:g} | not measured | | | | | |")
            continue
        text += f" ({row['note']})" if row.get("note") else ""
        seconds = " / ".join(f"{each:.3g}" for each in row["seconds"]) if row.get("seconds") else ""
        interval = f"{row['low']:.3f}–{row['high']:.3f}"
        lines.append(
            f"| {text} | {sign} {bar:g} | {row['median']:.3f} | {interval} | {row['pairs']} |"
            f" {verdict(row, sign, bar)} | {seconds} | {row['run']} |"
        )
    return lines


def saved(rows: Mapping[str, Any]) -> list[str]:
    """Return the section on caches and shared passes, which has no bars; empty if not measured."""
    lines = [
        "| with | times as fast | 95 % interval | pairs | seconds without / with | run |",
        "|---|---|---|---|---|---|",
    ]
    for name, row in ((name, rows[name]) for name in SAVED if name in rows):
        seconds = " / ".join(f"{each:.3g}" for each in row["seconds"])
        lines.append(
            f"| {SAVED[name]} | {row['median']:.2f} | {row['low']:.2f}–{row['high']:.2f} |"
            f" {row['pairs']} | {seconds} | {row['run']} |"
        )
    return (
        [
            "## Caches of the host's work, and passes shared by questions",
            "",
            SAVED_TEXT,
            "",
            *lines,
            "",
        ]
        if len(lines) > 2
        else []
    )


def machines(figures: Mapping[str, Any]) -> list[str]:
    """Return one line for each run that contributes rows."""
    used = {row["run"] for row in figures["rows"].values()} | {figures["curves"].get("run")}
    lines = []
    for number, machine in sorted(figures.get("runs", {}).items(), key=lambda item: int(item[0])):
        if number in used:
            gpu = f", {machine['gpu']}" if machine["gpu"] else ""
            lines.append(
                f"- Run {number}, {machine['date']}: {machine['cpu']}{gpu};"
                f" {machine['threads']} thread; load before it {machine['load']};"
                f" Python {machine['python']}, torch {machine['torch']},"
                f" transformers {machine['transformers']}, PyAV {machine['av']}."
            )
    return lines


def _curves(curves: Mapping[str, Any]) -> list[str]:
    lines = ["## Growth of the cost of conditioning", "", CURVES, ""]
    lines += ["| over | from | to | exponent of the last step |", "|---|---|---|---|"]
    for name, curve in curves.items():
        first_x, first_seconds = curve["points"][0]
        last_x, last_seconds = curve["points"][-1]
        lines.append(
            f"| {name} | {first_x:,}: {1000 * first_seconds:.3g} ms |"
            f" {last_x:,}: {1000 * last_seconds:.3g} ms |"
            f" {curve['exponent']:.2f} |"
        )
    return [*lines, "", *(f"![{name}](benchmarks/{slug(name)}.svg)" for name in curves), ""]


SAVED_TEXT = (
    "Scoring: four questions on one clip, prepared, in one batch, under three conditions (`signal`,"
    " `none`, `blank`); caches are empty at the start of each, so that the first condition fills"
    " them. A later step: the four questions in one pass, forward, backward and AdamW, with the"
    " clip in the caches."
)

CURVES = (
    "Seconds of the processor for the latents of the bench's clips and the residuals of all"
    " injected layers, without the host. An exponent of 1 is linear growth."
)

HEAD = """# Benchmarks

Written by `make bench` (`python -m benchmarks.speed`); the figures are also in
[benchmarks.json](benchmarks.json). A run refreshes the rows that the machine can measure and leaves
the others unchanged.

The bench host is a Qwen2.5-VL of 12 layers and width 512 with random weights. A clip has 16 frames
and 1,872 visual tokens. Layers 2, 5, 8 and 10 are injected, as deep as the paper's; no LoRA;
float32; one thread. "The released way" is [benchmarks/naive.py](../benchmarks/naive.py): GazeQwen's
own procedure, rewritten for the same host, files and decoder. It is slow exactly where the released
code is slow, and a test compares its losses and gradients with ours.

Every figure is a ratio of two calls that take turns in one run: the median over the pairs with its
bootstrap interval. Seconds are processor time: with one thread they equal the wall time on an idle
machine, and do not depend on other processes. "met": the whole interval is on the right side of the
bar; "not met": on the wrong side; "open": the bar lies within the interval.
"""

"""Prompts written token by token: the suite knows every visual token without reading ids."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn

from modulate import visual_grid
from modulate.interfaces.visual_grid import VisualGrid

PAD = 0
BOS = 1
START = 3
END = 4
VIDEO = 5
IMAGE = 6
BOTH = {"image": IMAGE, "video": VIDEO}
ONE = {"image": IMAGE, "video": IMAGE}
"""Placeholders of families with an id for each kind of clip, and of families with one id."""


@dataclass(frozen=True)
class Slot:
    """One token of a prompt.

    ``kind``: its type (0 text, 1 image, 2 video). ``place``: the visual token of its clip's grid
    that it stands for; −1: none.
    """

    id: int
    kind: int = 0
    place: int = -1


def text(*ids: int) -> list[Slot]:
    return [Slot(token) for token in ids]


@dataclass(frozen=True, eq=False)
class Family:
    """One family of hosts, and how its prompts are written.

    ``clip(kind)``: the tokens of one clip. ``vision(rows)``: the vision inputs of a batch, from the
    clips of each row. ``types``: the name of the argument for token types.
    """

    name: str
    build: Callable[[], nn.Module]
    clip: Callable[[str], list[Slot]]
    vision: Callable[[Any], dict[str, Tensor]]
    grids: dict[str, VisualGrid]
    types: str | None = None


Clips = Sequence[Sequence[tuple[str, int]]]
"""The clips of every row of a batch: kind and number."""


@dataclass
class Batch:
    """Model inputs, and the positions of each clip's grid tokens, by row, in the padded row."""

    inputs: dict[str, Tensor]
    positions: list[list[list[int]]]
    kinds: list[list[str]]

    @property
    def mask(self) -> Tensor:
        """Mask of the grids' tokens, (row, position) bool."""
        mask = torch.zeros(self.inputs["input_ids"].shape, dtype=torch.bool)
        for row, clips in enumerate(self.positions):
            for places in clips:
                mask[row, places] = True
        return mask


def write(
    family: Family, rows: Sequence[Sequence[Any]], side: str = "left", first: int = 0
) -> Batch:
    """Write a batch: each row is a list of "video", "image" or tuples of text ids.

    Shorter rows are padded on ``side``. The pixels of a clip are its own noise, numbered from
    ``first``, so that a row alone can have the pixels that it has in a batch.
    """
    numbers = count(first)
    written = [_write_row(family, row) for row in rows]
    width = max(len(slots) for slots, _ in written)
    gaps = [width - len(slots) if side == "left" else 0 for slots, _ in written]

    def column(read: Callable[[Slot], int]) -> Tensor:
        padded = torch.zeros(len(written), width, dtype=torch.long)
        for row, ((slots, _), gap) in enumerate(zip(written, gaps, strict=True)):
            padded[row, gap : gap + len(slots)] = torch.tensor([read(slot) for slot in slots])
        return padded

    inputs = {"input_ids": column(lambda slot: slot.id), "attention_mask": column(lambda slot: 1)}
    if family.types:
        inputs[family.types] = column(lambda slot: slot.kind)
    kinds = [[part for part in row if isinstance(part, str)] for row in rows]
    inputs |= family.vision([[(kind, next(numbers)) for kind in row] for row in kinds])
    positions = [
        [[position + gap for position in clip] for clip in clips]
        for (_, clips), gap in zip(written, gaps, strict=True)
    ]
    return Batch(inputs, positions, kinds)


def _write_row(family: Family, row: Sequence[Any]) -> tuple[list[Slot], list[list[int]]]:
    """Return a row's tokens, and for each clip the positions of its grid's tokens in order."""
    slots = text(BOS)
    clips = []
    for part in row:
        if not isinstance(part, str):
            slots += text(*part)
            continue
        clip = family.clip(part)
        placed = [(slot.place, len(slots) + offset) for offset, slot in enumerate(clip)]
        clips.append([position for place, position in sorted(placed) if place >= 0])
        slots += clip
    return slots, clips


def noise(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# --- clips in prompts


def in_one_run(
    grids: dict[str, VisualGrid], ids: dict[str, int], kind: str, tail: int = 0
) -> list[Slot]:
    """Return a clip's tokens between two markers; ``tail`` placeholders more have no place."""
    code = 1 if kind == "image" else 2
    places = [*range(grids[kind].tokens), *[-1] * tail]
    return [Slot(START), *[Slot(ids[kind], code, place) for place in places], Slot(END)]


def frame_by_frame(
    grids: dict[str, VisualGrid], ids: dict[str, int], kind: str, code: dict[str, int] | None = None
) -> list[Slot]:
    """Return each step between its own markers, in a video after a text token (its time)."""
    grid = grids[kind]
    slots = []
    kinds = code or {"image": 1, "video": 2}
    for step in range(grid.steps):
        first = step * grid.tokens_per_step
        if kind == "video":
            slots.append(Slot(20 + step))
        places = range(first, first + grid.tokens_per_step)
        slots += [Slot(START), *(Slot(ids[kind], kinds[kind], place) for place in places)]
        slots.append(Slot(END))
    return slots


TIMES = [0.0, 1.0, 2.0, 3.0]


def grids(frames_per_step: int, rows: int, cols: int, steps: int = 2) -> dict[str, VisualGrid]:
    video = visual_grid(TIMES[: steps * frames_per_step], frames_per_step, rows, cols, (0.0, 4.0))
    return {"video": video, "image": visual_grid([0.0], 1, rows, cols, (0.0, 4.0))}


# --- vision inputs


def patches(
    grids: dict[str, VisualGrid],
    merge: int,
    pixels: int,
    rows: Clips,
    times: bool = False,
    sizes: bool = False,
) -> dict[str, Tensor]:
    """Return vision inputs as Qwen's: flat patches, and (time, height, width) of every clip.

    Images and videos are separate inputs.
    """
    inputs: dict[str, Tensor] = {}
    for kind, name, prefix in (
        ("image", "pixel_values", "image"),
        ("video", "pixel_values_videos", "video"),
    ):
        seeds = [seed for row in rows for clip_kind, seed in row if clip_kind == kind]
        if not seeds:
            continue
        grid = grids[kind]
        inputs[name] = torch.cat(
            [noise(grid.tokens * merge**2, pixels, seed=seed) for seed in seeds]
        )
        inputs[f"{prefix}_grid_thw"] = torch.tensor(
            [[grid.steps, grid.rows * merge, grid.cols * merge]] * len(seeds)
        )
        if sizes:
            inputs[f"{prefix}_merge_sizes"] = torch.full((len(seeds),), merge)
        if times and kind == "video":
            inputs["second_per_grid_ts"] = torch.ones(len(seeds))
    return inputs


def pictures(grids: dict[str, VisualGrid], size: int, rows: Clips) -> dict[str, Tensor]:
    """Return each step of each clip as a picture: (picture, channel, height, width)."""
    clips = [
        noise(grids[kind].steps, 3, size, size, seed=seed) for row in rows for kind, seed in row
    ]
    return {"pixel_values": torch.cat(clips)} if clips else {}


def pictures_by_row(grids: dict[str, VisualGrid], size: int, rows: Clips) -> dict[str, Tensor]:
    """Return the pictures by row: (row, picture, channel, height, width).

    Rows with fewer pictures are filled up with zeros, which these hosts drop again.
    """
    by_row = [
        [noise(grids[kind].steps, 3, size, size, seed=seed) for kind, seed in row] for row in rows
    ]
    most = max(sum(map(len, clips)) for clips in by_row)
    if not most:
        return {}
    filled = [
        torch.cat([*clips, torch.zeros(most - sum(map(len, clips)), 3, size, size)])
        for clips in by_row
    ]
    return {"pixel_values": torch.stack(filled)}

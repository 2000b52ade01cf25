"""Prompts whose visual tokens are known because they were written down: every token with what it
stands for, padded and put together in batches.
"""

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
"""Placeholders of families with an id for each kind of clip, and of those that know images only."""


@dataclass(frozen=True)
class Slot:
    """One token of a prompt: its id, its type (0 text, 1 image, 2 video) and the visual token of
    its clip's grid that it stands for (−1: none).
    """

    id: int
    kind: int = 0
    place: int = -1


def text(*ids: int) -> list[Slot]:
    return [Slot(i) for i in ids]


@dataclass(frozen=True, eq=False)
class Family:
    """One row of the suite.

    ``clip(kind)`` are the tokens of one clip; ``vision(rows)`` the vision inputs of a batch, made
    of the clips of each row; ``types`` is the name under which the model takes token types.
    """

    name: str
    build: Callable[[], nn.Module]
    clip: Callable[[str], list[Slot]]
    vision: Callable[[Any], dict[str, Tensor]]
    grids: dict[str, VisualGrid]
    types: str | None = None


Clips = Sequence[Sequence[tuple[str, int]]]
"""Of every row of a batch its clips: kind and number."""


@dataclass
class Batch:
    """Model inputs, and for every row and clip the positions (in the padded row) of its grid's
    tokens.
    """

    inputs: dict[str, Tensor]
    positions: list[list[list[int]]]
    kinds: list[list[str]]

    @property
    def mask(self) -> Tensor:
        """(row, position) bool: the grids' tokens."""
        mask = torch.zeros(self.inputs["input_ids"].shape, dtype=torch.bool)
        for row, clips in enumerate(self.positions):
            for places in clips:
                mask[row, places] = True
        return mask


def write(
    family: Family, rows: Sequence[Sequence[Any]], side: str = "left", first: int = 0
) -> Batch:
    """Write prompts: each row is a list of "video", "image" or tuples of text ids; shorter rows are
    padded on ``side``.

    The pixels of a clip are noise of its own, numbered from ``first``: a row alone has the pixels
    that it has in a batch.
    """
    numbers = count(first)
    written: list[list[Slot]] = []
    positions = []
    kinds = []
    for row in rows:
        slots = text(BOS)
        clips = []
        for part in row:
            if isinstance(part, str):
                clip = family.clip(part)
                clips.append(
                    [
                        len(slots) + i
                        for i, s in sorted(enumerate(clip), key=lambda pair: pair[1].place)
                        if s.place >= 0
                    ]
                )
                slots += clip
            else:
                slots += text(*part)
        written.append(slots)
        positions.append(clips)
        kinds.append([part for part in row if isinstance(part, str)])
    width = max(map(len, written))
    gaps = [width - len(slots) if side == "left" else 0 for slots in written]
    fill = lambda values, gap, n: [0] * gap + values + [0] * (width - gap - n)
    column = lambda read: torch.tensor(
        [fill([read(s) for s in slots], gap, len(slots)) for slots, gap in zip(written, gaps)]
    )
    inputs = {"input_ids": column(lambda s: s.id), "attention_mask": column(lambda s: 1)}
    if family.types:
        inputs[family.types] = column(lambda s: s.kind)
    inputs |= family.vision([[(kind, next(numbers)) for kind in row] for row in kinds])
    return Batch(
        inputs,
        [[[p + gap for p in clip] for clip in clips] for clips, gap in zip(positions, gaps)],
        kinds,
    )


def noise(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# --- clips in prompts


def in_one_run(
    grids: dict[str, VisualGrid], ids: dict[str, int], kind: str, tail: int = 0
) -> list[Slot]:
    """All tokens of a clip between two markers; ``tail`` more placeholders at its end stand for no
    place in the picture.
    """
    code = 1 if kind == "image" else 2
    places = [*range(grids[kind].tokens), *[-1] * tail]
    return [Slot(START), *[Slot(ids[kind], code, place) for place in places], Slot(END)]


def frame_by_frame(
    grids: dict[str, VisualGrid], ids: dict[str, int], kind: str, code: dict[str, int] | None = None
) -> list[Slot]:
    """Each step between markers of its own, with a text token (its time) before it."""
    grid = grids[kind]
    slots = []
    kinds = code or {"image": 1, "video": 2}
    for step in range(grid.steps):
        first = step * grid.tokens_per_step
        slots += [*([Slot(20 + step)] if kind == "video" else []), Slot(START)]
        slots += [Slot(ids[kind], kinds[kind], first + i) for i in range(grid.tokens_per_step)] + [
            Slot(END)
        ]
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
    """The Qwen way: flat patches with (time, height, width) of every clip, images and videos apart;
    each clip has pixels of its own.
    """
    found: dict[str, Tensor] = {}
    for kind, name, prefix in (
        ("image", "pixel_values", "image"),
        ("video", "pixel_values_videos", "video"),
    ):
        clips = [i for row in rows for k, i in row if k == kind]
        if not clips:
            continue
        grid = grids[kind]
        found[name] = torch.cat([noise(grid.tokens * merge**2, pixels, seed=i) for i in clips])
        found[f"{prefix}_grid_thw"] = torch.tensor(
            [[grid.steps, grid.rows * merge, grid.cols * merge]] * len(clips)
        )
        if sizes:
            found[f"{prefix}_merge_sizes"] = torch.full((len(clips),), merge)
        if times and kind == "video":
            found["second_per_grid_ts"] = torch.ones(len(clips))
    return found


def pictures(grids: dict[str, VisualGrid], size: int, rows: Clips) -> dict[str, Tensor]:
    """Each step of each clip is a picture: (picture, channel, height, width)."""
    shown = [noise(grids[k].steps, 3, size, size, seed=i) for row in rows for k, i in row]
    return {"pixel_values": torch.cat(shown)} if shown else {}


def pictures_by_row(grids: dict[str, VisualGrid], size: int, rows: Clips) -> dict[str, Tensor]:
    """(row, picture, channel, height, width): rows with fewer pictures are filled up with zeros,
    which these hosts drop again.
    """
    by_row = [[noise(grids[k].steps, 3, size, size, seed=i) for k, i in row] for row in rows]
    most = max(sum(len(p) for p in row) for row in by_row)
    if not most:
        return {}
    fill = lambda row: torch.cat(
        [*row, torch.zeros(most - sum(len(p) for p in row), 3, size, size)]
    )
    return {"pixel_values": torch.stack([fill(row) for row in by_row])}

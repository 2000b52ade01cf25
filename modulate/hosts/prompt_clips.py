"""What a prompt says of its clips: runs of placeholders, and the sizes that the processor gave.

Nothing is guessed: where a prompt does not say how its clips lie, these functions return nothing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor

from modulate.hosts.host import Host


@dataclass(frozen=True)
class Run:
    """Placeholders of one id side by side: how many, and the id of the token behind them.

    ``behind``: None where no token is known there.
    """

    id: int | None
    tokens: int
    behind: int | None = None


@dataclass(frozen=True)
class ClipSize:
    """The size of a clip as the host's own arguments give it: steps, rows and columns of tokens."""

    steps: int
    rows: int
    cols: int

    @property
    def tokens(self) -> int:
        """Number of visual tokens."""
        return self.steps * self.rows * self.cols


def runs_of(visual: Tensor, ids: Tensor | None) -> list[Run]:
    """Return the runs of one row, in order.

    Args:
        visual: (position,) bool, the placeholders.
        ids: (position,), the token ids, if they are known. A change of id ends a run too.
    """
    positions = visual.nonzero()[:, 0].tolist()
    if not positions:
        return []
    tokens = None if ids is None else ids.tolist()
    begins = [
        after
        for before, after in pairwise(positions)
        if after != before + 1 or (tokens is not None and tokens[after] != tokens[before])
    ]
    begins = [positions[0], *begins]
    counts = torch.bincount(
        torch.bucketize(torch.tensor(positions), torch.tensor(begins), right=True) - 1
    ).tolist()
    runs = []
    for begin, count in zip(begins, counts, strict=True):
        end = begin + count
        behind = tokens[end] if tokens is not None and end < len(tokens) else None
        runs.append(Run(None if tokens is None else tokens[begin], count, behind))
    return runs


def are_closed(runs: Sequence[Run]) -> bool:
    """Return whether the same token stands behind every run, as an end-of-vision token does.

    A host that closes its runs never lets one clip follow another within a run.
    """
    behind = [run.behind for run in runs if run.behind is not None]
    return len(behind) > 1 and len(set(behind)) == 1


def are_entangled(lengths: Sequence[int], parts: Sequence[int]) -> bool:
    """Return whether clips of these ``lengths`` cut across the ``parts`` of a prompt.

    A clip may consist of several parts, and a part of several clips. They are entangled where a
    clip ends inside a part that it does not begin in. Both add up to the same number of tokens.
    """
    ends = set(accumulate(lengths)) & set(accumulate(parts))
    clips_between = _counts_between(ends, lengths)
    parts_between = _counts_between(ends, parts)
    return any(
        clips > 1 and others > 1 for clips, others in zip(clips_between, parts_between, strict=True)
    )


def _counts_between(ends: set[int], lengths: Sequence[int]) -> list[int]:
    """Return how many of ``lengths`` lie between one of ``ends`` and the next."""
    counts = [0]
    for end in accumulate(lengths):
        counts[-1] += 1
        if end in ends:
            counts.append(0)
    return counts


def sizes_by_row(
    host: Host, arguments: Mapping[str, Any], ids: Tensor, visual: Tensor
) -> list[list[ClipSize]] | None:
    """Return the sizes of the clips of every row, read from ``video_grid_thw``, ``image_grid_thw``.

    Args:
        host: the host.
        arguments: those of a forward of its entry.
        ids: (row, position) token ids of this forward.
        visual: (row, position) bool, its placeholders.

    None if a kind of clip comes without them, or if they do not add up to the placeholders.
    """
    rows: list[list[ClipSize]] = [[] for _ in range(len(ids))]
    by_kind = {}
    for kind, visual_id in host.visual_ids.items():
        counts = (visual & (ids == visual_id)).sum(1).tolist()
        if sum(counts):
            sizes = _split_rows(_sizes(host, arguments, kind), counts)
            if sizes is None:
                return None
            by_kind[visual_id] = [iter(row) for row in sizes]
    for row, sizes_of_row in enumerate(rows):
        row_ids = ids[row][visual[row]].tolist()
        place = 0
        while place < len(row_ids):
            size = next(by_kind[row_ids[place]][row], None)
            if size is None:
                return None
            sizes_of_row.append(size)
            place += size.tokens
    return rows


def _sizes(host: Host, arguments: Mapping[str, Any], kind: str) -> list[ClipSize]:
    """Return the sizes of all clips of a kind, in tokens; [] where they are not known."""
    grids = arguments.get(f"{kind}_grid_thw")
    if not isinstance(grids, Tensor) or grids.ndim != 2 or grids.shape[1] != 3:
        return []
    # How many patches a side the host merges into one token: by clip, or the same for all.
    merges = arguments.get(f"{kind}_merge_sizes")
    if not isinstance(merges, Tensor):
        merge = getattr(getattr(host.config, "vision_config", None), "spatial_merge_size", None)
        if not isinstance(merge, int):
            return []
        merges = torch.full((len(grids),), merge)
    return [
        ClipSize(steps, height // merge, width // merge)
        for (steps, height, width), merge in zip(grids.tolist(), merges.tolist(), strict=True)
    ]


def _split_rows(sizes: list[ClipSize], counts: Sequence[int]) -> list[list[ClipSize]] | None:
    """Return ``sizes`` split into rows of ``counts`` tokens, or None if they do not add up."""
    left = iter(sizes)
    rows = []
    for count in counts:
        row = []
        while count > 0:
            size = next(left, None)
            if size is None:
                return None
            row.append(size)
            count -= size.tokens
        if count:
            return None
        rows.append(row)
    return None if next(left, None) is not None else rows


def raster_of(position_ids: Tensor) -> tuple[int, int] | None:
    """Return the (rows, columns) over which positions count up, or None if they do not.

    ``position_ids``: (axis, token) of one step of a clip; the last two axes are height and width,
    as in M-RoPE.
    """
    height, width = (axis - axis[0] for axis in position_ids[-2:].long())
    tokens = len(height)
    turns = (height != 0).nonzero()
    cols = int(turns[0]) if len(turns) else tokens
    if tokens % cols:
        return None
    token = torch.arange(tokens, device=height.device)
    row_scale = int(height[cols]) if cols < tokens else 1
    col_scale = int(width[1]) if cols > 1 else 1
    if row_scale < 1 or col_scale < 1:
        return None
    is_raster = torch.equal(height, token // cols * row_scale) and torch.equal(
        width, token % cols * col_scale
    )
    return (tokens // cols, cols) if is_raster else None

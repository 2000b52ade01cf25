"""The grids of clips and pictures in a prompt, from what a processor made of them.

Every clip and picture must have as many placeholders as its grid has visual tokens.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from modulate.errors import HostError
from modulate.interfaces.messages import VideoClip, Visual
from modulate.interfaces.visual_grid import VisualGrid, picture_grid, visual_grid

Modality = Literal["image", "video"]
"""How a processor is given something to look at."""

Sizes = list[tuple[int, int, int]]
"""(step, height, width) of each clip and picture, after preprocessing, in pixels or in patches."""


class HostConventions(Protocol):
    """What encoding must know of a host."""

    visual_ids: dict[str, int]

    def modality(self, visual: Visual) -> Modality:
        """See :meth:`modulate.hosts.host.Host.modality`; so for the others."""

    def picture_settings(self, component: Any) -> dict[str, Any]:
        """Return arguments with which a processor shows pictures whole."""

    def stretched_size(self, processor: Any) -> tuple[int, int] | None:
        """Return the size to which pictures are stretched first, or None."""

    def sizes(
        self,
        outputs: Mapping[str, Any],
        modality: Modality,
        lengths: Mapping[Modality, Sequence[int]],
    ) -> Sizes:
        """Return the sizes after preprocessing."""

    def placeholders(self, grid: VisualGrid) -> Sequence[int]:
        """Return the visual token of each placeholder, or −1."""

    def input_names(self) -> set[str]:
        """Return the names of the model's inputs."""


@dataclass(frozen=True)
class Shown:
    """A clip or picture as the processor gets it.

    Attributes:
        visual: the clip or picture.
        modality: what the processor takes it for. A clip given as images is one image a frame.
        pictures: (frame, height, width, 3) uint8 RGB; a clip with fewer frames than make a step
            has its last one repeated.
    """

    visual: Visual
    modality: Modality
    pictures: NDArray[np.uint8]

    @classmethod
    def of(cls, host: HostConventions, processor: Any, visual: Visual) -> "Shown":
        """Return how ``visual`` is shown: frame by frame where the processor has no videos."""
        modality = host.modality(visual)
        if getattr(processor, "video_processor", None) is None:
            modality = "image"
        pictures = visual.frames.images if isinstance(visual, VideoClip) else visual.image[None]
        if modality == "video":
            # Some processors repeat the last frame where one is missing, others refuse the clip.
            merged = getattr(processor.video_processor, "temporal_patch_size", None) or 1
            missing = max(0, merged - len(pictures))
            pictures = np.concatenate([pictures, *[pictures[-1:]] * missing])
        size = host.stretched_size(processor)
        return cls(visual, modality, pictures if size is None else _stretched(pictures, size))

    @property
    def lengths(self) -> list[int]:
        """Numbers of pictures in each of the entries that it takes in the conversation."""
        count = len(self.pictures)
        return [count] if self.modality == "video" else [1] * count


def _stretched(pictures: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    from PIL import Image

    height, width = size
    resized = (Image.fromarray(picture).resize((width, height)) for picture in pictures)
    return np.stack([np.asarray(picture) for picture in resized])


def grids_of(
    host: HostConventions,
    processor: Any,
    shown: Sequence[Shown],
    outputs: Mapping[str, Any],
    replacements: list[dict[str, Any]] | None,
) -> tuple[VisualGrid, ...]:
    """Return the grid of everything shown, each checked against its own placeholders."""
    if not shown:
        return ()
    lengths: dict[Modality, list[int]] = {"image": [], "video": []}
    for item in shown:
        lengths[item.modality] += item.lengths
    sizes = {
        kind: iter(host.sizes(outputs, kind, lengths)) for kind, given in lengths.items() if given
    }
    counts = iter(_counts(host, processor, shown, outputs["input_ids"], replacements))
    grids = []
    for item in shown:
        entries = [(next(sizes[item.modality]), next(counts)) for _ in item.lengths]
        if len(set(entries)) > 1:
            raise HostError(
                f"{type(processor).__name__} gives the frames of a clip different sizes or numbers"
                f" of placeholders: {sorted(set(entries))}."
            )
        grids.append(_grid(host, item, *entries[0]))
    return tuple(grids)


def _counts(
    host: HostConventions,
    processor: Any,
    shown: Sequence[Shown],
    ids: Tensor,
    replacements: list[dict[str, Any]] | None,
) -> list[int]:
    """Return the number of placeholders of each entry of what is shown, in the prompt's order."""
    name = type(processor).__name__
    kinds = [item.modality for item in shown for _ in item.lengths]
    total = int(torch.isin(ids, torch.tensor(list(host.visual_ids.values()))).sum())
    if replacements is None:
        if len(shown) > 1 or total % len(kinds):
            raise HostError(
                f"{name} does not say which of the {total} placeholders belong to which clip or"
                " picture (it returns no text_replacement_offsets), so that a conversation may show"
                " only one."
            )
        return [total // len(kinds)] * len(kinds)
    if len(replacements) != len(kinds):
        raise HostError(
            f"{name}'s chat template shows {len(replacements)} of the conversation's"
            f" {len(kinds)} clips and pictures."
        )
    if [replaced["type"] for replaced in replacements] != kinds:
        raise HostError(
            f"{name}'s chat template shows clips and pictures in another order than the"
            f" conversation ({', '.join(r['type'] for r in replacements)} instead of"
            f" {', '.join(kinds)}); write them in the template's order."
        )
    tokens = set(processor.tokenizer.convert_ids_to_tokens(list(host.visual_ids.values())))
    counts = [sum(map(replaced["replacement"].count, tokens)) for replaced in replacements]
    if sum(counts) != total:
        raise HostError(
            f"{name} wrote {sum(counts)} placeholders into the prompt, of which the tokenizer made"
            f" {total}."
        )
    return counts


def picture_sizes(
    outputs: Mapping[str, Any], modality: Modality, lengths: Mapping[Modality, Sequence[int]]
) -> Sizes:
    """Return the sizes of the clips or pictures of one modality, from what a processor returned.

    Looked for: ``*_grid_thw`` (steps, rows and columns of patches), ``target_sizes`` and
    ``spatial_shapes`` (rows and columns of patches of every picture), ``pixel_values`` (…, channel,
    height, width). ``lengths``: numbers of pictures in each entry. Raises :class:`HostError`.
    """
    given = lengths[modality]
    if f"{modality}_grid_thw" in outputs:
        return [tuple(size) for size in outputs[f"{modality}_grid_thw"].tolist()]
    suffix = "_videos" if modality == "video" else ""
    for name in (f"target_sizes{suffix}", f"spatial_shapes{suffix}"):
        if name in outputs:
            return entry_sizes(outputs[name].tolist(), given, name)
    names = ["pixel_values_videos", "pixel_values"]
    if modality == "image":
        names = ["pixel_values", "pixel_values_images"]
    name = next((name for name in names if name in outputs), names[0])
    pixels = outputs.get(name)
    if not isinstance(pixels, Tensor) or pixels.ndim < 4:
        raise HostError(
            f"The processor does not say to which size it brings a {modality}: looked for"
            f" {modality}_grid_thw, target_sizes{suffix}, spatial_shapes{suffix}, and {name} of the"
            f" shape (…, channel, height, width); it returned {', '.join(sorted(outputs))}."
        )
    # Some processors return frames and pictures in one tensor.
    in_one = "pixel_values_videos" not in outputs
    expected = sum(sum(counts) for counts in lengths.values()) if in_one else sum(given)
    found = _picture_count(outputs, name)
    if found != expected:
        raise HostError(
            f"The processor made {found} pictures ({name}) of {expected}: it cuts them into tiles,"
            " or cannot take clips and pictures together."
        )
    height, width = pixels.shape[-2:]
    return [(length, height, width) for length in given]


def _picture_count(outputs: Mapping[str, Any], name: str) -> int:
    pixels: Tensor = outputs[name]
    if "pixel_attention_mask" in outputs:
        # Idefics and SmolVLM fill up shorter clips with empty pictures, which the models leave out.
        return int(pixels.flatten(-3).any(-1).sum())
    return math.prod(pixels.shape[:-3])


def entry_sizes(rows: Sequence[Sequence[int]], lengths: Sequence[int], name: str) -> Sizes:
    """Return the sizes of clips and pictures from those of all their pictures in order.

    ``rows``: (height, width) of each picture. ``name``: where they come from. Raises
    :class:`HostError` unless there is one row for each picture, the same within a clip.
    """
    if len(rows) != sum(lengths):
        raise HostError(
            f"The processor made {len(rows)} pictures ({name}) of {sum(lengths)}: it cuts them into"
            " tiles."
        )
    sizes: Sizes = []
    start = 0
    for length in lengths:
        own = {(int(height), int(width)) for height, width in rows[start : start + length]}
        if len(own) > 1:
            raise HostError(f"The processor gives the frames of a clip different sizes: {own}.")
        sizes.append((length, *own.pop()))
        start += length
    return sizes


def _grid(
    host: HostConventions, item: Shown, size: tuple[int, int, int], placeholders: int
) -> VisualGrid:
    """Return the grid of a clip or picture with ``placeholders`` for each of its entries."""
    steps, height, width = size
    rows, cols = _rows_and_cols(host, steps, height, width, placeholders)
    visual = item.visual
    if not isinstance(visual, VideoClip):
        return picture_grid(rows, cols, visual.window)
    if item.modality == "image":
        steps = len(item.pictures)
        placeholders *= steps
    frames_per_step = math.ceil(len(item.pictures) / steps)
    grid = visual_grid(visual.frames.times, frames_per_step, rows, cols, visual.window)
    if grid.steps != steps or len(host.placeholders(grid)) != placeholders:
        raise HostError(
            f"The processor made {steps} steps and {placeholders} placeholders of"
            f" {len(item.pictures)} frames, the grid has {grid.steps} steps and {grid.tokens}"
            " tokens."
        )
    return grid


def _rows_and_cols(
    host: HostConventions, steps: int, height: int, width: int, placeholders: int
) -> tuple[int, int]:
    """Return the grid in the ratio of the picture's sides that has so many placeholders."""
    divisor = math.gcd(height, width)
    spans = ((0.0, 0.0),) * steps
    for scale in range(1, divisor + 1):
        rows = scale * height // divisor
        cols = scale * width // divisor
        found = len(host.placeholders(VisualGrid(rows, cols, (0.0,) * steps, spans)))
        if found == placeholders:
            return rows, cols
        if found > placeholders:
            break
    raise HostError(
        f"{placeholders} placeholders in {steps} steps fit no grid in the ratio {height}:{width} of"
        f" a preprocessed picture. A family whose pictures are cut into tiles, or have placeholders"
        " without a place, needs a host class of its own."
    )

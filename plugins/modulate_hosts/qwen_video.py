"""How the Qwen-VL families encode a conversation with clips and pictures."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from modulate.errors import HostError
from modulate.hosts.host import EncodedPrompt, Host, chat
from modulate.interfaces.messages import Message, Picture, VideoClip
from modulate.interfaces.visual_grid import VisualGrid, picture_grid, visual_grid

INPUTS = (
    "input_ids",
    "attention_mask",
    "mm_token_type_ids",
    "pixel_values",
    "image_grid_thw",
    "pixel_values_videos",
    "video_grid_thw",
    "second_per_grid_ts",
)
"""Outputs of the processor that are inputs of the model."""


def mean_rate(times: Sequence[float]) -> dict[str, Any]:
    """Return video metadata with the true mean frame rate, for families that know only rates.

    Without metadata, their processors assume 24 fps.
    """
    # A single frame has no rate. Any will do, since there is only one step.
    rate = (len(times) - 1) / (times[-1] - times[0]) if len(times) > 1 else 1.0
    return {
        "total_num_frames": len(times),
        "fps": rate,
        "frames_indices": list(range(len(times))),
        "duration": len(times) / rate,
    }


def milliseconds(times: Sequence[float]) -> dict[str, Any]:
    """Return video metadata with each frame's own time, for families that state times in prompts.

    The processor computes a time from index and rate: at 1000 fps, frame ``i`` is shown at i ms.
    """
    indices = [round(1000 * time) for time in times]
    return {
        "total_num_frames": indices[-1] + 1,
        "fps": 1000.0,
        "frames_indices": indices,
        "duration": times[-1],
    }


def encode(
    host: Host,
    processor: Any,
    messages: Sequence[Message],
    add_generation_prompt: bool,
    metadata: Callable[[Sequence[float]], dict[str, Any]],
) -> EncodedPrompt:
    """Encode a conversation; every frame is kept.

    ``metadata``: frame times → what gives the processor these times. Raises :class:`HostError` if
    the placeholders in the prompt do not match the grids.
    """
    visuals = [visual for message in messages for visual in message.visuals]
    clips = [visual for visual in visuals if isinstance(visual, VideoClip)]
    pictures = [visual for visual in visuals if isinstance(visual, Picture)]
    prompt = processor.apply_chat_template(
        chat(messages), add_generation_prompt=add_generation_prompt, tokenize=False
    )
    videos: dict[str, Any] = {}
    if clips:
        videos = {
            "videos": [clip.frames.images.transpose(0, 3, 1, 2) for clip in clips],
            "video_metadata": [metadata(clip.frames.times) for clip in clips],
            "do_sample_frames": False,
        }
    encoded = processor(
        text=[prompt],
        images=[picture.image.transpose(2, 0, 1) for picture in pictures] or None,
        **videos,
        return_tensors="pt",
    )
    inputs = {name: torch.as_tensor(value) for name, value in encoded.items() if name in INPUTS}
    sizes = {
        VideoClip: iter(inputs["video_grid_thw"].tolist() if clips else ()),
        Picture: iter(inputs["image_grid_thw"].tolist() if pictures else ()),
    }
    grids = tuple(_grid(host, visual, *next(sizes[type(visual)])) for visual in visuals)
    _check_placeholders(host, inputs["input_ids"], visuals, grids)
    return EncodedPrompt(inputs, grids)


def _grid(
    host: Host, visual: VideoClip | Picture, steps: int, height: int, width: int
) -> VisualGrid:
    vision = host.config.vision_config
    rows = height // vision.spatial_merge_size
    cols = width // vision.spatial_merge_size
    if isinstance(visual, Picture):
        return picture_grid(rows, cols, visual.window)
    times = visual.frames.times
    grid = visual_grid(times, vision.temporal_patch_size, rows, cols, visual.window)
    if grid.steps != steps:
        raise HostError(
            f"The processor made {steps} steps of {len(times)} frames, the grid has {grid.steps}."
        )
    return grid


def _check_placeholders(
    host: Host, ids: Tensor, visuals: Sequence[VideoClip | Picture], grids: Sequence[VisualGrid]
) -> None:
    """Raise :class:`HostError` unless the prompt has a placeholder for each visual token.

    Without this check, a release whose processor merges frames differently would have residuals
    written on the wrong tokens.
    """
    for modality, kind in (("video", VideoClip), ("image", Picture)):
        expected = sum(
            grid.tokens
            for visual, grid in zip(visuals, grids, strict=True)
            if isinstance(visual, kind)
        )
        placeholders = int((ids == host.visual_ids[modality]).sum())
        if placeholders != expected:
            raise HostError(
                f"The processor made {placeholders} {modality} placeholders, the grids have"
                f" {expected} tokens."
            )

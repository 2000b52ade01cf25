"""How the Qwen-VL families encode a prompt with one video."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from modulate.errors import HostError
from modulate.hosts.host import EncodedPrompt, Host
from modulate.interfaces.frames import Frames
from modulate.interfaces.visual_grid import visual_grid

Images = Sequence[NDArray[np.uint8]]

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


def encode_video(
    host: Host,
    processor: Any,
    text: str,
    frames: Frames,
    window: tuple[float, float],
    metadata: dict[str, Any],
    images: Images = (),
) -> EncodedPrompt:
    """Encode one user turn: ``images`` (height, width, 3) if any, the clip, then ``text``.

    ``metadata`` gives the processor the frames' times; it drops no frame. Raises
    :class:`HostError` if the placeholders in the prompt do not match the grid.
    """
    content = [
        *({"type": "image"} for _ in images),
        {"type": "video"},
        {"type": "text", "text": text},
    ]
    prompt = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
    )
    times = list(frames.times)
    encoded = processor(
        text=[prompt],
        images=[image.transpose(2, 0, 1) for image in images] or None,
        videos=[frames.images.transpose(0, 3, 1, 2)],
        video_metadata=[metadata],
        do_sample_frames=False,
        return_tensors="pt",
    )
    inputs = {name: torch.as_tensor(value) for name, value in encoded.items() if name in INPUTS}
    steps, height, width = inputs["video_grid_thw"][0].tolist()
    merge = host.config.vision_config.spatial_merge_size
    grid = visual_grid(
        times,
        host.config.vision_config.temporal_patch_size,
        height // merge,
        width // merge,
        window,
    )
    # Without this check, a release whose processor merges frames differently would have residuals
    # written on the wrong tokens.
    placeholders = int((inputs["input_ids"] == host.visual_ids["video"]).sum())
    if grid.steps != steps or grid.tokens != placeholders:
        raise HostError(
            f"The processor made {steps} steps and {placeholders} placeholders of {len(times)}"
            f" frames, the grid has {grid.steps} steps and {grid.tokens} tokens."
        )
    return EncodedPrompt(inputs, grid)

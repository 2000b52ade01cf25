"""Qwen2.5-VL (arXiv 2502.13923): dynamic resolution, two frames a step, absolute time in M-RoPE."""

from typing import Any

import torch

from modulate.errors import HostError
from modulate.grid import visual_grid
from modulate.hosts import EncodedPrompt, Host
from modulate.video import Frames


class Qwen25VL(Host):
    """Qwen2.5-VL, with prompts encoded at the frames' true times."""

    model_types = ("qwen2_5_vl",)

    def encode(self, processor: Any, text: str, frames: Frames, window: tuple[float, float]) -> EncodedPrompt:
        """Encode one user turn: the clip, then ``text``.

        The processor is told the true mean frame rate, so that M-RoPE's temporal positions count true seconds (without metadata it
        assumes 24 fps). Raises :class:`HostError` when the placeholders in the prompt do not match the grid.
        """
        content = [{"type": "video"}, {"type": "text", "text": text}]
        prompt = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False)
        images, times = frames.images, list(frames.times)
        # A single frame has no rate of its own: one second a frame is as good as any, there is only one step.
        rate = (len(times) - 1) / (times[-1] - times[0]) if len(times) > 1 else 1.0
        metadata = {"total_num_frames": len(times), "fps": rate, "frames_indices": list(range(len(times))), "duration": len(times) / rate}
        encoded = processor(
            text=[prompt],
            videos=[images.transpose(0, 3, 1, 2)],
            video_metadata=[metadata],
            do_sample_frames=False,
            return_tensors="pt",
        )
        inputs = {k: torch.as_tensor(v) for k, v in encoded.items() if k in INPUTS}
        steps, height, width = inputs["video_grid_thw"][0].tolist()
        merge = self.config.vision_config.spatial_merge_size
        grid = visual_grid(times, self.config.vision_config.temporal_patch_size, height // merge, width // merge, window)
        placeholders = int((inputs["input_ids"] == self.visual_ids["video"]).sum())
        if grid.steps != steps or grid.tokens != placeholders:
            raise HostError(
                f"The processor made {steps} steps and {placeholders} placeholders of {len(times)} frames, the grid has {grid.steps} steps and {grid.tokens} tokens."
            )
        return EncodedPrompt(inputs, grid)


INPUTS = ("input_ids", "attention_mask", "mm_token_type_ids", "pixel_values_videos", "video_grid_thw", "second_per_grid_ts")

"""Llama 4: pictures only, each in one tile."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from modulate.hosts.encoding import EncodedPrompt
from modulate.hosts.host import Host
from modulate.interfaces.messages import Message


class Llama4(Host):
    """Llama 4: a clip is shown as one picture a frame, stretched to the size of a tile.

    The processor would cut pictures into several tiles, and pad them to a tile's shape.
    """

    model_types = ("llama4",)

    def picture_settings(self, component: Any) -> dict[str, Any]:
        """Return arguments that allow a single tile."""
        return super().picture_settings(component) | {"max_patches": 1}

    def stretched_size(self, processor: Any) -> tuple[int, int] | None:
        """Return (height, width) of a tile."""
        size = processor.image_processor.size
        return int(size["height"]), int(size["width"])

    def encode(
        self, processor: Any, messages: Sequence[Message], *, add_generation_prompt: bool = True
    ) -> EncodedPrompt:
        """Encode a conversation; pixels, which the processor returns in bfloat16, fit the model."""
        encoded = super().encode(processor, messages, add_generation_prompt=add_generation_prompt)
        dtype = next(self.model.parameters()).dtype
        inputs = {
            name: value.to(dtype) if value.is_floating_point() else value
            for name, value in encoded.inputs.items()
        }
        return replace(encoded, inputs=inputs)

"""GLM-4.1V and GLM-4.5V (arXiv 2507.01006): frames are written as pictures inside a video."""

from collections.abc import Sequence
from typing import Any

from modulate.errors import HostError
from modulate.hosts.encoding import EncodedPrompt
from modulate.hosts.host import Host
from modulate.interfaces.messages import Message


class Glm4v(Host):
    """GLM-4V: each step's time follows its tokens, in whole seconds.

    Frames and pictures have the same placeholder, which transformers fills from one of them only.
    """

    model_types = ("glm4v", "glm4v_moe")

    def encode(
        self, processor: Any, messages: Sequence[Message], *, add_generation_prompt: bool = True
    ) -> EncodedPrompt:
        """Encode a conversation with clips or with pictures, not with both."""
        kinds = {type(visual) for message in messages for visual in message.visuals}
        if len(kinds) > 1:
            raise HostError(
                "GLM-4V in transformers cannot take clips and pictures in one conversation: both"
                " have the same placeholder."
            )
        return super().encode(processor, messages, add_generation_prompt=add_generation_prompt)

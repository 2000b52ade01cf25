"""Conversations as model inputs, and the conditioning that belongs to them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from modulate import plugins
from modulate.config.sections import Sampling
from modulate.data.alignment import align
from modulate.data.feature_extractor import apply_clock
from modulate.hosts.encoding import check_encoded
from modulate.hosts.host import Host
from modulate.inference.media import Visual
from modulate.inference.prompts import with_nominal_times, with_true_times
from modulate.interfaces.components import Backbone, FrameFeatures
from modulate.interfaces.messages import Message, Picture, VideoClip
from modulate.interfaces.result_checks import check_frame_features
from modulate.interfaces.signal_checks import call
from modulate.interfaces.visual_grid import VisualGrid
from modulate.modulation.clip_inputs import ClipInput
from modulate.utils.lru_cache import LRUCache

FEATURE_BYTES = 1 << 30
"""Limit of the backbone features kept in memory, for further questions on the same clip."""


@dataclass(frozen=True)
class Turn:
    """One turn of a conversation: text, clips and pictures in order."""

    role: Literal["system", "user", "assistant"]
    parts: tuple[str | Visual, ...]

    @property
    def visuals(self) -> list[Visual]:
        """Its clips and pictures, in order."""
        return [part for part in self.parts if isinstance(part, Visual)]


@dataclass(frozen=True)
class EncodedConversation:
    """A conversation ready for a conditioned forward.

    Attributes:
        inputs: model inputs of batch size 1.
        clips: the conditioning of each clip and picture, in order.
    """

    inputs: dict[str, Tensor]
    clips: list[ClipInput]

    @property
    def has_signal(self) -> bool:
        """Whether any clip has a signal, possibly an empty one."""
        return any(clip.signal is not None for clip in self.clips)

    def blank(self) -> list[ClipInput]:
        """Return the conditioning with an empty signal wherever there is one."""
        return [
            clip if clip.signal is None else replace(clip, signal=call(clip.signal, "blank"))
            for clip in self.clips
        ]


class ConversationEncoder:
    """Encodes conversations for a host, and computes features of what they show.

    Args:
        host: the host.
        processor: its processor.
        backbone: encoder of the frames, on its own device.
        sampling: the clock and the alignment that the modulation was trained with.
    """

    def __init__(self, host: Host, processor: Any, backbone: Backbone, sampling: Sampling) -> None:
        self.host = host
        self.processor = processor
        self.backbone = backbone
        self.sampling = sampling
        self._features: LRUCache[Any, FrameFeatures] = LRUCache(
            FEATURE_BYTES, lambda features: features.values.nbytes
        )

    def encode(self, turns: Sequence[Turn]) -> EncodedConversation:
        """Return the conversation as model inputs that end where the host's next answer begins."""
        messages = [Message(turn.role, tuple(map(self._content, turn.parts))) for turn in turns]
        visuals = [visual for turn in turns for visual in turn.visuals]
        registry = plugins.registry()
        with registry.blame("host", registry.name_of("host", type(self.host)), "encode"):
            prompt = self.host.encode(self.processor, messages)
            encoded = check_encoded(prompt, self.host, len(visuals))
        clips = [
            self._clip(visual, grid) for visual, grid in zip(visuals, encoded.grids, strict=True)
        ]
        return EncodedConversation(encoded.inputs, clips)

    def _content(self, part: str | Visual) -> str | VideoClip | Picture:
        content = part if isinstance(part, str) else part.content
        fps = self.sampling.processor_fps
        return content if fps is None else with_nominal_times(content, fps)

    def _clip(self, visual: Visual, grid: VisualGrid) -> ClipInput:
        if isinstance(visual.content, VideoClip):
            grid = self._true_grid(visual, grid)
        if visual.signal is None:
            return ClipInput(None, grid)
        features = align(
            self._raw_features(visual), grid, self.sampling.alignment, self.sampling.antialias
        )
        return ClipInput(visual.signal, grid, features)

    def _true_grid(self, visual: Visual, grid: VisualGrid) -> VisualGrid:
        """Return the grid with the clip's own times, or those of the recipe's clock."""
        if self.sampling.processor_fps is not None:
            # The processor saw nominal times, and so did the grid that it returned.
            grid = with_true_times(visual.content, grid)
        return apply_clock(self.sampling, visual.content.window, grid, len(visual.frames.times))

    @torch.inference_mode()
    def _raw_features(self, visual: Visual) -> FrameFeatures:
        found = None if visual.key is None else self._features.get(visual.key)
        if found is not None:
            return found
        device = next((p.device for p in self.backbone.parameters()), torch.device("cpu"))
        images = torch.from_numpy(visual.frames.images).to(device)
        times = visual.frames.times
        registry = plugins.registry()
        name = registry.name_of("backbone", type(self.backbone))
        with registry.blame("backbone", name, "forward"):
            features = check_frame_features(self.backbone(images, times), self.backbone, times)
        if visual.key is not None:
            self._features.put(visual.key, features)
        return features

"""Gemma 4: frames of any shape as a limited number of tokens, each at its own time."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from modulate.hosts.host import Host
from modulate.hosts.prompt_grids import Modality, Sizes, entry_sizes


class Gemma4(Host):
    """Gemma 4: the processor gives the place of every patch instead of a picture's size."""

    model_types = ("gemma4",)

    def sizes(
        self,
        outputs: Mapping[str, Any],
        modality: Modality,
        lengths: Mapping[Modality, Sequence[int]],
    ) -> Sizes:
        """Return (step, height, width) in patches, from the largest (x, y) of each picture."""
        name = f"{modality}_position_ids"
        places: Tensor = outputs[name]
        # (…, patch, 2): padding is at −1.
        last = places.flatten(0, -3).amax(1).tolist()
        return entry_sizes([(y + 1, x + 1) for x, y in last], lengths[modality], name)

"""A modulation and its host as one module, for training."""

from typing import Any

from torch import nn

from modulate.modulation.attachment import Attachment
from modulate.modulation.clip_inputs import Rows
from modulate.modulation.module import Modulation


class ModulatedHost(nn.Module):
    """Conditions and calls the host in one forward.

    Data-parallel wrappers then see that the modulation's parameters are used. Its parameters and
    state_dict are the modulation's alone: the host is held outside of the module tree.
    """

    def __init__(self, modulation: Modulation, model: nn.Module) -> None:
        super().__init__()
        self.modulation = modulation
        # An attachment is no module, so the host's parameters do not enter the tree.
        self.attachment: Attachment = modulation.attach(model)

    def forward(self, rows: Rows, **inputs: Any) -> Any:
        """Call the host on ``inputs``, conditioned with ``rows``."""
        with self.attachment.condition(rows):
            return self.attachment.model(**inputs)

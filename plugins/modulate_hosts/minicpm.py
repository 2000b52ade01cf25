"""MiniCPM-V 4.6: frames of any shape, their patches packed side by side."""

from collections.abc import Sequence

import torch
from torch import Tensor

from modulate.hosts.host import Host


class MiniCPMV46(Host):
    """MiniCPM-V 4.6: the patches of all pictures lie side by side in one row."""

    model_types = ("minicpmv4_6",)

    def join(self, name: str, values: Sequence[Tensor]) -> Tensor:
        """Return the inputs of several rows as one; pixels grow along their last dimension."""
        if name.startswith("pixel_values"):
            return torch.cat(list(values), -1)
        return super().join(name, values)

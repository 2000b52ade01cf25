"""modulate: let a frozen multimodal LLM listen to a side signal, by zero-initialized residuals on
its visual tokens.
"""

import importlib
from typing import Any

__version__ = "0.2.0"

_PUBLIC = {
    "Modulation": "modulate.modulation.module",
    "ModulationConfig": "modulate.modulation.module",
    "ModulatedHost": "modulate.modulation.modulated_host",
    "Attachment": "modulate.modulation.attachment",
    "ClipInput": "modulate.modulation.clip_inputs",
    "VisualGrid": "modulate.interfaces.visual_grid",
    "visual_grid": "modulate.interfaces.visual_grid",
    "Signal": "modulate.interfaces.signal",
    "SignalEncoder": "modulate.interfaces.components",
    "SignalFeatures": "modulate.interfaces.components",
    "Backbone": "modulate.interfaces.components",
    "FrameFeatures": "modulate.interfaces.components",
    "Modulator": "modulate.interfaces.components",
    "Writer": "modulate.interfaces.writer",
    "Projection": "modulate.interfaces.writer",
    "Memory": "modulate.interfaces.writer",
    "Mixture": "modulate.interfaces.writer",
    "Dataset": "modulate.interfaces.components",
    "HostInput": "modulate.interfaces.components",
    "InputTransform": "modulate.interfaces.components",
    "Sample": "modulate.interfaces.components",
    "Params": "modulate.interfaces.components",
    "Host": "modulate.hosts.host",
    "ModulateError": "modulate.errors",
    "hookimpl": "modulate.hookspecs",
}

__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str) -> Any:
    """Import public names on first use, so that ``import modulate`` (and the command line) does not
    import torch.
    """
    if name not in _PUBLIC:
        raise AttributeError(f"module 'modulate' has no attribute {name!r}")
    return getattr(importlib.import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)

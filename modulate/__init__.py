"""modulate: let a frozen multimodal LLM listen to a side signal, by zero-initialised residuals on its visual tokens."""

import importlib
from typing import Any

__version__ = "0.1.0"

_PUBLIC = {
    "Modulation": "modulate.modulation",
    "ModulationConfig": "modulate.modulation",
    "ModulatedHost": "modulate.modulated_host",
    "Attachment": "modulate.inject",
    "ClipInput": "modulate.rows",
    "VisualGrid": "modulate.grid",
    "visual_grid": "modulate.grid",
    "Signal": "modulate.signals",
    "SignalEncoder": "modulate.components",
    "SignalFeatures": "modulate.components",
    "Backbone": "modulate.components",
    "FrameFeatures": "modulate.components",
    "Modulator": "modulate.components",
    "Writer": "modulate.writers",
    "Projection": "modulate.writers",
    "Memory": "modulate.writers",
    "Mixture": "modulate.writers",
    "Dataset": "modulate.components",
    "HostInput": "modulate.components",
    "InputTransform": "modulate.components",
    "Sample": "modulate.components",
    "Params": "modulate.components",
    "Host": "modulate.hosts",
    "ModulateError": "modulate.errors",
    "hookimpl": "modulate.hookspecs",
}

__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str) -> Any:
    """Import public names on first use, so that ``import modulate`` (and the command line) does not import torch."""
    if name not in _PUBLIC:
        raise AttributeError(f"module 'modulate' has no attribute {name!r}")
    return getattr(importlib.import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)

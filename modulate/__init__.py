"""Hidden-state modulation of frozen multimodal LLMs by a side signal such as eye gaze.

A small trainable module reads the signal and frame features, and adds zero-initialized residuals
to the visual tokens' hidden states at chosen decoder layers.

What this module exports is supported and follows semantic versioning; everything else may change
in any release.

The core's packages from the bottom up: errors, utils, hookspecs, plugins, interfaces, config,
distributed, data, hosts, modulation, answers, inference, runs, evaluation, training, checks,
sweeps, report, testing, cli. Each imports only from those before it.
"""

import importlib
from typing import Any

__version__ = "0.2.0"

PUBLIC: dict[str, dict[str, str]] = {
    "Ask about your own videos and pictures": {
        "load": "modulate.runs.load_assistant",
        "Assistant": "modulate.inference.assistant",
        "Chat": "modulate.inference.assistant",
        "Answer": "modulate.inference.answer",
        "TextStream": "modulate.inference.text_stream",
        "RawSamples": "modulate.interfaces.signal",
        "Usage": "modulate.config.usage",
    },
    "Attach a modulation to a loaded host": {
        "Modulation": "modulate.modulation.module",
        "ModulationConfig": "modulate.modulation.config",
        "Attachment": "modulate.modulation.attachment",
        "AttachmentReport": "modulate.modulation.attachment",
        "ModulatedHost": "modulate.modulation.attachment",
        "ClipInput": "modulate.modulation.clip_inputs",
        "VisualGrid": "modulate.interfaces.visual_grid",
        "visual_grid": "modulate.interfaces.visual_grid",
        "Frames": "modulate.interfaces.frames",
        "Message": "modulate.interfaces.messages",
        "VideoClip": "modulate.interfaces.messages",
        "Picture": "modulate.interfaces.messages",
        "read_frames": "modulate.data.video",
        "understand": "modulate.hosts.host",
    },
    "Configure a modulation": {
        "ComponentSpec": "modulate.interfaces.params",
        "Injection": "modulate.config.injection",
        "Tokens": "modulate.config.injection",
        "LoraParams": "modulate.config.injection",
    },
    "Train and evaluate recipes": {
        "Recipe": "modulate.config.recipe",
        "load_recipe": "modulate.config.recipe",
        "Pipeline": "modulate.inference.pipeline",
        "Run": "modulate.runs.run",
        "train": "modulate.training.trainer",
        "evaluate": "modulate.evaluation.evaluate",
    },
    "Write plugins": {
        "hookimpl": "modulate.hookspecs",
        "Params": "modulate.interfaces.params",
        "LocalPath": "modulate.interfaces.params",
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
        "Sample": "modulate.interfaces.sample",
        "SampleClip": "modulate.interfaces.sample",
        "Inspection": "modulate.interfaces.inspection",
        "HostInput": "modulate.interfaces.components",
        "InputTransform": "modulate.interfaces.components",
        "Host": "modulate.hosts.host",
        "HostParams": "modulate.hosts.loading",
        "EncodedPrompt": "modulate.hosts.encoding",
    },
    "Test plugins": {
        "SignalContract": "modulate.testing.signals",
        "EncoderContract": "modulate.testing.encoders",
        "BackboneContract": "modulate.testing.backbones",
        "ModulatorContract": "modulate.testing.modulators",
        "DatasetContract": "modulate.testing.datasets",
        "InputContract": "modulate.testing.inputs",
    },
    "Catch errors": {
        "ModulateError": "modulate.errors",
        "AttachmentWarning": "modulate.errors",
        "CheckpointError": "modulate.errors",
        "ComponentError": "modulate.errors",
        "ConditioningError": "modulate.errors",
        "DataError": "modulate.errors",
        "DivergedError": "modulate.errors",
        "HostError": "modulate.errors",
        "Interrupted": "modulate.errors",
        "LockedError": "modulate.errors",
        "MissingFileError": "modulate.errors",
        "PluginError": "modulate.errors",
        "RankError": "modulate.errors",
        "RecipeError": "modulate.errors",
        "SignalError": "modulate.errors",
        "SignalWarning": "modulate.errors",
        "StorageError": "modulate.errors",
        "UnverifiedWarning": "modulate.errors",
        "VideoError": "modulate.errors",
    },
}
"""The supported names by what they are for, each with the module that defines it."""

_MODULE_OF = {name: module for names in PUBLIC.values() for name, module in names.items()}

__all__ = ["__version__", *_MODULE_OF]


def __getattr__(name: str) -> Any:
    """Import public names on first use, so that ``import modulate`` does not import torch."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'modulate' has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULE_OF[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)

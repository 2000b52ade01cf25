"""Checks of what components return, so that errors name the component that broke its interface.

The core makes them where it receives a result. Each raises
:class:`modulate.plugins.InterfaceError`, which the surrounding
:meth:`modulate.plugins.Registry.blame` turns into an error that names component and plugin. Types
and shapes are checked on every call, numbers where the values are at hand anyway.
"""

import itertools
import math
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from modulate.errors import shown
from modulate.interfaces.components import (
    Backbone,
    FrameFeatures,
    HostInput,
    Modulator,
    SignalEncoder,
    SignalFeatures,
)
from modulate.interfaces.frames import Frames
from modulate.interfaces.sample import Sample
from modulate.interfaces.visual_grid import VisualGrid
from modulate.interfaces.writer import Mixture
from modulate.plugins import InterfaceError

DIVERGED = 1e4
"""Weights beyond this are those of a training that diverges: then its numbers are nobody's fault.
"""

ROUNDING = 1e-3
"""Seconds by which a feature's time may lie outside its frames' times."""


# --- the modulation's parts


def check_signal_features(
    result: Any, encoder: SignalEncoder, grids: Sequence[VisualGrid]
) -> SignalFeatures:
    """Return what an encoder's ``forward`` made of clips on ``grids``, if it is sound."""
    if not isinstance(result, SignalFeatures):
        raise InterfaceError(
            f"returned {_kind(result)} from forward; it must return a SignalFeatures(values,"
            " active)."
        )
    steps = sum(grid.steps for grid in grids)
    rows, cols = grids[0].rows, grids[0].cols
    where = f"for {steps} steps of {rows}×{cols} tokens and d_signal {encoder.d_signal}"
    axes = {"step": steps, "token": rows * cols, "d_signal": encoder.d_signal}
    _check_floats("values", result.values, axes, where)
    active: Any = result.active
    if not isinstance(active, Tensor) or active.dtype != torch.bool or active.shape != (steps,):
        raise InterfaceError(
            f"returned `active` as {_describe(active)} from forward; {where} it must be bool of"
            f" shape ({steps},): whether any signal reached each step."
        )
    _check_signal_numbers(result, encoder)
    return result


def _check_signal_numbers(features: SignalFeatures, encoder: SignalEncoder) -> None:
    """Raise where values are not finite, or not 0 at a step without signal."""
    values = features.values.detach()
    if values.is_meta or features.active.is_meta or values.numel() == 0:
        return
    with torch.no_grad():
        largest = torch.stack(torch.aminmax(values.flatten(1), dim=1)).abs().amax(0)
        silent = ~features.active.to(values.device)
        # NaN is not greater than 0, so both questions are asked, in one transfer.
        wrong = torch.stack([~largest.isfinite(), silent & (largest > 0)]).tolist()
    if any(wrong[0]) and not _diverges(encoder):
        raise InterfaceError(
            f"returned values that are not finite from forward, first at step"
            f" {wrong[0].index(True)}. Look for a division by zero where a step has no signal."
        )
    if any(wrong[1]):
        step = wrong[1].index(True)
        raise InterfaceError(
            f"returned values that are not 0 at step {step}, which it calls inactive. Multiply"
            " the values by `active`, leave out biases, or call the step active."
        )


def check_latents(
    result: Any, modulator: Modulator, n_layers: int, signal: SignalFeatures
) -> list[Tensor | Mixture]:
    """Return what a modulator's ``forward`` made of ``signal``, if it is sound."""
    if isinstance(result, Tensor | str) or not isinstance(result, Sequence):
        raise InterfaceError(
            f"returned {_kind(result)} from forward; it must return a list with the latents of"
            f" each of the {n_layers} injected layers."
        )
    if len(result) != n_layers:
        raise InterfaceError(
            f"returned the latents of {len(result)} layers from forward, where {n_layers} layers"
            " are injected; it must return one tensor or Mixture for each, in order (`n_layers`"
            " of the constructor)."
        )
    steps, tokens = signal.values.shape[:2]
    width = modulator.d_latent
    for number, layer in enumerate(result):
        where = f"for {steps} steps of {tokens} tokens and d_latent {width}"
        name = f"latents of injected layer {number}"
        if isinstance(layer, Mixture):
            count = layer.vectors.shape[1] if getattr(layer.vectors, "ndim", 0) == 3 else 0
            axes = {"step": steps, "latent": count, "d_latent": width}
            _check_floats(f"the vectors of the {name}", layer.vectors, axes, where)
            axes = {"step": steps, "token": tokens, "latent": count}
            _check_floats(f"the weights of the {name}", layer.weights, axes, where)
        else:
            axes = {"step": steps, "token": tokens, "d_latent": width}
            _check_floats(f"the {name}", layer, axes, where)
    _check_finite(list(result), modulator)
    return list(result)


def _check_finite(layers: Sequence[Tensor | Mixture], modulator: Modulator) -> None:
    """Raise where a layer's latents are not finite."""
    unique: dict[int, Tensor] = {}
    for layer in layers:
        parts = (layer.weights, layer.vectors) if isinstance(layer, Mixture) else (layer,)
        unique |= {id(part): part.detach() for part in parts}
    tensors = [part for part in unique.values() if not part.is_meta and part.numel()]
    if not tensors:
        return
    with torch.no_grad():
        extremes = [torch.stack(torch.aminmax(part)).float() for part in tensors]
        sound = bool(torch.stack(extremes).isfinite().all())
    if not sound and not _diverges(modulator):
        raise InterfaceError(
            "returned latents that are not finite from forward, although features and signal are."
            " Look for a division by zero or the logarithm of 0 where a step has no signal."
        )


def _diverges(module: nn.Module) -> bool:
    """Return whether the module's own weights explain numbers that are not finite."""
    weights = [weight.detach() for weight in module.parameters() if weight.numel()]
    return any(not bool(weight.abs().max() < DIVERGED) for weight in weights)


def check_residual(result: Any, latents: Tensor, d_model: int) -> Tensor:
    """Return what a writer's ``forward`` wrote for ``latents``, if its shape is right."""
    if not isinstance(result, Tensor) or result.shape != (len(latents), d_model):
        raise InterfaceError(
            f"returned {_describe(result)} from its writer's forward; for {len(latents)} tokens"
            f" and d_model {d_model} the shape must be ({len(latents)}, {d_model}): (token,"
            " d_model)."
        )
    return result


# --- the backbone


def check_frame_features(
    result: Any, backbone: Backbone, frame_times: Sequence[float]
) -> FrameFeatures:
    """Return what a backbone's ``forward`` made of frames at ``frame_times``, if it is sound."""
    if not isinstance(result, FrameFeatures):
        raise InterfaceError(
            f"returned {_kind(result)} from forward; it must return a FrameFeatures(values, times)."
        )
    values: Any = result.values
    axes = "(time, row, col, d_features)"
    if not isinstance(values, Tensor) or values.ndim != 4 or 0 in values.shape:
        raise InterfaceError(
            f"returned values as {_describe(values)} from forward; they must have four axes, none"
            f" of them empty: {axes}."
        )
    if values.shape[3] != backbone.d_features:
        moved = " Its channels are on another axis: permute them." * (
            backbone.d_features in values.shape
        )
        raise InterfaceError(
            f"returned values of shape {tuple(values.shape)} from forward; the last axis must be"
            f" d_features, {backbone.d_features}: {axes}.{moved}"
        )
    if not values.is_floating_point():
        raise InterfaceError(
            f"returned values of {values.dtype} from forward; they must be of a floating-point"
            " dtype."
        )
    _check_times(result.times, len(values), frame_times)
    if not values.is_meta and not bool(torch.stack(torch.aminmax(values)).isfinite().all()):
        raise InterfaceError(
            "returned values that are not finite from forward. If it computes in half precision,"
            " compute in float32."
        )
    return result


def _check_times(times: Any, count: int, frame_times: Sequence[float]) -> None:
    """Raise unless features have ``count`` increasing times that begin among their frames'."""
    advice = "Each must be the mean time (s) of the frames that its features merge."
    if not isinstance(times, tuple) or not all(isinstance(time, int | float) for time in times):
        raise InterfaceError(
            f"returned times as {shown(times)} from forward; they must be a tuple of numbers."
            f" {advice}"
        )
    if len(times) != count:
        raise InterfaceError(
            f"returned features of {count} times with {len(times)} `times` from forward. {advice}"
        )
    if any(not later > earlier for earlier, later in itertools.pairwise(times)):
        raise InterfaceError(
            f"returned times that do not increase from forward: {shown(times)}. {advice}"
        )
    first, last = min(frame_times) - ROUNDING, max(frame_times) + ROUNDING
    # Later ones may lie beyond the last frame: backbones pad short clips, as GazeQwen's does. But
    # no feature merges more than all frames, so none is further from its neighbor than they last.
    longest = max(1.0, last - first)
    steps = itertools.pairwise(times)
    if not first <= times[0] <= last or any(later - time > longest for time, later in steps):
        raise InterfaceError(
            f"returned times from {times[0]:g} to {times[-1]:g} s from forward, for frames from"
            f" {min(frame_times):g} to {max(frame_times):g} s. {advice}"
        )


def check_fingerprint(result: Any) -> str:
    """Return what ``fingerprint`` of a backbone or data set returned, if it is one."""
    if not isinstance(result, str) or not result:
        raise InterfaceError(
            f"returned {shown(result)} from fingerprint; it must return a short text that changes"
            " whenever the result would."
        )
    return result


# --- data sets and inputs


def check_samples(result: Any, split: str) -> list[Sample]:
    """Return what a data set's ``samples`` returned, if it is sound."""
    if not isinstance(result, list):
        raise InterfaceError(
            f"returned {_kind(result)} from samples({split!r}); it must return a list of Sample."
        )
    for number, sample in enumerate(result):
        if not isinstance(sample, Sample):
            raise InterfaceError(
                f"returned {_kind(sample)} as item {number} of samples({split!r}); each must be a"
                " Sample."
            )
        problem = _sample_problem(sample)
        if problem:
            raise InterfaceError(f"returned a sample {sample.id!r} in samples({split!r}) {problem}")
    counts = Counter(sample.id for sample in result)
    repeated = [name for name, count in counts.items() if count > 1]
    if repeated:
        raise InterfaceError(
            f"returned {counts[repeated[0]]} samples with the id {repeated[0]!r} in"
            f" samples({split!r}); ids must be unique, or results and cached inputs would be mixed"
            " up."
        )
    _check_files([clip.file for sample in result for clip in sample.clips], split)
    return result


def _sample_problem(sample: Sample) -> str:
    """Return what is wrong with a sample, as the end of a sentence; "" if nothing is."""
    for name in ("id", "task", "question"):
        if not isinstance(getattr(sample, name), str):
            return f"whose {name} is {_kind(getattr(sample, name))}; it must be a str."
    if not sample.id:
        return "without an id; each sample needs one of its own."
    for name in ("options", "answers"):
        value = getattr(sample, name)
        if not isinstance(value, tuple) or not all(isinstance(item, str) for item in value):
            return f"whose {name} are {shown(value)}; they must be a tuple of str."
    for clip in sample.clips:
        files = [clip.file, *clip.signals.values()]
        if not all(isinstance(file, Path) for file in files):
            return f"with a clip whose files are {shown(files)}; each must be a pathlib.Path."
        window: Any = clip.window
        if not (isinstance(window, tuple) and len(window) == 2 and all(map(_is_number, window))):
            return f"with the window {shown(window)}; it must be (start, end) in seconds."
        if window[1] < window[0]:
            return f"whose window ends before it starts: {window}."
    return ""


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.number) and math.isfinite(value)


def _check_files(files: Collection[Path], split: str) -> None:
    """Raise if no file exists; single missing files are errors of their samples."""
    if not files or any(file.exists() for file in files):
        return
    first = next(iter(files))
    relative = "" if first.is_absolute() else f" Relative paths count from {Path.cwd()}."
    raise InterfaceError(
        f"returned samples in samples({split!r}) of whose {len(files)} files none exists, such as"
        f" {first}.{relative} Correct the data set's parameters, or the paths it makes of them."
    )


def check_host_input(result: Any) -> HostInput:
    """Return what an input transform returned, if it is sound."""
    if not isinstance(result, HostInput):
        raise InterfaceError(
            f"returned {_kind(result)}; it must return a HostInput, such as"
            " `dataclasses.replace(given, text=…)`."
        )
    if not isinstance(result.text, str):
        raise InterfaceError(f"returned {_kind(result.text)} as text; it must be a str.")
    if not isinstance(result.frames, Frames):
        raise InterfaceError(f"returned {_kind(result.frames)} as frames; they must be a Frames.")
    images = result.frames.images
    _check_pixels("frames", images, 4, "(frame, height, width, 3)")
    if len(result.frames.times) != len(images):
        raise InterfaceError(
            f"returned {len(images)} frames with {len(result.frames.times)} times; each frame needs"
            " its time."
        )
    for image in result.images:
        _check_pixels("an image", image, 3, "(height, width, 3)")
    return result


def _check_pixels(name: str, pixels: Any, ndim: int, axes: str) -> None:
    is_array = isinstance(pixels, np.ndarray)
    if not is_array or pixels.dtype != np.uint8 or pixels.ndim != ndim or pixels.shape[-1] != 3:
        raise InterfaceError(
            f"returned {name} as {_describe(pixels)}; RGB must be a uint8 array of shape {axes}."
        )


# --- words


def _check_floats(name: str, value: Any, axes: dict[str, int], where: str) -> None:
    """Raise unless ``value`` is a floating-point tensor of the lengths of ``axes``."""
    shape = tuple(axes.values())
    names = ", ".join(axes)
    if not isinstance(value, Tensor) or tuple(value.shape) != shape:
        hint = ""
        if isinstance(value, Tensor) and sorted(value.shape) == sorted(shape):
            hint = " Its axes are in another order: permute them."
        raise InterfaceError(
            f"returned {name} as {_describe(value)} from forward; {where} the shape must be"
            f" {shape}: ({names}).{hint}"
        )
    if not value.is_floating_point():
        raise InterfaceError(
            f"returned {name} as {_describe(value)} from forward; the dtype must be a"
            " floating-point one."
        )


def _describe(value: Any) -> str:
    """Return dtype and shape of a tensor or array, or the type of anything else."""
    if isinstance(value, Tensor | np.ndarray):
        return f"{str(value.dtype).removeprefix('torch.')} of shape {tuple(value.shape)}"
    return _kind(value)


def _kind(value: Any) -> str:
    """Return the type of a value with its article; "None" for None."""
    if value is None:
        return "None"
    name = type(value).__name__
    return f"{'an' if name[0] in 'aeiouAEIOU' else 'a'} {name}"

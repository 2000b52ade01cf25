"""What callers pass to a conditioning, rows of clips and masks, checked before any work is done.

The result is plain lists and bool tensors.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from modulate import plugins
from modulate.errors import ConditioningError, HostError, PluginError, SignalError, shown
from modulate.interfaces.signal import ANY, Signal
from modulate.interfaces.signal_times import warn_if_outside
from modulate.interfaces.visual_grid import VisualGrid

EXPECTED_ROWS = (
    "For each row of the batch give its clips in order: `[[clip]]` is one row with one clip, "
    "`[]` is a row without clips."
)


@dataclass(frozen=True)
class ClipInput:
    """One clip of a conditioning: its signal, the visual grid that the host used, and its features.

    ``features``: (step, token, d_features). ``signal``: None for a clip without a signal, whose
    tokens get no residual.
    """

    signal: Signal | None
    grid: VisualGrid
    features: Tensor | None = None


Rows = Iterable[Iterable[ClipInput]]


@dataclass(frozen=True)
class ClipRequirements:
    """What a modulation reads of a clip: a kind of signal, and features of a width.

    ``on_meta``: the modulation is on the meta device itself, so the features may be too.
    """

    signal_kind: str
    d_features: int
    on_meta: bool = False


def as_lists(rows: Rows) -> list[list[ClipInput]]:
    """Return ``rows`` as lists; each iterable is read once.

    Raises :class:`ConditioningError` for anything but rows of clips, naming the place.
    """
    lists = [_items(row, f"row {number}") for number, row in enumerate(_items(rows, "rows"))]
    for number, row in enumerate(lists):
        for place, clip in enumerate(row):
            if not isinstance(clip, ClipInput):
                raise ConditioningError(
                    f"Row {number}, clip {place} is {_describe(clip)}, not a ClipInput."
                    f" {EXPECTED_ROWS}"
                )
    return lists


def _items(value: Any, name: str) -> list[Any]:
    """Return the items of an iterable that can be rows or a row."""
    # Iterable, but never meant as a list of clips.
    not_a_list = (ClipInput, str, bytes, Mapping, set, frozenset, Tensor, np.ndarray)
    if isinstance(value, not_a_list) or not isinstance(value, Iterable):
        raise ConditioningError(
            f"{name.capitalize()} must be a list, got {_describe(value)}. {EXPECTED_ROWS}"
        )
    return list(value)


def _describe(value: Any) -> str:
    """Return what an error says of a wrong value."""
    if value is None:
        return "None"
    if isinstance(value, ClipInput):
        return "a ClipInput by itself"
    if isinstance(value, str | bytes | bool | int | float):
        return f"{shown(value)} (a {type(value).__name__})"
    return f"a {type(value).__name__}"


def check_rows(rows: Sequence[Sequence[ClipInput]], requirements: ClipRequirements) -> None:
    """Raise where a clip of ``rows`` does not meet the requirements, naming its row and place.

    Raises :class:`SignalError` for a signal of another kind or with numbers that are not finite,
    :class:`HostError` for features of another shape or dtype, and :class:`ConditioningError` for
    objects of other classes and for features that are not finite.
    """
    with_signal = []
    for number, row in enumerate(rows):
        for place, clip in enumerate(row):
            where = f"Row {number}, clip {place}"
            if not isinstance(clip.grid, VisualGrid):
                raise ConditioningError(
                    f"{where}: its grid is {_describe(clip.grid)}, not a VisualGrid;"
                    " `modulate.visual_grid` makes one."
                )
            # Without a signal, the features are not read.
            if clip.signal is not None:
                _check_signal(where, clip.signal, requirements.signal_kind)
                check_features(where, clip, requirements)
                with_signal.append((where, clip))
    _check_finite(with_signal)


def warn_outside(rows: Sequence[Sequence[ClipInput]], stacklevel: int) -> bool:
    """Warn of the first clip whose signal has events, but none in the clip's time.

    Return whether there is one. ``stacklevel``: as in :func:`warnings.warn`.
    """
    return any(
        warn_if_outside(
            clip.signal,
            (clip.grid.spans[0][0], clip.grid.spans[-1][1]),
            f"Row {number}, clip {place}",
            stacklevel + 2,
        )
        for number, row in enumerate(rows)
        for place, clip in enumerate(row)
    )


def _check_signal(where: str, signal: Any, required_kind: str) -> None:
    if not isinstance(signal, Signal):
        raise ConditioningError(
            f"{where}: its signal is {_describe(signal)}, not a Signal. Read one with its kind's "
            "class, or pass None for a clip without a signal."
        )
    kind = getattr(type(signal), "kind", None)
    if kind not in (None, ANY, required_kind) and not isinstance(signal, _class_of(required_kind)):
        raise SignalError(
            f"{where}: its signal is of the kind {kind!r}, but this modulation's encoder reads "
            f"{required_kind!r}."
        )
    name = _first_not_finite(_attributes(signal))
    if name is not None:
        raise SignalError(
            f"{where}: `{name}` of its {kind} signal holds numbers that are not finite. Leave out "
            "what was not measured."
        )


def _class_of(kind: str) -> type[Signal]:
    """Return the class registered for a kind: its encoders read signals of subclasses too."""
    try:
        signal_class: type[Signal] = plugins.get("signal", kind)
    except PluginError:
        # A kind that only its encoder knows: no signal is an instance of this class.
        return type("Unknown", (Signal,), {})
    return signal_class


def _attributes(signal: Signal) -> dict[str, Any]:
    """Return a signal's attributes by name, those in slots included."""
    slots = [name for cls in type(signal).__mro__ for name in getattr(cls, "__slots__", ())]
    in_slots = {name: getattr(signal, name) for name in slots if hasattr(signal, name)}
    return in_slots | getattr(signal, "__dict__", {})


def _first_not_finite(values: Mapping[str, Any]) -> str | None:
    """Return the name of the first of ``values`` that holds NaN or infinity, or None.

    Signals and mappings inside are searched too.
    """
    for name, value in values.items():
        nested: Mapping[str, Any] = {}
        if isinstance(value, Signal):
            nested = _attributes(value)
        elif isinstance(value, Mapping):
            nested = value
        inner_name = _first_not_finite(nested)
        if inner_name is not None:
            return f"{name}.{inner_name}"
        if not _is_finite(value):
            return name
    return None


def _is_finite(value: Any) -> bool:
    """Return whether all numbers in ``value`` are finite; True if it holds none."""
    if isinstance(value, Tensor):
        return value.is_meta or bool(value.isfinite().all())
    if not isinstance(value, float | list | tuple | np.ndarray):
        return True
    try:
        numbers = np.asarray(value)
    except ValueError:  # a list of items of different lengths
        return all(map(_is_finite, value)) if isinstance(value, list | tuple) else True
    return numbers.dtype.kind not in "fc" or bool(np.isfinite(numbers).all())


def check_features(where: str, clip: ClipInput, requirements: ClipRequirements) -> Tensor:
    """Return a clip's features, (step, token, d_features).

    Raises :class:`HostError`, whose message begins with ``where``, for missing features, another
    shape, and numbers that are not real.
    """
    grid = clip.grid
    features = clip.features
    expected = (grid.steps, grid.tokens_per_step, requirements.d_features)
    if features is not None and not isinstance(features, Tensor):
        raise HostError(
            f"{where}: its features are {_describe(features)}, not a Tensor; `torch.as_tensor`"
            " makes one of an array."
        )
    if features is None or tuple(features.shape) != expected:
        got = None if features is None else tuple(features.shape)
        raise HostError(
            f"{where}: a clip of {grid.steps} steps of {grid.rows}×{grid.cols} needs features of "
            f"shape {expected}, got {got}; `modulate.data.alignment.align` makes them."
        )
    if not features.is_floating_point() or features.layout != torch.strided:
        layout = "" if features.layout == torch.strided else f" of layout {features.layout}"
        raise HostError(
            f"{where}: its features are of {features.dtype}{layout}; they must be dense, of a "
            "floating-point dtype, as the backbone made them."
        )
    if features.is_meta and not requirements.on_meta:
        raise HostError(
            f"{where}: its features are on the meta device, which holds no numbers; compute them "
            "on the CPU or a GPU."
        )
    return features


def _check_finite(clips: Sequence[tuple[str, ClipInput]]) -> None:
    """Raise :class:`ConditioningError` for features that are not finite in fp32.

    ``clips``: each with the place that errors name.
    """
    to_check = [
        (where, clip.features.detach())
        for where, clip in clips
        if clip.features is not None and not clip.features.is_meta
    ]
    if not to_check:
        return
    # Each clip's smallest and largest number tell, in one pass and without a copy. Only the final
    # list waits for the device.
    with torch.no_grad():
        extremes = [
            torch.stack(torch.aminmax(_comparable(features))).float() for _, features in to_check
        ]
        device = extremes[0].device
        is_finite = torch.stack([pair.to(device).isfinite().all() for pair in extremes]).tolist()
    if all(is_finite):
        return
    where, features = to_check[is_finite.index(False)]
    wrong = ~features.float().isfinite()
    step, token, channel = wrong.nonzero()[0].tolist()
    raise ConditioningError(
        f"{where}: {int(wrong.sum())} of its features are not finite in fp32, the first at step "
        f"{step}, token {token}, channel {channel}: "
        f"{float(features[step, token, channel])}. Compute them again."
    )


def _comparable(features: Tensor) -> Tensor:
    """Return ``features`` in a dtype that can be compared: 8-bit floats cannot."""
    return features.float() if features.element_size() == 1 else features


def as_mask(name: str, value: Any, rows: int) -> Tensor:
    """Return a mask that a caller passed as (row, position) bool.

    Args:
        name: its name in errors.
        value: tensor, array or nested list of bool, or of numbers that are all 0 or 1.
        rows: number of rows that it must have.

    Raises :class:`ConditioningError` for anything else.
    """
    mask = _as_tensor(name, value, rows)
    if mask.ndim != 2 or len(mask) != rows:
        raise ConditioningError(
            f"`{name}` must be (row, position) for {rows} rows, got shape {tuple(mask.shape)}."
        )
    if mask.is_meta or mask.layout != torch.strided:
        raise ConditioningError(
            f"`{name}` must be a dense tensor in memory, got one of layout {mask.layout} on "
            f"{mask.device}."
        )
    if mask.dtype == torch.bool:
        return mask
    wrong = (mask != 0) & (mask != 1)  # NaN is neither
    if bool(wrong.any()):
        row, position = wrong.nonzero()[0].tolist()
        raise ConditioningError(
            f"`{name}` must hold nothing but 0 and 1 (or bool); row {row}, position {position} is "
            f"{mask[row, position].item()}."
        )
    return mask == 1


def _as_tensor(name: str, value: Any, rows: int) -> Tensor:
    if not isinstance(value, Tensor | np.ndarray | list | tuple):
        raise ConditioningError(
            f"`{name}` must be a tensor, (row, position) bool for {rows} rows, got"
            f" {_describe(value)}."
        )
    try:
        return value if isinstance(value, Tensor) else torch.as_tensor(np.asarray(value))
    except (TypeError, ValueError) as error:  # ragged, or not numbers
        raise ConditioningError(
            f"`{name}` must be (row, position) bool for {rows} rows, all of one length: {error}"
        ) from error

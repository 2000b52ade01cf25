"""Rows of clips as users pass them, and masks beside them: one place that says what is accepted.

Everything is checked before any work is done. What comes out is plain lists and bool tensors.
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
from modulate.interfaces.visual_grid import VisualGrid

WANTED = (
    "For each row of the batch give its clips in order: `[[clip]]` is one row with one clip, "
    "`[]` a row without."
)


@dataclass(frozen=True)
class ClipInput:
    """One clip of a conditioning: its signal, the visual grid that the host used, and its features.

    ``features``: (step, token, d_features). ``signal`` None: a clip without any signal; its tokens
    get no residual.
    """

    signal: Signal | None
    grid: VisualGrid
    features: Tensor | None = None


Rows = Iterable[Iterable[ClipInput]]


@dataclass(frozen=True)
class ClipRequirements:
    """What a modulation reads of a clip: a signal of a kind, features of a width.

    ``meta``: it has no memory itself, and needs none to be read.
    """

    signal_kind: str
    d_features: int
    meta: bool = False


def listed(rows: Rows) -> list[list[ClipInput]]:
    """Return ``rows`` as lists, each iterable read once.

    Raises :class:`ConditioningError` for anything but clips in rows, naming the row and what is
    there.
    """
    found = [_row(r, row) for r, row in enumerate(_items(rows, "rows"))]
    for r, row in enumerate(found):
        for c, clip in enumerate(row):
            if not isinstance(clip, ClipInput):
                raise ConditioningError(
                    f"Row {r}, clip {c} is {_named(clip)}, no ClipInput. {WANTED}"
                )
    return found


def _row(r: int, row: Any) -> list[Any]:
    return _items(row, f"row {r}")


def _items(value: Any, what: str) -> list[Any]:
    """Return the items of an iterable that can be rows or a row.

    Texts, mappings, sets and tensors can be iterated over, but are neither.
    """
    wrong = isinstance(
        value, ClipInput | str | bytes | Mapping | set | frozenset | Tensor | np.ndarray
    )
    if wrong or not isinstance(value, Iterable):
        raise ConditioningError(
            f"{what.capitalize()} must be a list, got {_named(value)}. {WANTED}"
        )
    return list(value)


def _named(value: Any) -> str:
    if value is None:
        return "None"
    if isinstance(value, ClipInput):
        return "a ClipInput by itself"
    if isinstance(value, str | bytes | bool | int | float):
        return f"{shown(value)} (a {type(value).__name__})"
    return f"a {type(value).__name__}"


def check(rows: Sequence[Sequence[ClipInput]], needs: ClipRequirements) -> None:
    """Raise where a clip of ``rows`` is not what the modulation reads, naming its row and place.

    Raises :class:`SignalError` for a signal of another kind or with numbers that are not finite,
    :class:`HostError` for features of another shape, :class:`ConditioningError` for what is no
    signal, grid or features, and for features that are not finite.
    """
    named = [
        (f"Row {r}, clip {c}", clip) for r, row in enumerate(rows) for c, clip in enumerate(row)
    ]
    heard = []
    for where, clip in named:
        if not isinstance(clip.grid, VisualGrid):
            raise ConditioningError(
                f"{where}: its grid is {_named(clip.grid)}, no VisualGrid; `modulate.visual_grid` "
                "makes one."
            )
        if clip.signal is not None:
            _check_signal(where, clip.signal, needs.signal_kind)
            check_features(where, clip, needs)
            heard.append((where, clip))
    _check_finite(heard)


def _check_signal(where: str, signal: Any, kind: str) -> None:
    if not isinstance(signal, Signal):
        raise ConditioningError(
            f"{where}: its signal is {_named(signal)}, no Signal. Read one with its kind's class; "
            "None is a clip without."
        )
    own = getattr(type(signal), "kind", None)
    if own not in (None, ANY, kind) and not isinstance(signal, _class_of(kind)):
        raise SignalError(
            f"{where}: its signal is of the kind {own!r}, but this modulation's encoder reads "
            f"{kind!r}."
        )
    name = _not_finite(_parts(signal))
    if name is not None:
        raise SignalError(
            f"{where}: `{name}` of its {own} signal holds numbers that are not finite. Leave out "
            "what was not measured."
        )


def _class_of(kind: str) -> type[Signal]:
    """Return the class registered for a kind: its encoders read signals of a subclass too."""
    try:
        found: type[Signal] = plugins.get("signal", kind)
    except PluginError:  # a kind that only its encoder knows
        return type("Unknown", (Signal,), {})
    return found


def _parts(signal: Signal) -> dict[str, Any]:
    """Return what a signal is made of, by name."""
    slots = [name for cls in type(signal).__mro__ for name in getattr(cls, "__slots__", ())]
    return {name: getattr(signal, name) for name in slots if hasattr(signal, name)} | getattr(
        signal, "__dict__", {}
    )


def _not_finite(parts: Mapping[str, Any]) -> str | None:
    """Return the name of the first of ``parts`` that holds NaN or infinity; None where none does.

    Parts of parts are looked at too.
    """
    for name, value in parts.items():
        inside = (
            _parts(value)
            if isinstance(value, Signal)
            else value
            if isinstance(value, Mapping)
            else {}
        )
        found = _not_finite(inside)
        if found is not None:
            return f"{name}.{found}"
        if not _finite(value):
            return name
    return None


def _finite(value: Any) -> bool:
    """Return whether the numbers in ``value`` are finite; what holds none is."""
    if isinstance(value, Tensor):
        return value.is_meta or bool(value.isfinite().all())
    if not isinstance(value, float | list | tuple | np.ndarray):
        return True
    try:
        numbers = np.asarray(value)
    except ValueError:  # a list of things of several lengths
        return all(map(_finite, value)) if isinstance(value, list | tuple) else True
    return numbers.dtype.kind not in "fc" or bool(np.isfinite(numbers).all())


def check_features(where: str, clip: ClipInput, needs: ClipRequirements) -> Tensor:
    """Return a clip's features, (step, token, d_features).

    Raises :class:`HostError`, whose message begins with ``where``, for another shape, numbers that
    are not real, or none at all.
    """
    grid = clip.grid
    features = clip.features
    expected = (grid.steps, grid.tokens_per_step, needs.d_features)
    if features is not None and not isinstance(features, Tensor):
        raise HostError(
            f"{where}: its features are {_named(features)}, no Tensor; `torch.as_tensor` makes one "
            "of an array."
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
    if features.is_meta and not needs.meta:
        raise HostError(
            f"{where}: its features are on the meta device, which holds no numbers; compute them "
            "on the CPU or a GPU."
        )
    return features


def _check_finite(clips: Sequence[tuple[str, ClipInput]]) -> None:
    """Raise :class:`ConditioningError` for features that are not finite, or not so in fp32.

    Each clip's smallest and largest number tell, in one pass and without a copy; the device is
    waited for once.
    """
    read = [
        (where, clip.features.detach())
        for where, clip in clips
        if clip.features is not None and not clip.features.is_meta
    ]
    if not read:
        return
    with torch.no_grad():
        ends = [torch.stack(torch.aminmax(_comparable(features))).float() for _, features in read]
        fine = torch.stack([pair.to(ends[0].device).isfinite().all() for pair in ends]).tolist()
    if all(fine):
        return
    where, features = read[fine.index(False)]
    wrong = ~features.float().isfinite()
    step, token, channel = wrong.nonzero()[0].tolist()
    raise ConditioningError(
        f"{where}: {int(wrong.sum())} of its features are not finite in fp32, the first at step "
        f"{step}, token {token}, channel {channel}: "
        f"{float(features[step, token, channel])}. Compute them again."
    )


def _comparable(features: Tensor) -> Tensor:
    return (
        features.float() if features.element_size() == 1 else features
    )  # numbers of 8 bits cannot be compared


def mask_of(name: str, value: Any, rows: int) -> Tensor:
    """Return a mask that a user passed as (row, position) bool.

    Args:
        name: what it is called in errors.
        value: tensor, array or nested list of bool, or of numbers that are all 0 or 1.
        rows: rows that it must have.

    Raises :class:`ConditioningError` for anything else.
    """
    if not isinstance(value, Tensor | np.ndarray | list | tuple):
        raise ConditioningError(
            f"`{name}` must be a tensor, (row, position) bool for {rows} rows, got {_named(value)}."
        )
    try:
        mask = value if isinstance(value, Tensor) else torch.as_tensor(np.asarray(value))
    except (TypeError, ValueError) as error:  # ragged, or no numbers
        raise ConditioningError(
            f"`{name}` must be (row, position) bool for {rows} rows, all of one length: {error}"
        ) from error
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

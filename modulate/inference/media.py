"""Videos, pictures and signals as users have them, as parts of a conversation."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from modulate import plugins
from modulate.config.sections import Sampling
from modulate.data.feature_extractor import frame_times_of
from modulate.data.picture import from_pil, is_picture, read_picture
from modulate.data.video import probe, read_frames
from modulate.errors import MissingFileError, RecipeError, SignalError, VideoError, near_matches
from modulate.interfaces.frames import Frames
from modulate.interfaces.messages import Picture, VideoClip
from modulate.interfaces.multi_signal import MultiSignal, kinds_of
from modulate.interfaces.signal import RawSamples, Signal
from modulate.interfaces.signal_checks import call, check_signal
from modulate.interfaces.signal_times import warn_if_outside
from modulate.utils.atomic_files import content_hash

Media = Any
"""A path of a video or picture, a PIL image, a (height, width, 3) uint8 array, or Frames."""


@dataclass(frozen=True)
class Visual:
    """A clip or picture of a conversation with its signal.

    Attributes:
        content: what the host sees.
        frames: what the backbone sees; a picture is a single frame.
        signal: the part of the signal that belongs to it; None for no residual.
        key: equal for equal frames, so that their features need not be computed again; None if
            they come from memory.
    """

    content: VideoClip | Picture
    frames: Frames
    signal: Signal | None
    key: Hashable | None = None


def load_visual(
    media: Media,
    signals: Mapping[str, Any],
    kind: str,
    sampling: Sampling,
    window: tuple[float, float] | None = None,
    at: float | None = None,
) -> Visual:
    """Return ``media`` as part of a conversation.

    Args:
        media: see :data:`Media`.
        signals: a signal by kind: a file, a :class:`Signal`, :class:`RawSamples`; None everywhere
            for no signal.
        kind: the kind, or ``a+b``, that the modulation reads.
        sampling: which frames of a video are shown.
        window: (start, end) of the clip in seconds.
        at: its end, if no window is given: the clip is as long as ``sampling`` covers, and ends
            with the video by default.

    Raises :class:`VideoError`, :class:`SignalError`, :class:`MissingFileError`, and
    :class:`RecipeError` for signals of other kinds.
    """
    signal = read_signal(signals, kind)
    if isinstance(media, Frames):
        return _frames_visual(media, signal, window)
    picture = _as_picture(media)
    if picture is not None:
        if at is not None:
            raise VideoError("`at` is a time within a video; a picture has none.")
        return _picture_visual(picture, signal, window)
    path = Path(media)
    if window is None:
        window = _window_of(path, sampling, at)
    times = frame_times_of(sampling, window)
    frames = read_frames(path, times)
    own = _own_part(signal, window, str(path))
    key = (content_hash(path), frames.times)
    return Visual(VideoClip(frames, window), frames, own, key)


def _own_part(signal: Signal | None, window: tuple[float, float], what: str) -> Signal | None:
    """Return the events during ``window``; warn where there are events, but none then."""
    # Seen from the user: `load_visual`, its caller, the front's method, and the user's line.
    warn_if_outside(signal, window, what, stacklevel=5)
    return None if signal is None else call(signal, "within", *window)


def _window_of(path: Path, sampling: Sampling, at: float | None) -> tuple[float, float]:
    info = probe(path)
    if at is None:
        at = max(0.0, info.duration - 1 / info.fps)  # the time of the last frame
    # The last frame stays on screen for one frame interval.
    if not 0 <= at <= info.duration + 1 / info.fps:
        raise VideoError(
            f"The question at {at:g} s lies outside {path}, which lasts {info.duration:.2f} s."
        )
    return (max(0.0, at - sampling.seconds), at)


def _frames_visual(
    frames: Frames, signal: Signal | None, window: tuple[float, float] | None
) -> Visual:
    if frames.images.ndim != 4 or frames.images.shape[-1] != 3 or frames.images.dtype != np.uint8:
        raise VideoError(
            "Frames are (frame, height, width, 3) uint8 RGB with a time each; got"
            f" {frames.images.dtype} of shape {frames.images.shape}."
        )
    if len(frames.times) != len(frames.images):
        raise VideoError(f"{len(frames.images)} frames have {len(frames.times)} times.")
    window = window or (frames.times[0], frames.times[-1])
    own = _own_part(signal, window, "The clip")
    return Visual(VideoClip(frames, window), frames, own)


def _picture_visual(
    image: NDArray[np.uint8], signal: Signal | None, window: tuple[float, float] | None
) -> Visual:
    # All of its signal belongs to a picture: it was looked at from the first event to the last.
    window = window or (signal and signal.span()) or (0.0, 0.0)
    own = _own_part(signal, window, "The picture")
    return Visual(Picture(image, window), Frames(image[None], (window[1],)), own)


def _as_picture(media: Media) -> NDArray[np.uint8] | None:
    """Return a picture's pixels, or None for a path of something else."""
    if isinstance(media, str | PathLike):
        path = Path(media)
        return read_picture(path) if is_picture(path) else None
    if isinstance(media, np.ndarray):
        if media.ndim != 3 or media.shape[-1] != 3 or media.dtype != np.uint8:
            raise VideoError(
                f"An array is one picture, (height, width, 3) uint8 RGB; got {media.dtype} of shape"
                f" {media.shape}. Pass frames of a video as modulate.Frames(images, times)."
            )
        return media
    if hasattr(media, "convert") and hasattr(media, "size"):
        return from_pil(media)
    raise VideoError(
        f"{type(media).__name__} is nothing to look at: give a path, a PIL image, a (height, width,"
        " 3) uint8 array, or modulate.Frames."
    )


# --- signals


def read_signal(signals: Mapping[str, Any], kind: str) -> Signal | None:
    """Return the signal of a kind, or ``a+b``, from what a user gave by kind; None if all are None.

    Raises :class:`RecipeError` for a kind that is not read or is missing.
    """
    kinds = kinds_of(kind)
    unread = sorted(signals.keys() - kinds.keys())
    if unread:
        raise RecipeError(
            f"This modulation does not read the signal {unread[0]!r}."
            f" {near_matches(unread[0], kinds)}"
        )
    missing = [name for name in kinds if name not in signals]
    if missing:
        raise RecipeError(
            f"This modulation reads the signal {missing[0]!r}: pass {missing[0]}=…, a file or a"
            f" signal, or {missing[0]}=None for an answer without it."
        )
    parts = {name: _one_signal(name, kinds[name], signals[name]) for name in kinds}
    given = {name: part for name, part in parts.items() if part is not None}
    if not given:
        return None
    lacking = sorted(kinds.keys() - given.keys())
    if lacking:
        raise SignalError(
            f"{lacking[0]} is None and {sorted(given)[0]} is not. Where one of several signals was"
            " not measured, pass an empty one of its kind."
        )
    return given[kind] if len(kinds) == 1 else MultiSignal(given)


def _one_signal(name: str, kind: type[Signal], value: Any) -> Signal | None:
    if value is None or isinstance(value, Signal):
        return value
    with plugins.registry().blame("signal", name, "reading"):
        if isinstance(value, RawSamples):
            return check_signal(kind.from_samples(value), kind, "from_samples")
        if isinstance(value, str | PathLike):
            path = Path(value)
            if not path.is_file():
                raise MissingFileError(f"The signal file {path} does not exist.")
            return check_signal(kind.read(path), kind, f"read of {path}")
    raise SignalError(
        f"{name}: {type(value).__name__} is no signal. Give a file, a {kind.__name__}, or"
        " modulate.RawSamples(values, rate) for samples of a recorder."
    )


def paired(
    media: Media | Sequence[Media], signals: Mapping[str, Any]
) -> list[tuple[Media, dict[str, Any]]]:
    """Return each of one or several media with its own signals.

    For several, each signal is a list with one item per medium.
    """
    if not isinstance(media, list | tuple):
        return [(media, dict(signals))]
    for name, values in signals.items():
        is_list = isinstance(values, list | tuple)
        if values is not None and not (is_list and len(values) == len(media)):
            raise SignalError(
                f"{len(media)} clips or pictures need {name}= a list of as many signals, with None"
                " for one without."
            )
    return [
        (medium, {name: None if values is None else values[i] for name, values in signals.items()})
        for i, medium in enumerate(media)
    ]

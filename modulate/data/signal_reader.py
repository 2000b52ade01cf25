"""The signals of samples: read each file once, and return the part that belongs to a sample."""

import warnings
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from modulate import plugins
from modulate.config.recipe import Recipe
from modulate.data.feature_extractor import FeatureExtractor
from modulate.data.video import probe
from modulate.errors import DataError, MissingFileError, ModulateError, SignalWarning
from modulate.interfaces.multi_signal import MultiSignal, kinds_of
from modulate.interfaces.sample import Sample, SampleClip
from modulate.interfaces.signal import Signal
from modulate.interfaces.signal_checks import call, check_signal
from modulate.interfaces.signal_times import outside_of


class SignalReader:
    """Reads the signals that a recipe names.

    ``extractor``: its data set says which part of a file belongs to a sample.

    Attributes:
        kinds: class of each kind that the recipe reads, by name.
    """

    def __init__(self, recipe: Recipe, extractor: FeatureExtractor) -> None:
        self.kinds: dict[str, type[Signal]] = kinds_of(recipe.signal)
        self._recipe = recipe
        self._extractor = extractor
        self._files: dict[Path, Signal] = {}
        # By video and signal files: many samples share them.
        self._off_clock: dict[tuple[Path, ...], str | None] = {}

    def read(self, sample: Sample, clip: SampleClip) -> Signal | None:
        """Return the signal of a clip of ``sample`` within its window; None if it has none.

        Several kinds make a :class:`MultiSignal`.

        Raises:
            DataError: the clip lacks a kind that the recipe reads.
            MissingFileError: the signal's file does not exist.
        """
        if not sample.has_signals(clip):
            return None
        self.off_clock(clip)
        located = replace(clip, window=self.window(clip))
        with self._recipe.data.blame("dataset", "clip_signal"):
            parts = {kind: self._part(kind, sample, located) for kind in self.kinds}
        return parts[self._recipe.signal] if len(parts) == 1 else MultiSignal(parts)

    def _part(self, kind: str, sample: Sample, clip: SampleClip) -> Signal:
        """Return the part of a clip's signal of one kind that belongs to it."""
        signal = self._read_file(kind, clip)
        part = self._extractor.dataset.clip_signal(sample, clip, signal)
        if not isinstance(part, self.kinds[kind]):
            # Where the kind's own method is at fault, this names the kind, not the data set.
            call(signal, "within", *clip.window)
        return check_signal(part, self.kinds[kind], "clip_signal")

    def window(self, clip: SampleClip) -> tuple[float, float]:
        """Return a clip's (start, end) in seconds; of a picture without one, 0 to its signal's end.

        Raises :class:`DataError` if the kind of signal does not know its end.
        """
        if not clip.is_image or clip.window != (0.0, 0.0) or not clip.signals:
            return clip.window
        end = 0.0
        for kind in self.kinds:
            signal = self._read_file(kind, clip)
            span = signal.span()
            if span is None and len(signal):
                raise DataError(
                    f"the picture {clip.file} has no window, and signals of the kind {kind!r} do"
                    " not know where they end. Give the picture's window in seconds."
                )
            end = max(end, span[1] if span else 0.0)
        return (0.0, end)

    def off_clock(self, clip: SampleClip) -> str | None:
        """Return how a clip's signal lies outside of its whole video, or None if it does not.

        Warns (:class:`SignalWarning`) of each such file once. Pictures have no clock of their own.
        """
        files = tuple(clip.signals[kind] for kind in self.kinds if kind in clip.signals)
        key = (clip.file, *files)
        if key not in self._off_clock:
            self._off_clock[key] = None if clip.is_image else self._outside_video(clip)
        return self._off_clock[key]

    def _outside_video(self, clip: SampleClip) -> str | None:
        # Looked at for every video, but it is the frames' reader that refuses an unreadable one.
        with suppress(ModulateError):
            info = probe(clip.file)
            end = info.duration + 1 / info.fps
            for kind in self.kinds:
                found = outside_of(self._read_file(kind, clip), 0.0, end)
                if found is not None:
                    text = (
                        f"{clip.signals[kind]}: {found}, the time of {clip.file}. Is it on another"
                        " clock? Times must be seconds from the video's first frame."
                    )
                    warnings.warn(text, SignalWarning, stacklevel=2)
                    return text
        return None

    def _read_file(self, kind: str, clip: SampleClip) -> Signal:
        path = clip.signals.get(kind)
        if path is None:
            available = ", ".join(clip.signals) or "none"
            raise DataError(f"{clip.file.name} has no {kind!r} signal; the sample has {available}.")
        # Many samples share a file: a recording of minutes holds dozens of questions.
        if path not in self._files:
            if not path.exists():
                raise MissingFileError(f"the signal file {path} does not exist.")
            called = f"read of {path}"
            with plugins.registry().blame("signal", kind, called):
                cls = self.kinds[kind]
                self._files[path] = check_signal(cls.read(path), cls, called)
        return self._files[path]

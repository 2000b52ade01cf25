"""The signals of samples: read each file once, and return the part that belongs to a sample."""

from pathlib import Path

from modulate import plugins
from modulate.config.recipe import Recipe
from modulate.data.feature_extractor import FeatureExtractor
from modulate.errors import DataError, MissingFileError
from modulate.interfaces.components import Sample
from modulate.interfaces.multi_signal import MultiSignal, kinds_of
from modulate.interfaces.signal import Signal


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

    def read(self, sample: Sample) -> Signal:
        """Return the sample's signal within its window, a :class:`MultiSignal` for several kinds.

        Raises:
            DataError: the sample lacks a kind that the recipe reads.
            MissingFileError: the signal's file does not exist.
        """
        dataset = self._extractor.dataset
        with self._recipe.data.blame("dataset", "clip_signal"):
            parts = {
                kind: dataset.clip_signal(sample, self._read_file(kind, sample))
                for kind in self.kinds
            }
        return parts[self._recipe.signal] if len(parts) == 1 else MultiSignal(parts)

    def _read_file(self, kind: str, sample: Sample) -> Signal:
        path = sample.signals.get(kind)
        if path is None:
            available = ", ".join(sample.signals) or "none"
            raise DataError(f"there is no {kind!r} signal; the sample has {available}.")
        # Many samples share a file: a recording of minutes holds dozens of questions.
        if path not in self._files:
            if not path.exists():
                raise MissingFileError(f"the signal file {path} does not exist.")
            with plugins.registry().blame("signal", kind, f"read of {path}"):
                self._files[path] = self.kinds[kind].read(path)
        return self._files[path]

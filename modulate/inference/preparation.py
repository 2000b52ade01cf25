"""Preparation of a sample: decoded frames, encoded prompt, aligned frame features, signal."""

import threading
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from modulate.config.recipe import Recipe
from modulate.data.alignment import align
from modulate.data.feature_extractor import FeatureExtractor, apply_clock, gray_frames
from modulate.data.signal_reader import SignalReader
from modulate.errors import ConditioningError, ModulateError
from modulate.hosts.host import EncodedPrompt
from modulate.inference.prompts import PromptEncoder
from modulate.interfaces.components import HostInput, InputTransform, Sample
from modulate.interfaces.frames import Frames
from modulate.interfaces.multi_signal import MultiSignal
from modulate.interfaces.signal import Signal
from modulate.interfaces.visual_grid import VisualGrid
from modulate.modulation.clip_inputs import ClipInput
from modulate.utils.lru_cache import LRUCache


@dataclass(frozen=True)
class PreparedSample:
    """A sample ready for the host.

    Attributes:
        sample: the question and its clip.
        inputs: model inputs of batch size 1.
        grid: visual grid of the clip; None if the sample was prepared for the bare host.
        features: (step, token, d_features), aligned to ``grid``; None if ``grid`` is.
        signal: the clip's own signal.
        options: (option,) token id of every answer to be scored.
    """

    sample: Sample
    inputs: dict[str, Tensor]
    grid: VisualGrid | None
    features: Tensor | None
    signal: Signal
    options: Tensor

    def clip(self, signal: Signal | None) -> ClipInput:
        """Return the conditioning of this clip with ``signal``.

        Raises :class:`ConditioningError` if the sample was prepared for the bare host.
        """
        if self.grid is None:
            raise ConditioningError(
                f"Sample {self.sample.id} was prepared for the bare host, which cannot be"
                " conditioned."
            )
        return ClipInput(signal, self.grid, self.features)

    @property
    def nbytes(self) -> int:
        """Bytes of its inputs and features."""
        tensors = list(self.inputs.values())
        if self.features is not None:
            tensors.append(self.features)
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


ReadySample = tuple[PreparedSample, list[ClipInput]]
"""A prepared sample and the clips that it is conditioned with: one, or none without residual."""


class SamplePreparer:
    """Prepares a recipe's samples, and caches them in memory up to ``memory_bytes``.

    Safe for several threads.
    """

    def __init__(
        self,
        recipe: Recipe,
        extractor: FeatureExtractor,
        signals: SignalReader,
        prompts: PromptEncoder,
        memory_bytes: int,
    ) -> None:
        self._recipe = recipe
        self._extractor = extractor
        self._signals = signals
        self._prompts = prompts
        self._cache: LRUCache[tuple[str, str, bool], PreparedSample] = LRUCache(
            memory_bytes, lambda prepared: prepared.nbytes
        )
        # Processors and tokenizers are not thread-safe, and the training loop prepares samples in
        # a thread of its own while the main thread may prepare others.
        self._lock = threading.Lock()

    @cached_property
    def input_transforms(self) -> dict[str, InputTransform]:
        """The recipe's ``evaluation.inputs``, by name; built at first use."""
        specs = self._recipe.evaluation.inputs
        return {name: spec.build("input") for name, spec in specs.items()}

    def prepare(self, sample: Sample, view: str = "own", training: bool = False) -> PreparedSample:
        """Return ``sample`` decoded, encoded and aligned; see :meth:`Pipeline.prepare`."""
        key = (sample.id, view, training)
        cached = self._cache.get(key)
        if cached is not None:
            return cached
        with self._lock:
            # Another thread may have prepared it while this one waited for the lock.
            cached = self._cache.get(key)
            if cached is not None:
                return cached
            try:
                prepared = self._prepare(sample, view, training)
            except ModulateError as error:
                raise type(error)(f"Sample {sample.id}: {error}") from error
            self._cache.put(key, prepared)
            return prepared

    def _prepare(self, sample: Sample, view: str, training: bool) -> PreparedSample:
        with self._recipe.data.blame("dataset", "prompt"):
            text = self._extractor.dataset.prompt(sample, self._recipe.answer)
        frames = None
        if view != "text":
            times = self._extractor.times(sample, training)
            frames = self._extractor.clip_reader.read(sample.video, times)
        signal = None
        grid = None
        features = None
        if frames is None:
            encoded = self._prompts.encode(None, text, sample.window)
        elif view in self._recipe.evaluation.inputs:
            signal = self._signals.read(sample)
            encoded = self._encode_transformed(view, HostInput(frames, text), signal, sample)
        else:
            gray = view == "gray"
            frames = gray_frames(frames) if gray else frames
            encoded = self._prompts.encode_clip(frames, text, sample.window)
            grid, features = self._align(sample, frames, encoded, gray)
        if signal is None:
            signal = self._signals.read(sample)
        options = self._prompts.option_ids(sample)
        return PreparedSample(sample, encoded.inputs, grid, features, signal, options)

    def _align(
        self, sample: Sample, frames: Frames, encoded: EncodedPrompt, gray: bool
    ) -> tuple[VisualGrid, Tensor]:
        """Return the clip's visual grid by the recipe's clock, and its features on that grid."""
        sampling = self._recipe.sampling
        grid = apply_clock(sampling, sample.window, encoded.grid, len(frames.times))
        raw = self._extractor.raw_features(sample.video, frames, gray)
        return grid, align(raw, grid, sampling.alignment, sampling.antialias).cpu()

    def _encode_transformed(
        self, name: str, host_input: HostInput, signal: Signal, sample: Sample
    ) -> EncodedPrompt:
        """Encode the user's turn after the input transform ``name`` has put the signal into it."""
        transform = self.input_transforms[name]
        if isinstance(signal, MultiSignal):
            signal = signal.parts[transform.signal_kind]
        with self._recipe.evaluation.inputs[name].blame("input", "call"):
            changed = transform(host_input, signal, sample.window)
        return self._prompts.encode(changed.frames, changed.text, sample.window, changed.images)

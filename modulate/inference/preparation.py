"""Preparation of a sample: decoded frames, encoded prompt, aligned frame features, signal."""

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from modulate.config.recipe import Recipe
from modulate.data.alignment import align
from modulate.data.feature_extractor import FeatureExtractor, apply_clock, gray_frames
from modulate.data.signal_reader import SignalReader
from modulate.errors import ConditioningError, DataError, ModulateError
from modulate.hosts.encoding import EncodedPrompt
from modulate.inference.prompts import PromptEncoder
from modulate.interfaces.components import HostInput, InputTransform
from modulate.interfaces.frames import Frames
from modulate.interfaces.messages import Picture, VideoClip
from modulate.interfaces.multi_signal import MultiSignal
from modulate.interfaces.result_checks import check_host_input
from modulate.interfaces.sample import Sample, SampleClip
from modulate.interfaces.signal import Signal
from modulate.interfaces.visual_grid import VisualGrid
from modulate.modulation.clip_inputs import ClipInput
from modulate.utils.lru_cache import LRUCache


@dataclass(frozen=True)
class PreparedClip:
    """What a modulation reads of a clip.

    Attributes:
        grid: the clip's visual grid.
        features: (step, token, d_features), aligned to ``grid``.
        signal: the clip's own signal; None if it has none, so that its tokens get no residual.
        window: (start, end) in seconds.
    """

    grid: VisualGrid
    features: Tensor
    signal: Signal | None
    window: tuple[float, float]


@dataclass(frozen=True)
class PreparedSample:
    """A sample ready for the host.

    Attributes:
        sample: the question and its clips.
        inputs: model inputs of batch size 1.
        clips: the sample's clips, in its order; empty if it was prepared for the bare host.
        answers: (token,) ids of every answer to be scored: of each option, or of the answer in
            text that is trained.
    """

    sample: Sample
    inputs: dict[str, Tensor]
    clips: tuple[PreparedClip, ...]
    answers: tuple[Tensor, ...]

    @property
    def options(self) -> Tensor:
        """(option,) first token id of every answer to be scored."""
        return torch.stack([answer[0] for answer in self.answers])

    @property
    def signals(self) -> list[Signal | None]:
        """Its clips' own signals."""
        return [clip.signal for clip in self.clips]

    def clip_inputs(self, signals: Sequence[Signal | None] | None = None) -> list[ClipInput]:
        """Return the conditioning of its clips with ``signals``, by default their own.

        Raises :class:`ConditioningError` if the sample was prepared for the bare host.
        """
        if not self.clips:
            raise ConditioningError(
                f"Sample {self.sample.id} was prepared for the bare host, which cannot be"
                " conditioned."
            )
        return [
            ClipInput(signal, clip.grid, clip.features)
            for clip, signal in zip(
                self.clips, self.signals if signals is None else signals, strict=True
            )
        ]

    @property
    def nbytes(self) -> int:
        """Bytes of its inputs and features."""
        tensors = [*self.inputs.values(), *(clip.features for clip in self.clips)]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


ReadySample = tuple[PreparedSample, list[ClipInput]]
"""A prepared sample and what its clips are conditioned with; no clips for no residual."""


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

    def answer_ids(self, sample: Sample) -> tuple[Tensor, ...]:
        """Return the (token,) ids of a sample's answers, without reading its clips.

        Raises :class:`DataError` like :meth:`prepare`, with the sample's id in front.
        """
        with self._lock:
            try:
                return self._prompts.answer_ids(sample, self._text(sample))
            except ModulateError as error:
                raise type(error)(f"Sample {sample.id}: {error}") from error

    def _text(self, sample: Sample) -> str:
        with self._recipe.data.blame("dataset", "prompt"):
            return self._extractor.dataset.prompt(sample, self._recipe.answer)

    def _prepare(self, sample: Sample, view: str, training: bool) -> PreparedSample:
        text = self._text(sample)
        # Read under every view: a sample without its signal fails under every condition alike.
        signals = [self._signals.read(sample, clip) for clip in sample.clips]
        clips: tuple[PreparedClip, ...] = ()
        if view == "text":
            encoded = self._prompts.encode([text])
        elif view in self._recipe.evaluation.inputs:
            encoded = self._encode_transformed(view, sample, text, signals[0], training)
        else:
            gray = view == "gray"
            shown = [self._frames(clip, gray, training) for clip in sample.clips]
            windows = [self._signals.window(clip) for clip in sample.clips]
            content = map(_as_content, sample.clips, shown, windows)
            encoded = self._prompts.encode_sample([*content, text])
            clips = tuple(
                self._align(*parts, gray)
                for parts in zip(sample.clips, shown, encoded.grids, signals, windows, strict=True)
            )
        answers = self._prompts.answer_ids(sample, text)
        return PreparedSample(sample, encoded.inputs, clips, answers)

    def _frames(self, clip: SampleClip, gray: bool, training: bool) -> Frames:
        frames = self._extractor.frames(clip, training)
        return gray_frames(frames) if gray else frames

    def _align(
        self,
        clip: SampleClip,
        frames: Frames,
        grid: VisualGrid,
        signal: Signal | None,
        window: tuple[float, float],
        gray: bool,
    ) -> PreparedClip:
        """Return a clip with its visual grid by the recipe's clock, and its features on it."""
        sampling = self._recipe.sampling
        if not clip.is_image:
            grid = apply_clock(sampling, window, grid, len(frames.times))
        raw = self._extractor.raw_features(clip.file, frames, gray)
        features = align(raw, grid, sampling.alignment, sampling.antialias).cpu()
        return PreparedClip(grid, features, signal, window)

    def _encode_transformed(
        self, name: str, sample: Sample, text: str, signal: Signal | None, training: bool
    ) -> EncodedPrompt:
        """Encode the user's turn after the input transform ``name`` has put the signal into it."""
        clip = sample.clip
        if clip.is_image or signal is None:
            raise DataError(f"the input `{name}` needs a video; {clip.file} is a picture.")
        transform = self.input_transforms[name]
        if isinstance(signal, MultiSignal):
            signal = signal.parts[transform.signal_kind]
        host_input = HostInput(self._frames(clip, False, training), text)
        with self._recipe.evaluation.inputs[name].blame("input", "call"):
            changed = check_host_input(transform(host_input, signal, clip.window))
        pictures = map(Picture, changed.images)
        return self._prompts.encode(
            [*pictures, VideoClip(changed.frames, clip.window), changed.text]
        )


def refuse_untransformable(recipe: Recipe, samples: Sequence[Sample]) -> None:
    """Raise :class:`DataError` if the recipe's input transforms cannot be applied to ``samples``.

    A transform puts a signal into one video, so each sample must show one, and nothing else.
    """
    if not recipe.evaluation.inputs:
        return
    for sample in samples:
        shown = sample.clips
        if len(shown) > 1 or shown[0].is_image:
            what = "a picture" if len(shown) == 1 else f"{len(shown)} clips"
            raise DataError(
                f"evaluation.inputs ({', '.join(recipe.evaluation.inputs)}) put the signal into one"
                f" video, and sample {sample.id} shows {what}. Remove evaluation.inputs."
            )


def _as_content(
    clip: SampleClip, frames: Frames, window: tuple[float, float]
) -> VideoClip | Picture:
    return Picture(frames.images[0], window) if clip.is_image else VideoClip(frames, window)

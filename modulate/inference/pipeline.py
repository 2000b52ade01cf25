"""From a sample to what a conditioned forward needs: frames at true times, the host's inputs,
aligned frame features, the signal.
"""

import hashlib
import math
import random
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from modulate import plugins
from modulate.config.recipe import Recipe, refuse_remote_code
from modulate.data.alignment import align
from modulate.data.feature_extractor import FeatureExtractor, apply_clock, gray_frames
from modulate.errors import (
    ConditioningError,
    DataError,
    MissingFileError,
    ModulateError,
    RecipeError,
)
from modulate.hosts.fsdp import full_tensor, load
from modulate.hosts.hidden_state_cache import HiddenStateCache
from modulate.hosts.host import EncodedPrompt, Host, bare, understand
from modulate.hosts.vision_tower_cache import ContentKeys, VisionTowerCache
from modulate.interfaces.components import LETTERS, HostInput, InputTransform, Sample
from modulate.interfaces.frames import Frames
from modulate.interfaces.multi_signal import MultiSignal, controls_of, kinds_of
from modulate.interfaces.signal import ControlContext, Signal
from modulate.interfaces.visual_grid import VisualGrid, visual_grid
from modulate.modulation.clip_inputs import ClipInput
from modulate.modulation.module import Modulation
from modulate.utils.library_warnings import show_library_warnings
from modulate.utils.lru_cache import LRUCache


@dataclass(frozen=True)
class PreparedSample:
    """A sample, ready for the host: model inputs of batch 1, the visual grid, aligned features, the
    clip's own signal.

    ``grid`` and ``features`` are None where the bare host is asked only. ``options``: token id of
    every answer that counts as one.
    """

    sample: Sample
    inputs: dict[str, Tensor]
    grid: VisualGrid | None
    features: Tensor | None
    signal: Signal
    options: Tensor

    def clip(self, signal: Signal | None) -> ClipInput:
        """Return the conditioning of this clip with ``signal``."""
        if self.grid is None:
            raise ConditioningError(
                f"Sample {self.sample.id} was prepared for the bare host; there is nothing to"
                " condition it with."
            )
        return ClipInput(signal, self.grid, self.features)


@dataclass(frozen=True)
class Batch:
    """Several prepared samples as one forward: inputs padded on the left, option ids padded with
    −1.
    """

    prepared: list[PreparedSample]
    inputs: dict[str, Tensor]
    options: Tensor
    answers: Tensor


class ShufflePool:
    """The samples that shuffling draws from; those of other videos are listed once for each video."""

    def __init__(self, samples: Sequence[Sample]) -> None:
        self._samples = tuple(samples)
        self._foreign: dict[Path, list[Sample]] = {}

    def draw(self, own: Sample, seed: int) -> Sample:
        """Return a sample of another video, always the same for one ``own``, ``seed`` and samples
        in one order.

        Raises :class:`DataError` when all samples are of one video.
        """
        if own.video not in self._foreign:
            self._foreign[own.video] = [s for s in self._samples if s.video != own.video]
        if not self._foreign[own.video]:
            raise DataError("Shuffling needs samples of at least two videos.")
        return random.Random(f"{seed}:{own.id}").choice(self._foreign[own.video])


class Pipeline(FeatureExtractor):
    """Everything of a recipe that turns samples into forwards: its footage, host and processor.

    ``cache``: folder of the feature cache. PreparedSample samples are kept in memory up to
    ``memory_bytes``. ``trust_remote_code``: the user's own word that code which comes with a model
    may run; without it a recipe that asks for that is refused with a :class:`RecipeError`.
    """

    #: How every answer is asked of the host: only the last position's logits, in one forward.
    LAST_LOGITS: ClassVar[dict[str, Any]] = {"logits_to_keep": 1, "use_cache": False}

    @show_library_warnings()
    def __init__(
        self,
        recipe: Recipe,
        cache: Path,
        memory_bytes: int = 2 << 30,
        trust_remote_code: bool = False,
    ) -> None:
        if not trust_remote_code:
            refuse_remote_code(recipe)
        family, params = recipe.host.resolved("host")
        self.model: nn.Module
        with recipe.host.blame("host", "load"):
            self.model, self.processor = load(family, params)
        self.host: Host = understand(self.model)
        super().__init__(recipe, cache, next(self.model.parameters()).device)
        self.signal_kinds: dict[str, type[Signal]] = kinds_of(recipe.signal)
        tower, states = (
            int(gib * 2**30)
            for gib in (
                recipe.features.vision_tower_cache_gib,
                recipe.features.hidden_state_cache_gib,
            )
        )
        self.contents = ContentKeys(wanted=bool(tower or states))
        self.tower = VisionTowerCache(
            self.host, cache / "tower", tower, recipe.features.vision_tower_cache_by, self.contents
        )
        self.below = HiddenStateCache(
            self.host, min(recipe.injection.layers), states, self.contents
        )
        self.inputs: dict[str, InputTransform] = {
            name: choice.build("input") for name, choice in recipe.evaluation.inputs.items()
        }
        self._memory: LRUCache[tuple[str, str, bool], PreparedSample] = LRUCache(
            memory_bytes, _bytes
        )
        self._signals: dict[Path, Signal] = {}
        self._one = threading.Lock()  # processors and tokenizers serve one thread at a time

    def fingerprints(self) -> dict[str, str]:
        """Return what a run is made of: short texts that change when the data, the host's weights
        or the backbone do.
        """
        digest = hashlib.sha256()
        for name, value in bare(self.model).state_dict().items():
            flat = full_tensor(value.detach()).flatten()
            some = (
                flat[:: max(1, len(flat) // 64)].float().cpu().numpy().tobytes()
            )  # samples: hashing every weight of a 7B host takes minutes
            digest.update(f"{name}{tuple(value.shape)}{value.dtype}".encode() + some)
        return {
            "data": self.dataset.fingerprint(),
            "host": digest.hexdigest(),
            "backbone": self.backbone.fingerprint(),
        }

    # --- one sample

    def prepare(self, sample: Sample, view: str = "own", training: bool = False) -> PreparedSample:
        """Decode, encode and align one sample. Errors are re-raised with the sample's id in front.

        ``view``: what is shown. "own": the clip. "gray": mid-gray frames for host and backbone
        alike, what can be answered without seeing. "text": the question alone. Else the name of one
        of the recipe's ``evaluation.inputs``. The latter two are for the bare host.
        """
        key = (sample.id, view, training)
        kept = self._memory.get(key)
        if kept is not None:
            return kept
        with self._one:
            kept = self._memory.get(key)
            if kept is not None:
                return kept
            try:
                prepared = self._prepare(sample, view, training)
            except ModulateError as error:
                raise type(error)(f"Sample {sample.id}: {error}") from error
            self._memory.put(key, prepared)
            return prepared

    def _prepare(self, sample: Sample, view: str, training: bool) -> PreparedSample:
        with self.recipe.data.blame("dataset", "prompt"):
            text = self.dataset.prompt(sample, self.recipe.answer)
        grid = None
        features = None
        frames = (
            self.clips.read(sample.video, self.times(sample, training)) if view != "text" else None
        )
        if frames is None:
            encoded = self._encode(None, text, sample.window)
        elif view in self.inputs:
            given = self._told(view, HostInput(frames, text), self.signal(sample), sample.window)
            encoded = self._encode(given.frames, given.text, sample.window, given.images)
        else:
            if view == "gray":
                frames = gray_frames(frames)
            encoded = self._encode_timed(frames, text, sample.window)
            grid = apply_clock(self.recipe.sampling, sample.window, encoded.grid, len(frames.times))
            raw = self.raw_features(sample.video, frames, view == "gray")
            how = self.recipe.sampling
            features = align(raw, grid, how.alignment, how.antialias).cpu()
        return PreparedSample(
            sample, encoded.inputs, grid, features, self.signal(sample), self._option_ids(sample)
        )

    def _encode(
        self,
        frames: Frames | None,
        text: str,
        window: tuple[float, float],
        images: Sequence[NDArray[np.uint8]] = (),
    ) -> EncodedPrompt:
        with self.recipe.host.blame("host", "encode"):
            if frames is None:
                return self.host.encode_text(self.processor, text)
            return self.host.encode(
                self.processor, text, frames, window, **({"images": images} if images else {})
            )

    def _encode_timed(
        self, frames: Frames, text: str, window: tuple[float, float]
    ) -> EncodedPrompt:
        """Encode a clip at its true times, or with the host's processor told others: the grid is
        the true one all the same.
        """
        fps = self.recipe.sampling.processor_fps
        times = frames.times
        if fps is None:
            return self._encode(frames, text, window)
        told = tuple(k / fps for k in range(len(times)))
        encoded = self._encode(replace(frames, times=told), text, (0.0, told[-1]))
        grid = visual_grid(
            times,
            math.ceil(len(times) / encoded.grid.steps),
            encoded.grid.rows,
            encoded.grid.cols,
            window,
        )
        return replace(encoded, grid=grid)

    def _told(
        self, name: str, given: HostInput, signal: Signal, window: tuple[float, float]
    ) -> HostInput:
        """Return the host's turn with the signal in it, as one of the recipe's inputs tells of it."""
        transform = self.inputs[name]
        choice = self.recipe.evaluation.inputs[name]
        if isinstance(signal, MultiSignal):
            signal = signal.parts[transform.signal_kind]
        with choice.blame("input", "call"):
            return transform(given, signal, window)

    def signal(self, sample: Sample) -> Signal:
        """Return the sample's own signal within its window; of several kinds, their bundle.

        Raises when the sample lacks one of the recipe's.
        """
        with self.recipe.data.blame("dataset", "clip_signal"):
            parts = {
                kind: self.dataset.clip_signal(sample, self._signal(kind, sample))
                for kind in self.signal_kinds
            }
        return parts[self.recipe.signal] if len(parts) == 1 else MultiSignal(parts)

    def _signal(self, kind: str, sample: Sample) -> Signal:
        path = sample.signals.get(kind)
        if path is None:
            raise DataError(
                f"there is no {kind!r} signal; the sample has"
                f" {', '.join(sample.signals) or 'none'}."
            )
        if path not in self._signals:
            if not path.exists():
                raise MissingFileError(f"the signal file {path} does not exist.")
            with plugins.registry().blame("signal", kind, f"read of {path}"):
                self._signals[path] = self.signal_kinds[kind].read(path)
        return self._signals[path]

    def _option_ids(self, sample: Sample) -> Tensor:
        most = max(4, len(sample.options)) if self.recipe.letters == "four" else len(sample.options)
        words = sample.options if self.recipe.answer == "word" else LETTERS[:most]
        ids = []
        for word in words:
            tokens = self.processor.tokenizer.encode(word, add_special_tokens=False)
            if len(tokens) != 1 or tokens[0] == self.processor.tokenizer.unk_token_id:
                raise DataError(
                    f"the answer {word!r} is not one known token of the host's tokenizer (ids"
                    f" {tokens}); offer options of one known word each, or score letters (the"
                    " recipe's `answer: letter`)."
                )
            ids.append(tokens[0])
        return torch.tensor(ids)

    # --- batches

    def collate(self, prepared: Sequence[PreparedSample], inputs: bool = True) -> Batch:
        """Join samples into one forward on the host's device; without ``inputs`` where these go
        another way (:mod:`modulate.inference.shared_prefix`).
        """
        pad = self.processor.tokenizer.pad_token_id
        joined = (
            self.host.collate([p.inputs for p in prepared], 0 if pad is None else pad)
            if inputs
            else {}
        )
        width = max(len(p.options) for p in prepared)
        options = torch.stack(
            [nn.functional.pad(p.options, (0, width - len(p.options)), value=-1) for p in prepared]
        )
        answers = torch.tensor([p.sample.answer for p in prepared])
        there = {k: v.to(self.device) for k, v in joined.items()}
        self.contents.recognize(there, [p.inputs for p in prepared])
        return Batch(list(prepared), there, options.to(self.device), answers.to(self.device))

    def option_logits(self, batch: Batch, output: object) -> Tensor:
        """Return (sample, option) logits of the options offered, −inf where a sample has fewer;
        fp32.
        """
        last = output.logits[:, -1].float()  # type: ignore[attr-defined]
        return last.gather(1, batch.options.clamp_min(0)).masked_fill(
            batch.options < 0, float("-inf")
        )

    # --- controls

    def control(self, name: str, prepared: PreparedSample, others: ShufflePool) -> Signal:
        """Return the signal of ``prepared`` under the control ``name`` (one that its kind
        declares).

        ``others``: what shuffling draws from. Raises :class:`RecipeError` for a name that is no
        control.
        """
        controls = controls_of(self.recipe.signal)
        if name not in controls:
            raise RecipeError(
                f"The signal {self.recipe.signal!r} has no control {name!r}; it has"
                f" {', '.join(sorted(controls))}."
            )
        own = prepared.sample

        def draw() -> tuple[
            Signal, tuple[float, float]
        ]:  # and read only when asked for: most controls never do
            other = others.draw(own, self.recipe.seed)
            return self.signal(other), other.window

        with plugins.registry().blame("signal", self.recipe.signal, f"the control {name!r}"):
            return controls[name](prepared.signal, ControlContext(own.window, draw))

    @contextmanager
    def remembered(self) -> Iterator[None]:
        """For the forwards of this block, let the host do no work again that the recipe's
        ``features`` keep.
        """
        with self.tower.remembered(), self.below.remembered():
            yield

    def fresh_modulation(self) -> Modulation:
        """Build the recipe's modulation for the host, seeded."""
        recipe = self.recipe
        torch.manual_seed(recipe.seed)
        return Modulation.for_host(
            self.model,
            encoder=recipe.encoder,
            modulator=recipe.modulator,
            injection=recipe.injection,
            d_features=self.backbone.d_features,
            lora=recipe.lora,
            backbone=recipe.backbone,
        )


def _bytes(prepared: PreparedSample) -> int:
    tensors = [
        *prepared.inputs.values(),
        *([prepared.features] if prepared.features is not None else []),
    ]
    return sum(t.numel() * t.element_size() for t in tensors)

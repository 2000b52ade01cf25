"""From a sample to what a conditioned forward needs: frames at true times, the host's inputs, aligned frame features, the signal."""

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from modulate import plugins
from modulate.bundle import Bundle, controls_of, kinds_of
from modulate.components import LETTERS, Backbone, Dataset, FrameFeatures, Sample
from modulate.errors import DataError, MissingFileError, ModulateError, RecipeError, VideoError
from modulate.features import FeatureCache, FeatureKey, align
from modulate.files import content_hash
from modulate.grid import VisualGrid
from modulate.hosts import Host, bare, understand
from modulate.modulation import ClipInput, Modulation
from modulate.recent import Recent
from modulate.recipe import Recipe
from modulate.signals import ControlContext, Signal
from modulate.video import Frames, probe, read_frames, read_shown, sample_times


@dataclass(frozen=True)
class Prepared:
    """A sample, ready for the host: model inputs of batch 1, the true visual grid, aligned features, the clip's own signal."""

    sample: Sample
    inputs: dict[str, Tensor]
    grid: VisualGrid
    features: Tensor
    signal: Signal
    options: Tensor  # token id of every option's answer

    def clip(self, signal: Signal | None) -> ClipInput:
        """Return the conditioning of this clip with ``signal``."""
        return ClipInput(signal, self.grid, self.features)


@dataclass(frozen=True)
class Batch:
    """Several prepared samples as one forward: inputs padded on the left, option ids padded with −1."""

    prepared: list[Prepared]
    inputs: dict[str, Tensor]
    options: Tensor
    answers: Tensor


class ClipReader:
    """Reads clips' frames, all that are expected of a video in one go while they fit into ``memory_bytes``; videos used last are kept."""

    def __init__(self, memory_bytes: int = 512 << 20) -> None:
        self._expected: dict[Path, set[float]] = {}
        self._kept: Recent[Path, tuple[Frames, dict[float, int]]] = Recent(memory_bytes, lambda found: found[0].images.nbytes)

    def expect(self, video: Path, times: Sequence[float]) -> None:
        """Note that these frames will be asked for."""
        self._expected.setdefault(video, set()).update(times)

    def read(self, video: Path, times: Sequence[float]) -> Frames:
        """Return the frames shown at ``times``; exactly what :func:`modulate.video.read_frames` returns. Errors likewise."""
        found = self._kept.get(video)
        if found is None or not found[1].keys() >= set(times):
            wanted = self._expected.get(video, set()) | set(times)
            info = probe(video)
            if len(wanted) * info.width * info.height * 3 * 8 > self._kept.max_bytes:  # long or large: such a video would push all others out
                return read_frames(video, times)
            try:
                found = read_shown(video, sorted(wanted))
            except VideoError:  # another question asks beyond the end: that is its own failure, not this one's
                return read_frames(video, times)
            self._kept.put(video, found)
        frames, which = found
        chosen = sorted({which[t] for t in times})
        return Frames(frames.images[chosen], tuple(frames.times[i] for i in chosen))


class Others:
    """The samples that shuffling draws from; those of other videos are listed once for each video."""

    def __init__(self, samples: Sequence[Sample]) -> None:
        self._samples = tuple(samples)
        self._foreign: dict[Path, list[Sample]] = {}

    def draw(self, own: Sample, seed: int) -> Sample:
        """Return a sample of another video, always the same for one ``own``, ``seed`` and samples in one order.

        Raises :class:`DataError` when all samples are of one video.
        """
        if own.video not in self._foreign:
            self._foreign[own.video] = [s for s in self._samples if s.video != own.video]
        if not self._foreign[own.video]:
            raise DataError("Shuffling needs samples of at least two videos.")
        return random.Random(f"{seed}:{own.id}").choice(self._foreign[own.video])


class Pipeline:
    """Everything of a recipe that turns samples into forwards: host, processor, backbone, data set, caches.

    ``cache``: folder of the feature cache. Prepared samples are kept in memory up to ``memory_bytes``. ``trust_remote_code``: the user's own word that
    code which comes with a model may run; without it a recipe that asks for that is refused with a :class:`RecipeError`.
    """

    #: How every answer is asked of the host: only the last position's logits, in one forward.
    LAST_LOGITS: ClassVar[dict[str, Any]] = {"logits_to_keep": 1, "use_cache": False}

    def __init__(self, recipe: Recipe, cache: Path, memory_bytes: int = 2 << 30, trust_remote_code: bool = False) -> None:
        self.recipe = recipe
        if not trust_remote_code:
            refuse_remote_code(recipe)
        family, params = recipe.host.resolved("host")
        self.model: nn.Module
        with recipe.host.blame("host", "load"):
            self.model, self.processor = family.load(params)
        self.host: Host = understand(self.model)
        self.device = next(self.model.parameters()).device
        self.backbone: Backbone = recipe.backbone.build("backbone").to(self.device).eval().requires_grad_(False)
        self.dataset: Dataset = recipe.data.build("dataset")
        self.signal_kinds: dict[str, type[Signal]] = kinds_of(recipe.signal)
        self.features = FeatureCache(cache)
        self.clips = ClipReader()
        self._memory: Recent[tuple[str, bool], Prepared] = Recent(memory_bytes, _bytes)
        self._signals: dict[Path, Signal] = {}

    def make_data(self) -> None:
        """Let the data set make or check its files."""
        with self.recipe.data.blame("dataset", "prepare"):
            self.dataset.prepare()

    def samples(self, split: str) -> list[Sample]:
        """Return a split's samples, and remember which frames they will ask for, so that a video with many questions is decoded once."""
        sampling = self.recipe.sampling
        with self.recipe.data.blame("dataset", "samples"):
            samples = self.dataset.samples(split)
        for sample in samples:
            self.clips.expect(sample.video, sample_times(sample.window, sampling.fps, sampling.max_frames))
        return samples

    def fingerprints(self) -> dict[str, str]:
        """Return what a run is made of: short texts that change when the data, the host's weights or the backbone do."""
        digest = hashlib.sha256()
        for name, value in bare(self.model).state_dict().items():
            flat = value.detach().flatten()
            some = flat[:: max(1, len(flat) // 64)].float().cpu().numpy().tobytes()  # samples: hashing every weight of a 7B host takes minutes
            digest.update(f"{name}{tuple(value.shape)}{value.dtype}".encode() + some)
        return {"data": self.dataset.fingerprint(), "host": digest.hexdigest(), "backbone": self.backbone.fingerprint()}

    # --- one sample --------------------------------------------------------------------------------------------------------------

    def prepare(self, sample: Sample, blank_frames: bool = False) -> Prepared:
        """Decode, encode and align one sample. Errors are re-raised with the sample's id in front.

        ``blank_frames`` replaces every frame by mid-grey for host and backbone alike: what can be answered without seeing.
        """
        key = (sample.id, blank_frames)
        if (kept := self._memory.get(key)) is not None:
            return kept
        try:
            prepared = self._prepare(sample, blank_frames)
        except ModulateError as error:
            raise type(error)(f"Sample {sample.id}: {error}") from error
        self._memory.put(key, prepared)
        return prepared

    def _prepare(self, sample: Sample, blank_frames: bool) -> Prepared:
        sampling = self.recipe.sampling
        frames = self.clips.read(sample.video, sample_times(sample.window, sampling.fps, sampling.max_frames))
        if blank_frames:
            frames = replace(frames, images=np.full_like(frames.images, 127))
        with self.recipe.data.blame("dataset", "prompt"):
            text = self.dataset.prompt(sample, self.recipe.answer)
        with self.recipe.host.blame("host", "encode"):
            encoded = self.host.encode(self.processor, text, frames, sample.window)
        features = align(self._raw_features(sample, frames, blank_frames), encoded.grid)
        return Prepared(sample, encoded.inputs, encoded.grid, features.cpu(), self.signal(sample), self._option_ids(sample))

    def _raw_features(self, sample: Sample, frames: Frames, blank_frames: bool) -> FrameFeatures:
        def compute() -> FrameFeatures:
            with torch.inference_mode(), self.recipe.backbone.blame("backbone", "forward"):
                return self.backbone(torch.from_numpy(frames.images).to(self.device), frames.times)

        source = "blank" if blank_frames else content_hash(sample.video)
        return self.features.get_or_compute(FeatureKey(source, frames.times, self.backbone.fingerprint()), compute)

    def signal(self, sample: Sample) -> Signal:
        """Return the sample's own signal within its window; of several kinds, their bundle. Raises when the sample lacks one of the recipe's."""
        parts = {kind: self._signal(kind, sample).within(*sample.window) for kind in self.signal_kinds}
        return parts[self.recipe.signal] if len(parts) == 1 else Bundle(parts)

    def _signal(self, kind: str, sample: Sample) -> Signal:
        path = sample.signals.get(kind)
        if path is None:
            raise DataError(f"there is no {kind!r} signal; the sample has {', '.join(sample.signals) or 'none'}.")
        if path not in self._signals:
            if not path.exists():
                raise MissingFileError(f"the signal file {path} does not exist.")
            with plugins.registry().blame("signal", kind, f"read of {path}"):
                self._signals[path] = self.signal_kinds[kind].read(path)
        return self._signals[path]

    def _option_ids(self, sample: Sample) -> Tensor:
        words = sample.options if self.recipe.answer == "word" else LETTERS[: len(sample.options)]
        ids = []
        for word in words:
            tokens = self.processor.tokenizer.encode(word, add_special_tokens=False)
            if len(tokens) != 1 or tokens[0] == self.processor.tokenizer.unk_token_id:
                raise DataError(f"the answer {word!r} is not one known token of the host's tokenizer (ids {tokens}); score letters instead.")
            ids.append(tokens[0])
        return torch.tensor(ids)

    # --- batches -----------------------------------------------------------------------------------------------------------------

    def collate(self, prepared: Sequence[Prepared]) -> Batch:
        """Join samples into one forward on the host's device."""
        pad = self.processor.tokenizer.pad_token_id
        inputs = self.host.collate([p.inputs for p in prepared], 0 if pad is None else pad)
        width = max(len(p.options) for p in prepared)
        options = torch.stack([nn.functional.pad(p.options, (0, width - len(p.options)), value=-1) for p in prepared])
        answers = torch.tensor([p.sample.answer for p in prepared])
        return Batch(list(prepared), {k: v.to(self.device) for k, v in inputs.items()}, options.to(self.device), answers.to(self.device))

    def option_logits(self, batch: Batch, output: object) -> Tensor:
        """Return (sample, option) logits of the options offered, −inf where a sample has fewer; fp32."""
        last = output.logits[:, -1].float()  # type: ignore[attr-defined]
        return last.gather(1, batch.options.clamp_min(0)).masked_fill(batch.options < 0, float("-inf"))

    # --- controls ----------------------------------------------------------------------------------------------------------------

    def control(self, name: str, prepared: Prepared, others: Others) -> Signal:
        """Return the signal of ``prepared`` under the control ``name`` (one that its kind declares).

        ``others``: what shuffling draws from. Raises :class:`RecipeError` for a name that is no control.
        """
        controls = controls_of(self.recipe.signal)
        if name not in controls:
            raise RecipeError(f"The signal {self.recipe.signal!r} has no control {name!r}; it has {', '.join(sorted(controls))}.")
        own = prepared.sample

        def draw() -> tuple[Signal, tuple[float, float]]:  # and read only when asked for: most controls never do
            other = others.draw(own, self.recipe.seed)
            return self.signal(other), other.window

        with plugins.registry().blame("signal", self.recipe.signal, f"the control {name!r}"):
            return controls[name](prepared.signal, ControlContext(own.window, draw))

    def fresh_modulation(self) -> Modulation:
        """Build the recipe's modulation for the host, seeded."""
        recipe = self.recipe
        torch.manual_seed(recipe.seed)
        return Modulation.for_host(
            self.model, encoder=recipe.encoder, modulator=recipe.modulator, layers=recipe.injection.layers, alpha=recipe.injection.alpha,
            tokens=recipe.injection.tokens, d_features=self.backbone.d_features, lora_params=recipe.lora, backbone=recipe.backbone,
        )  # fmt: skip


def refuse_remote_code(recipe: Recipe) -> None:
    """Raise :class:`RecipeError` when a component's parameters say ``trust_remote_code: true``."""
    for key, kind in (("host", "host"), ("backbone", "backbone"), ("encoder", "signal_encoder"), ("modulator", "modulator"), ("data", "dataset")):
        _, params = getattr(recipe, key).resolved(kind)
        if getattr(params, "trust_remote_code", False):
            raise RecipeError(
                f"{key}.params of the recipe {recipe.name!r} say trust_remote_code: Python files that come with the model would run on this machine, "
                "with all that you may do. If you have read them and want that, add --trust-remote-code to the command "
                "(in Python: Pipeline(…, trust_remote_code=True)); otherwise take the line out."
            )


def _bytes(prepared: Prepared) -> int:
    tensors = [*prepared.inputs.values(), prepared.features]
    return sum(t.numel() * t.element_size() for t in tensors)

"""The pipeline of a recipe: from a sample to what a conditioned forward needs."""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from modulate.config.recipe import Recipe, refuse_remote_code
from modulate.config.usage import Usage
from modulate.data.clip_reader import ClipReader
from modulate.data.feature_extractor import FeatureExtractor
from modulate.data.signal_reader import SignalReader
from modulate.errors import DataError
from modulate.hosts.fsdp import full_tensor, load
from modulate.hosts.hidden_state_cache import HiddenStateCache
from modulate.hosts.host import Host, base_model, understand
from modulate.hosts.vision_tower_cache import ContentKeys, VisionTowerCache
from modulate.inference.batching import Batch, Batcher
from modulate.inference.controls import ShufflePool, control_signals
from modulate.inference.preparation import PreparedSample, SamplePreparer
from modulate.inference.prompts import PromptEncoder
from modulate.interfaces.components import Backbone, Dataset
from modulate.interfaces.result_checks import check_fingerprint
from modulate.interfaces.sample import Sample, SampleClip
from modulate.interfaces.signal import Signal
from modulate.modulation.module import Modulation
from modulate.utils.library_warnings import show_library_warnings

PREPARED_BYTES = 2 << 30
"""Default limit of the prepared samples that a pipeline caches in memory."""

GIB = 2**30


class Pipeline:
    """The parts of a recipe that turn samples into forwards, and the steps in which they do.

    Host, processor, backbone and data set are loaded at once. The caches of the host's computation
    and the evaluation's input transforms are built at first use; :meth:`build_deferred` builds them
    all.

    Args:
        recipe: names every part.
        cache: folder of the feature cache, and of the other caches that the recipe asks for.
        memory_bytes: limit of the prepared samples cached in memory.
        trust_remote_code: the user's own permission to run code that comes with a model.

    Attributes:
        recipe: the recipe.
        model: the host as loaded, frozen.
        processor: the host's processor.
        host: the host's structure: where its layers, visual tokens and embeddings are.
        device: the host's device.
        extractor: data set, backbone, and the caches of frames and features.
        clip_reader: reads clips' frames.
        signals: reads samples' signals.
        batcher: joins prepared samples into batches.

    Raises:
        RecipeError: the recipe asks for remote code, and ``trust_remote_code`` is False.
        HostError: the host cannot be loaded.
    """

    @show_library_warnings()
    def __init__(
        self,
        recipe: Recipe,
        cache: Path,
        memory_bytes: int = PREPARED_BYTES,
        trust_remote_code: bool = False,
    ) -> None:
        if not trust_remote_code:
            refuse_remote_code(recipe)
        self.recipe = recipe
        family, params = recipe.host.resolved("host")
        self.model: nn.Module
        with recipe.host.blame("host", "load"):
            self.model, self.processor = load(family, params)
        self.host: Host = understand(self.model)
        self.device: torch.device = next(self.model.parameters()).device
        self.extractor = FeatureExtractor(recipe, cache, self.device)
        self.clip_reader: ClipReader = self.extractor.clip_reader
        self.signals = SignalReader(recipe, self.extractor)
        self._cache = cache
        features = recipe.features
        self._tower_bytes = int(features.vision_tower_cache_gib * GIB)
        self._state_bytes = int(features.hidden_state_cache_gib * GIB)
        # Both caches and the batcher share one set of keys: a batch's patches are hashed once.
        self.content_keys = ContentKeys(enabled=bool(self._tower_bytes or self._state_bytes))
        self.batcher = Batcher(self.host, self.processor, self.device, self.content_keys)
        prompts = PromptEncoder(recipe, self.host, self.processor)
        self._preparer = SamplePreparer(recipe, self.extractor, self.signals, prompts, memory_bytes)

    # --- parts built at first use

    @cached_property
    def vision_tower_cache(self) -> VisionTowerCache:
        """Cached outputs of the vision tower; empty if ``features.vision_tower_cache_gib`` is 0.

        Raises :class:`HostError` at first use if caching would be wrong for this host.
        """
        return VisionTowerCache(
            self.host,
            self._cache / "tower",
            self._tower_bytes,
            self.recipe.features.vision_tower_cache_by,
            self.content_keys,
        )

    @cached_property
    def hidden_state_cache(self) -> HiddenStateCache:
        """Cached hidden states below the first injected layer.

        Empty if ``features.hidden_state_cache_gib`` is 0. Raises :class:`HostError` at first use if
        caching would be wrong for this host.
        """
        first = min(self.recipe.injection.layers)
        return HiddenStateCache(self.host, first, self._state_bytes, self.content_keys)

    def build_deferred(self) -> None:
        """Build every part that is otherwise built at first use.

        Call it before long work: a training should not end in an input transform that cannot be
        built. Raises :class:`ModulateError` like the parts themselves.
        """
        _ = self.vision_tower_cache
        _ = self.hidden_state_cache
        _ = self._preparer.input_transforms

    @contextmanager
    def host_caches(self) -> Iterator[None]:
        """Serve the host's forwards in this block from the caches that the recipe asks for."""
        with self.vision_tower_cache.active(), self.hidden_state_cache.active():
            yield

    # --- data: thin delegation to the extractor and the signal reader

    @property
    def dataset(self) -> Dataset:
        """The recipe's data set."""
        return self.extractor.dataset

    @property
    def backbone(self) -> Backbone:
        """The recipe's backbone."""
        return self.extractor.backbone

    def make_data(self) -> None:
        """Let the data set make or check its files; see :meth:`FeatureExtractor.make_data`."""
        self.extractor.make_data()

    def samples(self, split: str) -> list[Sample]:
        """Return the samples of a split; see :meth:`FeatureExtractor.samples`."""
        return self.extractor.samples(split)

    def times(self, clip: SampleClip, training: bool = False) -> list[float]:
        """Return the times (s) at which a clip is sampled."""
        return self.extractor.times(clip, training)

    def signal(self, sample: Sample, clip: SampleClip) -> Signal | None:
        """Return the signal of a clip of ``sample`` within its window, if it has one.

        See :meth:`SignalReader.read`.
        """
        return self.signals.read(sample, clip)

    # --- from samples to forwards

    def prepare(self, sample: Sample, view: str = "own", training: bool = False) -> PreparedSample:
        """Decode, encode and align one sample.

        Args:
            sample: the question and its clips.
            view: what the host sees. "own": the clips. "gray": mid-gray frames, for the backbone
                too. "text": the question alone. Otherwise the name of one of the recipe's
                ``evaluation.inputs``. The last two are for the bare host.
            training: use the recipe's frame limit of training.

        Raises :class:`ModulateError` with the sample's id in front of the message.
        """
        return self._preparer.prepare(sample, view, training)

    def answer_ids(self, sample: Sample, known: bool = False) -> tuple[Tensor, ...]:
        """Return the (token,) ids of the answers to a sample, without reading its clips.

        Args:
            sample: the question.
            known: refuse a question with options of which the right one is not known.

        Raises :class:`DataError` for answers that cannot be scored in the recipe's form.
        """
        found = self._preparer.answer_ids(sample)
        if known and self.recipe.answer != "text" and sample.answer is None:
            raise DataError(f"Sample {sample.id}: its right option is not known.")
        return found

    def collate(self, prepared: Sequence[PreparedSample], with_inputs: bool = True) -> Batch:
        """Return ``prepared`` as one batch; see :meth:`Batcher.collate`."""
        return self.batcher.collate(prepared, with_inputs)

    def control(
        self, name: str, prepared: PreparedSample, pool: ShufflePool
    ) -> list[Signal | None]:
        """Return the signals of the clips of ``prepared`` under the control ``name``.

        ``pool``: samples from which shuffling draws. Raises :class:`RecipeError` for an unknown
        control.
        """
        return control_signals(name, prepared, pool, self.recipe, self.signals)

    def fresh_modulation(self) -> Modulation:
        """Build the recipe's modulation for the host, initialized from the recipe's seed."""
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
            usage=Usage.of(recipe),
        )

    # --- identity

    def fingerprints(self) -> dict[str, str]:
        """Return short texts that change when the data, the host's weights or the backbone do."""
        with self.recipe.data.blame("dataset", "fingerprint"):
            data = check_fingerprint(self.dataset.fingerprint())
        with self.recipe.backbone.blame("backbone", "fingerprint"):
            backbone = check_fingerprint(self.backbone.fingerprint())
        return {"data": data, "host": _weights_fingerprint(self.model), "backbone": backbone}


def _weights_fingerprint(model: Any) -> str:
    """Return a SHA-256 (hex) of every weight's name, shape, type, and about 64 of its values."""
    digest = hashlib.sha256()
    for name, value in base_model(model).state_dict().items():
        flat = full_tensor(value.detach()).flatten()
        # A sample of the values: hashing every weight of a 7B host takes minutes.
        stride = max(1, len(flat) // 64)
        sampled = flat[::stride].float().cpu().numpy().tobytes()
        digest.update(f"{name}{tuple(value.shape)}{value.dtype}".encode() + sampled)
    return digest.hexdigest()

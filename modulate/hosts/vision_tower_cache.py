"""A cache of the vision tower's output: a frozen tower always answers a clip the same way.

While :meth:`VisionTowerCache.active` lasts, the host's own ``get_video_features``, which its
forward calls, is answered from a store on disk.
"""

import hashlib
import inspect
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, Literal, get_args, get_type_hints

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from modulate.data.feature_cache import FeatureCache, FeatureKey, bytes_of, weights_digest
from modulate.data.feature_shards import StoredTensor
from modulate.errors import HostError
from modulate.hosts.hooks import patched_method, third_party_origin
from modulate.hosts.host import Host

METHOD = "get_video_features"
PIXELS = "pixel_values_videos"
GRIDS = "video_grid_thw"
"""The method of transformers' classes, and its arguments: the patches of all clips in one row, and
(clip, 3) steps × rows × columns of patches.
"""

MEMORY = 2 << 30
"""Most bytes kept in memory of what the disk does not take."""


@dataclass
class TowerOutput:
    """The cached fields of a vision tower's output, under transformers' own names.

    ``pooler_output``: (token, d_model) embeddings of each clip. ``deepstack_features``: the
    embeddings for each further layer, where a host has them: clip by clip, or all clips in one
    tensor, depending on the release of transformers.
    """

    pooler_output: tuple[Tensor, ...]
    deepstack_features: list[tuple[Tensor, ...] | Tensor] = field(default_factory=list)

    @property
    def values(self) -> dict[str, Any]:
        """The fields that are not empty, by name."""
        return {name: value for name, value in vars(self).items() if value}


def join_clips(parts: Sequence[tuple[Tensor, ...] | Tensor]) -> tuple[Tensor, ...] | Tensor:
    """Return one level of several clips from that level of each clip."""
    tensors = [part for part in parts if isinstance(part, Tensor)]
    return torch.cat(tensors) if tensors else tuple(part[0] for part in parts)


def declared_output_classes(entry: nn.Module) -> list[type[Any]]:
    """Return the output classes in the return annotation of :data:`METHOD` of ``entry``'s class."""
    from transformers.utils import ModelOutput

    try:
        annotation = get_type_hints(inspect.unwrap(getattr(type(entry), METHOD)))["return"]
    except (AttributeError, KeyError, NameError):  # no annotation, or one that cannot be evaluated
        return []
    return [
        kind
        for kind in (annotation, *get_args(annotation))
        if isinstance(kind, type) and issubclass(kind, ModelOutput)
    ]


def vision_modules(host: Host) -> dict[str, nn.Module]:
    """Return the modules that pixels pass through: the tower, and its projection to ``d_model``."""
    return {
        name: module for name, module in host.entry.named_children() if module is not host.language
    }


def why_not_cacheable(module: nn.Module, path: str) -> str | None:
    """Return why caching the output of ``module`` would be wrong, or None if it is safe.

    Unsafe: trainable parameters, active dropout, third-party hooks. Callers check adapters, which
    the two caches treat differently.
    """
    for name, parameter in module.named_parameters(path):
        if parameter.requires_grad and ".lora_" not in name:
            return f"{name} is trainable"
    for name, part in module.named_modules(prefix=path):
        if _is_active_dropout(part):
            return f"{name} is a dropout in training mode"
        # Even a hook that only watches must run, and on a cache hit it would not.
        origin = third_party_origin(
            [*part._forward_pre_hooks.values(), *part._forward_hooks.values()]
        )
        if origin:
            return f"a hook of {origin} is on {name}, which would not run on a cache hit"
    return None


def _is_active_dropout(module: nn.Module) -> bool:
    from_adapter = type(module).__module__.startswith("peft.")
    return isinstance(module, nn.Dropout) and module.training and module.p > 0 and not from_adapter


def arithmetic(host: Host) -> str:
    """Return the device on which ``host`` computes, and the dtype of autocast there."""
    device = next(host.entry.parameters()).device.type
    enabled = torch.is_autocast_enabled(device)
    return f"{device} {torch.get_autocast_dtype(device) if enabled else None}"


class ContentKeys:
    """Digests of the patches of clips, computed once for as long as the patches live unaltered.

    ``enabled``: whether any cache needs them; without, nothing is noted ahead.
    """

    def __init__(self, enabled: bool = True) -> None:
        self.enabled = enabled
        # Patches → their grids, and the digest of each clip. Weak: entries die with the patches.
        self._known: Any = WeakTensorKeyDictionary()

    def recognize(self, inputs: Mapping[str, Tensor], rows: Sequence[Mapping[str, Tensor]]) -> None:
        """Note that the patches of ``inputs``, if any, are those of ``rows``, one after another.

        Joining a batch makes a new tensor, which would be hashed anew. This only saves that time,
        and only for hosts whose processors say which patches belong to which clip.
        """
        if not self.enabled or GRIDS not in inputs:
            return
        rows_with_clips = [row for row in rows if PIXELS in row]
        for row in rows_with_clips:
            self._known[row[PIXELS]] = (
                row[GRIDS].tolist(),
                self.digests(row[PIXELS], row[GRIDS]),
            )
        if rows_with_clips and PIXELS in inputs:
            digests = [self.digests(row[PIXELS], row[GRIDS]) for row in rows_with_clips]
            self._known[inputs[PIXELS]] = inputs[GRIDS].tolist(), tuple(chain(*digests))

    def digests(self, pixels: Tensor, grids: Tensor) -> tuple[str, ...]:
        """Return the digest of each clip."""
        known_grids, known_digests = self._known.get(pixels, (None, ()))
        # The same patches cut into other clips are other contents.
        if known_grids == grids.tolist():
            return tuple(known_digests)
        clips = pixels.split(grids.prod(-1).tolist())
        return tuple(
            tensor_digest(clip, grid) for clip, grid in zip(clips, grids.tolist(), strict=True)
        )


def tensor_digest(values: Tensor, *more: object) -> str:
    """Return the SHA-256 (hex) of a tensor's bytes, dtype and shape, and of ``more`` as text."""
    digest = hashlib.sha256(f"{values.dtype} {tuple(values.shape)} {more};".encode())
    digest.update(bytes_of(values))
    return digest.hexdigest()


class VisionTowerCache:
    """Answers calls of ``host``'s vision tower from a store of at most ``max_bytes`` in ``folder``.

    With ``max_bytes`` 0 the tower is left alone. ``by``: what one entry holds. "call": all clips of
    one call of the tower, so that the output equals that without a cache to the bit. "clip": one
    clip, so that it is found in any batch; each clip then passes the tower by itself, and matrix
    products of another number of rows may round differently.

    The constructor and :meth:`active` raise :class:`HostError` where caching would be wrong.
    """

    def __init__(
        self,
        host: Host,
        folder: Path,
        max_bytes: int,
        by: Literal["call", "clip"] = "call",
        content_keys: ContentKeys | None = None,
    ) -> None:
        self.host = host
        self.by = by
        self.content_keys = content_keys or ContentKeys()
        self.store = FeatureCache(folder, max_bytes, min(max_bytes, MEMORY)) if max_bytes else None
        self._weights_fingerprint = ""
        self._output_classes: list[type[Any]] = []
        if self.store is not None:
            self._check()

    def _check(self) -> None:
        entry = self.host.entry
        method = getattr(entry, METHOD, None)
        if method is None or not {PIXELS, GRIDS} <= inspect.signature(method).parameters.keys():
            self._refuse(
                f"{type(entry).__name__} has no {METHOD}({PIXELS}, {GRIDS}), which tells clips"
                " apart"
            )
        for path, module in vision_modules(self.host).items():
            reason = why_not_cacheable(module, path)
            if reason:
                self._refuse(reason)
            # The fingerprint covers weights, not which adapters are switched on for a forward.
            for name, part in module.named_modules(prefix=path):
                if type(part).__module__.startswith("peft."):
                    self._refuse(f"an adapter is on {name}, which can be switched on and off")

    def _refuse(self, reason: str) -> None:
        raise HostError(
            f"The output of the host's vision tower cannot be cached: {reason}. Set"
            " features.vision_tower_cache_gib to 0."
        )

    def _fingerprint(self) -> str:
        """Return what the output depends on besides a clip: weights, configuration, arithmetic."""
        config: Any = getattr(self.host.config, "vision_config", self.host.config)
        # Hashing all weights takes seconds, so once in each `active` block, where they are fixed.
        if not self._weights_fingerprint:
            import transformers

            weights = {
                name: weights_digest(module) for name, module in vision_modules(self.host).items()
            }
            settings = json.dumps(config.to_dict(), sort_keys=True, default=str)
            # Releases belong to it: the same weights may be computed by another kernel.
            self._weights_fingerprint = hashlib.sha256(
                f"{weights} {settings} {torch.__version__} {transformers.__version__}".encode()
            ).hexdigest()
        attention = getattr(config, "_attn_implementation", None)
        return f"tower {self._weights_fingerprint} {arithmetic(self.host)} {attention}"

    # --- use

    @contextmanager
    def active(self) -> Iterator[None]:
        """For the forwards of this block, run the tower only for clips that are not in the store.

        The tower's parameters and adapters must not change meanwhile.
        """
        if self.store is None:
            yield
            return
        # Hooks, adapters and weights may have changed since the last block.
        self._check()
        self._weights_fingerprint = ""
        original = getattr(self.host.entry, METHOD)
        with patched_method(
            self.host.entry, METHOD, partial(self._answer, original, inspect.signature(original))
        ):
            yield

    def _answer(
        self,
        original: Callable[..., Any],
        signature: inspect.Signature,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """Answer one call of the host's method, in its place."""
        arguments = signature.bind(*args, **kwargs).arguments
        clips = _cacheable_clips(arguments | arguments.pop("kwargs", {}))
        if clips is None:
            return original(*args, **kwargs)
        pixels, grids = clips
        digests = self.content_keys.digests(pixels, grids)
        if self.by == "call":
            output = self._cached_output(original, pixels, grids, digests)
        else:
            output = self._clip_by_clip(original, pixels, grids, digests)
        return self._in_library_class(original, pixels, grids, output)

    def _clip_by_clip(
        self, original: Callable[..., Any], pixels: Tensor, grids: Tensor, digests: Sequence[str]
    ) -> TowerOutput:
        clips = zip(pixels.split(grids.prod(-1).tolist()), grids.split(1), digests, strict=True)
        outputs = [
            self._cached_output(original, patches, grid, (digest,))
            for patches, grid, digest in clips
        ]
        levels = zip(*(output.deepstack_features for output in outputs), strict=True)
        return TowerOutput(
            tuple(output.pooler_output[0] for output in outputs),
            [join_clips(level) for level in levels],
        )

    def _in_library_class(
        self, original: Callable[..., Any], pixels: Tensor, grids: Tensor, output: TowerOutput
    ) -> Any:
        """Return ``output`` in the library's own output class, its uncached fields None.

        Hosts and users may call any method of that class. It is the class that the method's
        annotation names. A method without annotation runs once more in each process, to see what it
        returns.
        """
        values = output.values
        candidates = self._output_classes or declared_output_classes(self.host.entry)
        fitting = [
            candidate
            for candidate in candidates
            if values.keys() <= {entry.name for entry in fields(candidate)}
        ]
        if not fitting:
            with torch.no_grad():
                fitting = [type(original(pixels, grids, return_dict=True))]
        self._output_classes = fitting
        return fitting[0](**values)

    def _cached_output(
        self, original: Callable[..., Any], pixels: Tensor, grids: Tensor, digests: Sequence[str]
    ) -> TowerOutput:
        """Return the tower's output for these clips, from the store or else from the tower."""
        assert self.store is not None
        dtype = self.host.entry.get_input_embeddings().weight.dtype  # type: ignore[operator, union-attr]
        content = digests[0]
        if len(digests) > 1:
            content = hashlib.sha256(" ".join(digests).encode()).hexdigest()
        key = FeatureKey(content, (), self._fingerprint(), str(dtype).removeprefix("torch."))
        stored = self.store.get_or_compute(
            key, partial(self._run_tower, original, pixels, grids, dtype)
        )
        values = stored.values[:, 0].to(pixels.device)
        # The tower merges patches, by the same factor in every clip.
        patches = grids.prod(-1)
        tokens = (patches * values.shape[1] // patches.sum()).tolist()
        further_levels = zip(values[1:], stored.coords[1:], strict=True)
        return TowerOutput(
            values[0].split(tokens),
            [
                level if _is_one_tensor(coord) else level.split(tokens)
                for level, coord in further_levels
            ],
        )

    def _run_tower(
        self, original: Callable[..., Any], pixels: Tensor, grids: Tensor, dtype: torch.dtype
    ) -> StoredTensor:
        """Return the tower's output as (level, 1, token, d_model), in the language model's dtype.

        Coordinates are numbers of levels, plus one half where the tower returned one tensor for all
        clips instead of one for each: the shape does not tell the two apart.
        """
        # An entry may serve a forward with gradients later, and autograd rejects inference tensors.
        with torch.inference_mode(False), torch.no_grad():
            output = original(pixels, grids, return_dict=True)
            levels = [output.pooler_output, *(getattr(output, "deepstack_features", None) or [])]
            if not isinstance(levels[0], tuple | list) or not all(
                isinstance(level, Tensor) or len(level) == len(grids) for level in levels
            ):
                self._refuse(
                    f"{type(self.host.entry).__name__}.{METHOD} does not return embeddings clip by"
                    " clip"
                )
            whole = [
                level if isinstance(level, Tensor) else torch.cat(list(level)) for level in levels
            ]
            values = torch.stack([level.to(dtype) for level in whole])[:, None]
        coords = tuple(
            number + 0.5 * isinstance(level, Tensor) for number, level in enumerate(levels)
        )
        return StoredTensor(values, coords)


def _cacheable_clips(arguments: Mapping[str, Any]) -> tuple[Tensor, Tensor] | None:
    """Return patches and grids of a call that wants embeddings only, or None for any other call.

    Others want what the store does not hold, such as attentions, a tuple, or gradients of pixels.
    """
    pixels = arguments.get(PIXELS)
    grids = arguments.get(GRIDS)
    if pixels is None or grids is None or pixels.requires_grad:
        return None
    for name, value in arguments.items():
        if name == "return_dict":
            if value is False:
                return None
        elif name not in (PIXELS, GRIDS) and value is not None:
            return None
    return pixels, grids


def _is_one_tensor(coord: float) -> bool:
    """Return whether a level with this coordinate is one tensor of all clips."""
    return coord % 1 != 0

"""What a host's vision tower makes of clips, kept: the tower is frozen, so over epochs and
conditions a clip gives the same again and again.

While :meth:`VisionTowerCache.remembered` lasts, the host's own ``get_video_features``, which its
forward calls, is answered from a store on disk.
"""

import hashlib
import inspect
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args, get_type_hints

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from modulate.data.feature_cache import FeatureCache, FeatureKey, bytes_of, weights_digest
from modulate.errors import HostError
from modulate.hosts.hooks import patched_method, third_party_origin
from modulate.hosts.host import Host
from modulate.interfaces.components import FrameFeatures

METHOD = "get_video_features"
PIXELS = "pixel_values_videos"
GRIDS = "video_grid_thw"
"""What transformers' classes call it, and its arguments: the patches of all clips in one row, and
(clip, 3) steps × rows × columns of patches.
"""

MEMORY = 2 << 30
"""Most bytes in memory of what the disk does not take."""


@dataclass
class TowerOutput:
    """What is kept of a vision tower's output: for every clip its (token, d_model) embeddings, and
    those for further layers, where a host has them.

    A further layer's are clip by clip, or of all clips in one tensor: transformers' releases
    differ.
    """

    pooler_output: tuple[Tensor, ...]
    deepstack_features: list[tuple[Tensor, ...] | Tensor] = field(default_factory=list)

    @property
    def values(self) -> dict[str, Any]:
        """Fields of an output with something in them, by name."""
        return {name: value for name, value in vars(self).items() if value}


def joined(parts: Sequence[tuple[Tensor, ...] | Tensor]) -> tuple[Tensor, ...] | Tensor:
    """Return one level of several clips from those of single clips."""
    whole = [part for part in parts if isinstance(part, Tensor)]
    return torch.cat(whole) if whole else tuple(part[0] for part in parts)


def announced(entry: nn.Module) -> list[type[Any]]:
    """Return the classes of outputs that the class of ``entry`` says its :data:`METHOD` returns."""
    from transformers.utils import ModelOutput

    try:
        said = get_type_hints(inspect.unwrap(getattr(type(entry), METHOD)))["return"]
    except (AttributeError, KeyError, NameError):  # no annotation, or one that cannot be evaluated
        return []
    return [
        kind
        for kind in (said, *get_args(said))
        if isinstance(kind, type) and issubclass(kind, ModelOutput)
    ]


def seeing(host: Host) -> dict[str, nn.Module]:
    """Return all of a host that pixels go through: the tower, and what brings its output to the
    language model's width.
    """
    return {
        name: module for name, module in host.entry.named_children() if module is not host.language
    }


def why_not_cacheable(whole: nn.Module, path: str) -> str:
    """Return why what ``whole`` makes of an input is no constant, or may not be left out; "" when
    it is. Adapters are for the caller to judge.
    """
    for name, parameter in whole.named_parameters(path):
        if parameter.requires_grad and ".lora_" not in name:
            return f"{name} is trainable"
    for name, module in whole.named_modules(prefix=path):
        if (
            module.training
            and isinstance(module, nn.Dropout)
            and module.p
            and not type(module).__module__.startswith("peft.")
        ):
            return f"{name} is a dropout in training mode"
        origin = third_party_origin(
            [*module._forward_pre_hooks.values(), *module._forward_hooks.values()]
        )
        if origin:
            return f"a hook of {origin} is on {name}, which would not run for what is kept"
    return ""


def arithmetic(host: Host) -> str:
    """Return where a forward of ``host`` computes now, and in what type of its own accord."""
    device = next(host.entry.parameters()).device.type
    return (
        f"{device}"
        f" {torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None}"
    )


class ContentKeys:
    """What clips' patches hold, as digests.

    Those of a pipeline's samples are made once for as long as the samples live, unaltered; not at
    all unless ``wanted``.
    """

    def __init__(self, wanted: bool = True) -> None:
        self.wanted = wanted
        self._known: Any = (
            WeakTensorKeyDictionary()
        )  # patches → grids and digest of every clip in them

    def recognize(self, inputs: Mapping[str, Tensor], rows: Sequence[Mapping[str, Tensor]]) -> None:
        """Note that the patches of ``inputs``, where there are any, are those of ``rows``.

        It only saves time.
        """
        shown = [row for row in rows if PIXELS in row] if self.wanted else []
        for row in shown:
            self._known[row[PIXELS]] = row[GRIDS].tolist(), self.of(row[PIXELS], row[GRIDS])
        if shown and PIXELS in inputs:
            self._known[inputs[PIXELS]] = (
                inputs[GRIDS].tolist(),
                tuple(d for row in shown for d in self.of(row[PIXELS], row[GRIDS])),
            )

    def of(self, pixels: Tensor, grids: Tensor) -> tuple[str, ...]:
        """Return a digest of each clip."""
        known, digests = self._known.get(pixels, (None, ()))
        if known == grids.tolist():
            return tuple(digests)
        clips = zip(pixels.split(grids.prod(-1).tolist()), grids.tolist(), strict=True)
        return tuple(digest_of(clip, grid) for clip, grid in clips)


def digest_of(values: Tensor, *more: object) -> str:
    """Return the SHA-256 (hex) of a tensor's bytes, type and shape, and of the text of ``more``."""
    digest = hashlib.sha256(f"{values.dtype} {tuple(values.shape)} {more};".encode())
    digest.update(bytes_of(values))
    return digest.hexdigest()


class VisionTowerCache:
    """The vision tower of ``host``, with a store of at most ``max_bytes`` in ``folder``; 0 keeps
    nothing, and the tower is left alone.

    ``by``: what is kept as one. "call": what went through the tower at once, so that all is the
    same to the bit as without a store. "clip": each clip goes through by itself, so that it is
    found whatever it shares a batch with; matrix products of another number of rows may round
    another way.

    Raises :class:`HostError` for a tower whose output is no constant of a clip, here and when
    :meth:`remembered` begins.
    """

    def __init__(
        self,
        host: Host,
        folder: Path,
        max_bytes: int,
        by: Literal["call", "clip"] = "call",
        contents: ContentKeys | None = None,
    ) -> None:
        self.host = host
        self.by = by
        self.contents = contents or ContentKeys()
        self.store = FeatureCache(folder, max_bytes, min(max_bytes, MEMORY)) if max_bytes else None
        self._made_of = ""
        self._kinds: list[type[Any]] = []
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
        for part, whole in seeing(self.host).items():
            why = why_not_cacheable(whole, part)
            if why:
                self._refuse(why)
            adapted = next(
                (
                    name
                    for name, module in whole.named_modules(prefix=part)
                    if type(module).__module__.startswith("peft.")
                ),
                "",
            )
            if adapted:
                self._refuse(f"an adapter is on {adapted}, which can be switched on and off")

    def _refuse(self, why: str) -> None:
        raise HostError(
            f"What the host's vision tower makes of clips cannot be kept: {why}. Set"
            " features.vision_tower_cache_gib to 0."
        )

    def _fingerprint(self) -> str:
        """Return what the output depends on beside a clip: weights, configuration, arithmetic."""
        config: Any = getattr(self.host.config, "vision_config", self.host.config)
        if not self._made_of:
            import transformers

            weights = {name: weights_digest(part) for name, part in seeing(self.host).items()}
            settings = json.dumps(config.to_dict(), sort_keys=True, default=str)
            self._made_of = hashlib.sha256(
                f"{weights} {settings} {torch.__version__} {transformers.__version__}".encode()
            ).hexdigest()
        return (
            f"tower {self._made_of} {arithmetic(self.host)}"
            f" {getattr(config, '_attn_implementation', None)}"
        )

    # --- use

    @contextmanager
    def remembered(self) -> Iterator[None]:
        """For the forwards of this block, run the tower only for what is not kept.

        Its parameters and adapters must stay as they are meanwhile.
        """
        if self.store is None:
            yield
            return
        self._check()
        self._made_of = ""
        with patched_method(
            self.host.entry, METHOD, self._answer(getattr(self.host.entry, METHOD))
        ):
            yield

    def _answer(self, original: Callable[..., Any]) -> Callable[..., Any]:
        signature = inspect.signature(original)

        def answer(*args: Any, **kwargs: Any) -> Any:
            given = signature.bind(*args, **kwargs).arguments
            more = given.pop("kwargs", {}) | {
                k: v for k, v in given.items() if k not in (PIXELS, GRIDS)
            }
            pixels = given.get(PIXELS)
            grids = given.get(GRIDS)
            asked = more.pop("return_dict", None)
            if (
                pixels is None
                or grids is None
                or pixels.requires_grad
                or asked is False
                or any(v is not None for v in more.values())
            ):
                return original(
                    *args, **kwargs
                )  # something else is asked for than a forward needs, such as attentions
            digests = self.contents.of(pixels, grids)
            if self.by == "call":
                return self._output(
                    original, pixels, grids, self._kept(original, pixels, grids, digests)
                )
            sizes = grids.prod(-1).tolist()
            one = [
                self._kept(original, p, g, (d,))
                for p, g, d in zip(pixels.split(sizes), grids.split(1), digests, strict=True)
            ]
            deep = [
                joined(level)
                for level in zip(*(seen.deepstack_features for seen in one), strict=True)
            ]
            return self._output(
                original,
                pixels,
                grids,
                TowerOutput(tuple(seen.pooler_output[0] for seen in one), deep),
            )

        return answer

    def _output(
        self, original: Callable[..., Any], pixels: Tensor, grids: Tensor, seen: TowerOutput
    ) -> Any:
        """Return what is kept as the library's own class of outputs: hosts and users may call any
        of its methods. What is not kept is None in it.

        The class is the one that the method announces. One that announces none runs once more in
        each process, to see what it returns.
        """
        values = seen.values
        kinds = self._kinds or announced(self.host.entry)
        fitting = [kind for kind in kinds if values.keys() <= {f.name for f in fields(kind)}]
        if not fitting:
            with torch.no_grad():
                fitting = [type(original(pixels, grids, return_dict=True))]
        self._kinds = fitting
        return fitting[0](**values)

    def _kept(
        self, original: Callable[..., Any], pixels: Tensor, grids: Tensor, digests: Sequence[str]
    ) -> TowerOutput:
        """Return what the tower makes of these clips, from the store or from the tower, in the type
        that the language model is given.
        """
        assert self.store is not None
        dtype = self.host.entry.get_input_embeddings().weight.dtype  # type: ignore[operator, union-attr]

        def compute() -> FrameFeatures:
            with (
                torch.inference_mode(False),
                torch.no_grad(),
            ):  # what is kept may serve a forward with gradients later
                made = original(pixels, grids, return_dict=True)
                levels = [made.pooler_output, *(getattr(made, "deepstack_features", None) or [])]
                if not (
                    isinstance(levels[0], tuple | list)
                    and all(
                        isinstance(level, Tensor) or len(level) == len(grids) for level in levels
                    )
                ):
                    self._refuse(
                        f"{type(self.host.entry).__name__}.{METHOD} does not return embeddings clip"
                        " by clip"
                    )
                values = torch.stack(
                    [
                        (level if isinstance(level, Tensor) else torch.cat(list(level))).to(dtype)
                        for level in levels
                    ]
                )[:, None]
            # In place of times: numbers of levels, by a half more where a level is one tensor.
            return FrameFeatures(
                values, tuple(i + 0.5 * isinstance(level, Tensor) for i, level in enumerate(levels))
            )

        content = (
            digests[0]
            if len(digests) == 1
            else hashlib.sha256(" ".join(digests).encode()).hexdigest()
        )
        key = FeatureKey(content, (), self._fingerprint(), str(dtype).removeprefix("torch."))
        found = self.store.get_or_compute(key, compute)
        values = found.values[:, 0].to(pixels.device)
        rows = grids.prod(-1)
        sizes = (rows * values.shape[1] // rows.sum()).tolist()
        deep = [
            level if time % 1 else level.split(sizes)
            for level, time in zip(values[1:], found.times[1:], strict=True)
        ]
        return TowerOutput(values[0].split(sizes), deep)

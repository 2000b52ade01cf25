"""Hidden states below the first residual, kept: what the host makes of a prompt up to there is the
same in every epoch and under every control.

While :meth:`HiddenStateCache.remembered` lasts, a forward whose inputs went through before skips
the vision tower, and the decoder layers up to the first injected one hand on what they made then;
that layer's hooks run on it as ever. Kept is what one forward made: a batch is found when the same
batch comes again.
"""

import hashlib
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn

from modulate.errors import HostError
from modulate.hosts.hooks import Hook, arguments_by_name, patched_method
from modulate.hosts.host import Host
from modulate.hosts.kv_cache import cache_length, find_cache, output_cache
from modulate.hosts.vision_tower_cache import (
    GRIDS,
    PIXELS,
    ContentKeys,
    arithmetic,
    digest_of,
    seeing,
    why_not_cacheable,
)
from modulate.modulation.lora import LoraHook

READ = (
    "input_ids",
    "attention_mask",
    "position_ids",
    "mm_token_type_ids",
    "token_type_ids",
    "second_per_grid_ts",
    "image_grid_thw",
    GRIDS,
    "pixel_values",
    PIXELS,
)
"""Inputs of a forward that its hidden states are made of.

A forward that is given any other tensor is left alone.
"""


@dataclass(frozen=True)
class CachedStates:
    """What one forward made: the output of the first injected layer, (batch, position, d_model),
    and, where a cache was filled, keys and values so far.
    """

    hidden: Tensor
    bundled: bool  # the layer returns a tuple
    cached: tuple[tuple[Tensor, Tensor], ...]

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return self.hidden.nbytes + sum(k.nbytes + v.nbytes for k, v in self.cached)


class HiddenStateCache:
    """The decoder layers of ``host`` up to ``first``, the first injected one, with a store of
    ``max_bytes`` in memory; 0: they are left alone.

    What comes first stays until the store is full: epochs and controls go round, and what was used
    longest ago is what they need next. What an earlier :meth:`remembered` left, a training's for
    the evaluation after it, makes room. Raises :class:`HostError` for a host of which this cannot
    be right, here and when :meth:`remembered` begins.
    """

    def __init__(self, host: Host, first: int, max_bytes: int, contents: ContentKeys) -> None:
        self.host = host
        self.first = first
        self.max_bytes = max_bytes
        self.contents = contents
        self.layers = list(host.layers)[: first + 1]
        self.hits = self.misses = 0
        self._kept: dict[tuple[str, str], CachedStates] = {}  # (state of the host, inputs) → states
        self._free = max_bytes
        self._adapters: dict[
            int, Tensor
        ] = {}  # of modulations, by id: held, so that no other tensor gets the id
        self._used: set[tuple[str, str]] = set()  # kept or found since remembering began
        self._now: tuple[str, str] | None = None  # of the forward that is running
        self._found: CachedStates | None = None
        self._made: tuple[Tensor, bool] | None = None
        if max_bytes:
            self._check()

    def _check(self) -> None:
        deep = len(
            getattr(
                getattr(self.host.config, "vision_config", None), "deepstack_visual_indexes", None
            )
            or ()
        )
        if deep > self.first:
            self._refuse(
                f"its vision tower adds to the states after each of its first {deep} layers, and"
                f" layer {self.first} is one"
            )
        for part, whole in {
            **seeing(self.host),
            **{f"decoder layer {i}": layer for i, layer in enumerate(self.layers[:-1])},
        }.items():
            why = why_not_cacheable(whole, part)
            if why:
                self._refuse(why)
        last = self.layers[-1]
        why = next(
            filter(
                None,
                (
                    why_not_cacheable(child, f"decoder layer {self.first}.{name}")
                    for name, child in last.named_children()
                ),
            ),
            "",
        )
        if why:
            self._refuse(why)
        if last._forward_pre_hooks:
            self._refuse(
                f"a hook is before decoder layer {self.first}, which would not run for what is kept"
            )

    def _refuse(self, why: str) -> None:
        raise HostError(
            f"The host's states up to the first injected layer cannot be kept: {why}. Set"
            " features.hidden_state_cache_gib to 0."
        )

    # --- which forward this is

    def _state(self) -> str | None:
        """Return what of the host the states depend on, as it is now; None while that is being
        trained.

        Parameters are known by themselves and by torch's count of the changes made to them in
        place, adapters by which are switched on.
        """
        parts = [*seeing(self.host).values(), self.host.entry.get_input_embeddings(), *self.layers]  # type: ignore[operator]
        digest = hashlib.sha256()
        for part in parts:
            for parameter in part.parameters():
                if parameter.requires_grad and torch.is_grad_enabled():
                    return None
                digest.update(f"{id(parameter)} {parameter._version} ".encode())
        for layer in self.layers:
            for module in layer.modules():
                if type(module).__module__.startswith("peft.") and hasattr(
                    module, "active_adapters"
                ):
                    digest.update(f"{module.active_adapters} {module.disable_adapters} ".encode())
                for hook in module._forward_hooks.values():
                    if isinstance(hook, LoraHook) and hook.current().lora:
                        if torch.is_grad_enabled() and (
                            hook.a.requires_grad or hook.b.requires_grad
                        ):
                            return None
                        for tensor in (hook.a, hook.b):
                            self._adapters[id(tensor)] = tensor
                            digest.update(f"{id(module)} {id(tensor)} {tensor._version} ".encode())
        digest.update(
            f"{arithmetic(self.host)} {self.host.config.get_text_config()._attn_implementation}".encode()
        )
        return digest.hexdigest()

    def _key(self, given: dict[str, Any]) -> tuple[str, str] | None:
        """Return by what a forward with these arguments is known; None for one that is left alone."""
        past = find_cache(given)
        more = [
            v
            for k, v in given.items()
            if k not in {"use_cache", "return_dict", *READ} and v is not past
        ]
        if given.get("input_ids") is None or cache_length(past) or any(v is not None for v in more):
            return None
        if any(layer.training for layer in self.layers):  # they are computed again in the backward
            warnings.warn(
                "features.hidden_state_cache_gib has no effect while decoder layers are recomputed"
                " (training.gradient_checkpointing).",
                stacklevel=2,
            )
            return None
        state = self._state()
        if state is None:
            warnings.warn(
                "features.hidden_state_cache_gib has no effect while LoRA in layers 0 to"
                f" {self.first} is trained: their states change with every step.",
                stacklevel=2,
            )
            return None
        texts = [f"cache {past is not None} {given.get('use_cache')}"]
        for name in READ:
            if given.get(name) is not None:
                whole = name != PIXELS or given.get(GRIDS) is None
                texts += [
                    name,
                    *(
                        (digest_of(given[name]),)
                        if whole
                        else self.contents.of(given[PIXELS], given[GRIDS])
                    ),
                ]
        return state, hashlib.sha256(" ".join(texts).encode()).hexdigest()

    # --- hooks and stand-ins

    @contextmanager
    def remembered(self) -> Iterator[None]:
        """For the forwards of this block, compute what is below the first residual only where it is
        not kept.
        """
        if not self.max_bytes:
            yield
            return
        self._check()
        self._used.clear()
        entry = self.host.entry
        with ExitStack() as undo:
            undo.callback(
                entry.register_forward_pre_hook(
                    Hook(partial(self._before, signature(entry.forward))), with_kwargs=True
                ).remove
            )
            undo.callback(entry.register_forward_hook(Hook(self._after), always_call=True).remove)
            for index, layer in enumerate(self.layers):
                undo.enter_context(
                    patched_method(layer, "forward", partial(self._layer, index, layer.forward))
                )
            yield

    @torch.compiler.disable
    def _before(
        self, parameters: Any, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        given = arguments_by_name(parameters, args, kwargs)
        self._found = self._made = None
        self._now = self._key(given)
        if self._now is None or (found := self._kept.get(self._now)) is None:
            return None
        self._found = found
        self._used.add(self._now)
        return args, kwargs | {name: None for name in (PIXELS, "pixel_values") if name in kwargs}

    def _layer(self, index: int, original: Any, *args: Any, **kwargs: Any) -> Any:
        if self._found is None:
            output = original(*args, **kwargs)
            if index == self.first and self._now is not None:
                self._made = (
                    (output[0] if isinstance(output, tuple) else output),
                    isinstance(output, tuple),
                )
                if isinstance(output, tuple) and any(value is not None for value in output[1:]):
                    self._now = None  # more is asked for than hidden states
            return output
        hidden = args[0] if args else kwargs["hidden_states"]
        cache = find_cache(kwargs | {str(i): value for i, value in enumerate(args)})
        if cache is not None:
            cache.update(*(value.to(hidden.device) for value in self._found.cached[index]), index)
        if index == self.first:
            hidden = self._found.hidden.to(hidden.device)
        return (hidden,) if self._found.bundled else hidden

    @torch.compiler.disable
    def _after(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """Keep what a forward made, unless it failed (``output`` None)."""
        now = self._now
        found = self._found
        made = self._made
        self._now = self._found = self._made = None
        if output is None or now is None:
            return
        self.hits = self.hits + (found is not None)
        self.misses = self.misses + (found is None)
        if made is None:
            return
        cached = _so_far(next(iter(output_cache(output).values()), None), self.first + 1)
        if cached is not None:
            self._keep(now, made, cached)

    def _keep(
        self,
        now: tuple[str, str],
        made: tuple[Tensor, bool],
        cached: tuple[tuple[Tensor, Tensor], ...],
    ) -> None:
        size = made[0].nbytes + sum(k.nbytes + v.nbytes for k, v in cached)
        if (
            size > self._free
        ):  # of weights as they were, of another set of adapters, or of no use so far
            for key in [key for key in self._kept if key[0] != now[0] or key not in self._used]:
                self._free += self._kept.pop(key).nbytes
        if size <= self._free:
            self._used.add(now)
            self._kept[now] = CachedStates(
                _own(made[0]), made[1], tuple((_own(k), _own(v)) for k, v in cached)
            )
            self._free -= size


def _so_far(cache: Any, layers: int) -> tuple[tuple[Tensor, Tensor], ...] | None:
    """Return keys and values of the first layers of a cache, none where there is no cache; None for
    a cache that is not simply appended to.
    """
    from transformers.cache_utils import DynamicLayer

    if cache is None:
        return ()
    if not all(type(layer) is DynamicLayer for layer in cache.layers[:layers]):
        return None
    return tuple((layer.keys, layer.values) for layer in cache.layers[:layers])


def _own(value: Tensor) -> Tensor:
    """Return ``value`` on the CPU, fit for forwards with gradients also when it was made without
    any.
    """
    with torch.inference_mode(False), torch.no_grad():
        return value.detach().to("cpu", copy=value.is_inference())

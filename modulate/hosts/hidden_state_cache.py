"""A cache of hidden states below the first injected layer, which no epoch and no control changes.

While :meth:`HiddenStateCache.active` lasts, a forward whose inputs are known skips the vision tower
and the decoder layers up to the first injected one. That layer returns its stored output, and the
hooks on it, which write the residual, run as always. One entry is one forward: a batch is found
when the same batch comes again.
"""

import hashlib
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from inspect import Signature, signature
from typing import Any

import torch
from torch import Tensor, nn

from modulate.errors import HostError
from modulate.hosts.hooks import Hook, TrackedHook, arguments_by_name, patched_method
from modulate.hosts.host import Host
from modulate.hosts.kv_cache import cache_length, find_cache, output_cache
from modulate.hosts.vision_tower_cache import (
    GRIDS,
    PIXELS,
    ContentKeys,
    arithmetic,
    tensor_digest,
    vision_modules,
    why_not_cacheable,
)

KEYED_INPUTS = (
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
"""Inputs of a forward that its hidden states depend on; each is part of an entry's key.

A forward with any other input is neither answered nor stored: that input may matter too.
"""

_OPTIONS = frozenset({"use_cache", "return_dict"})
"""Arguments of a forward that do not change its hidden states."""

Key = tuple[str, str]
"""Digests of the state of the host, and of the inputs."""


@dataclass(frozen=True)
class CachedStates:
    """Stored results of one forward, on the CPU.

    ``hidden``: output of the first injected layer, (batch, position, d_model). ``in_tuple``:
    whether the layer returned it in a tuple. ``keys_values``: of each layer up to that one, if the
    forward filled a key-value cache.
    """

    hidden: Tensor
    in_tuple: bool
    keys_values: tuple[tuple[Tensor, Tensor], ...]

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return self.hidden.nbytes + _nbytes(self.keys_values)


@dataclass
class _Forward:
    """The forward that is running: its key, and the entry that answers it, or what it computed.

    ``key`` None: this forward is neither answered nor stored.
    """

    key: Key | None = None
    hit: CachedStates | None = None
    computed: tuple[Tensor, bool] | None = None


class HiddenStateCache:
    """Stores up to ``max_bytes`` of hidden states of ``host`` below layer ``first`` in memory.

    ``first``: the first injected layer. With ``max_bytes`` 0 the host is left alone.

    A full store keeps its oldest entries. Epochs and controls repeat one order, so evicting the
    least recently used entry would always evict the one needed next. Only entries that the current
    :meth:`active` block has not used make room, such as a training's for the evaluation after it.

    The constructor and :meth:`active` raise :class:`HostError` where caching would be wrong.
    """

    def __init__(self, host: Host, first: int, max_bytes: int, content_keys: ContentKeys) -> None:
        self.host = host
        self.first = first
        self.max_bytes = max_bytes
        self.content_keys = content_keys
        self.layers = list(host.layers)[: first + 1]
        self.hits = 0
        self.misses = 0
        self._entries: dict[Key, CachedStates] = {}
        self._free_bytes = max_bytes
        # Keys hold the ids of adapter tensors. Holding the tensors keeps each id from being reused
        # for another tensor after a modulation is gone.
        self._adapter_tensors: dict[int, Tensor] = {}
        self._used_in_block: set[Key] = set()
        self._forward = _Forward()
        if max_bytes:
            self._check()

    def _check(self) -> None:
        vision_config = getattr(self.host.config, "vision_config", None)
        # Such towers add a residual of their own after each of these layers. The tower does not run
        # on a hit, so all of them must lie below the output that is stored.
        deepstack = len(getattr(vision_config, "deepstack_visual_indexes", None) or ())
        if deepstack > self.first:
            self._refuse(
                f"its vision tower adds to the states after each of its first {deepstack} layers,"
                f" and layer {self.first} is one"
            )
        modules = vision_modules(self.host)
        for index, layer in enumerate(self.layers[:-1]):
            modules[f"decoder layer {index}"] = layer
        # Of the first injected layer, only the parts: hooks on its output still run on a hit.
        last = self.layers[-1]
        for name, child in last.named_children():
            modules[f"decoder layer {self.first}.{name}"] = child
        for path, module in modules.items():
            reason = why_not_cacheable(module, path)
            if reason:
                self._refuse(reason)
        # A pre-hook could change the layer's input, which the stored output does not show.
        if last._forward_pre_hooks:
            self._refuse(
                f"a hook is before decoder layer {self.first}, which would not run on a cache hit"
            )

    def _refuse(self, reason: str) -> None:
        raise HostError(
            f"The host's states up to the first injected layer cannot be cached: {reason}. Set"
            " features.hidden_state_cache_gib to 0."
        )

    # --- the key of a forward

    def _host_state(self) -> str | None:
        """Return a digest of all in the host that the states depend on, or None if it is trained.

        Hashing weights for every forward would cost more than the forward. A parameter is
        identified by its id and by torch's count of in-place changes instead, an adapter also by
        whether it is on.
        """
        facts = [arithmetic(self.host), self.host.config.get_text_config()._attn_implementation]
        embedding = self.host.entry.get_input_embeddings()  # type: ignore[operator]
        for module in (*vision_modules(self.host).values(), embedding, *self.layers):
            for parameter in module.parameters():
                if _is_trained(parameter):
                    return None
                facts.append(f"{id(parameter)} {parameter._version}")
        for layer in self.layers:
            for module in layer.modules():
                if type(module).__module__.startswith("peft.") and hasattr(
                    module, "active_adapters"
                ):
                    facts.append(f"{module.active_adapters} {module.disable_adapters}")
                for tensor in _hook_tensors(module):
                    if _is_trained(tensor):
                        return None
                    self._adapter_tensors[id(tensor)] = tensor
                    facts.append(f"{id(module)} {id(tensor)} {tensor._version}")
        return hashlib.sha256(" ".join(map(str, facts)).encode()).hexdigest()

    def _key(self, arguments: dict[str, Any]) -> Key | None:
        """Return the key of a forward with these arguments, or None for one to leave alone."""
        past = find_cache(arguments)
        # On a filled cache, states also depend on tokens that are not among the arguments.
        if arguments.get("input_ids") is None or cache_length(past):
            return None
        for name, value in arguments.items():
            known = name in _OPTIONS or name in KEYED_INPUTS or value is past
            if value is not None and not known:
                if isinstance(value, Tensor):
                    warnings.warn(
                        f"features.hidden_state_cache_gib has no effect: the host is given {name},"
                        " which may matter to its states and is not part of an entry's key.",
                        stacklevel=2,
                    )
                return None
        # Transformers' checkpointing runs a layer in training mode, and again in the backward.
        if any(layer.training for layer in self.layers):
            warnings.warn(
                "features.hidden_state_cache_gib has no effect while decoder layers are recomputed"
                " (training.gradient_checkpointing).",
                stacklevel=2,
            )
            return None
        state = self._host_state()
        if state is None:
            warnings.warn(
                "features.hidden_state_cache_gib has no effect while LoRA in layers 0 to"
                f" {self.first} is trained: their states change with every step.",
                stacklevel=2,
            )
            return None
        return state, self._input_digest(arguments, with_cache=past is not None)

    def _input_digest(self, arguments: dict[str, Any], with_cache: bool) -> str:
        # Without a cache in the arguments, `use_cache` decides whether keys and values are stored.
        facts = [f"cache {with_cache} {arguments.get('use_cache')}"]
        for name in KEYED_INPUTS:
            value = arguments.get(name)
            if value is None:
                continue
            facts.append(name)
            if name == PIXELS and arguments.get(GRIDS) is not None:
                # Patches are most of the bytes; clip by clip their digests are already known.
                facts += self.content_keys.digests(value, arguments[GRIDS])
            else:
                facts.append(tensor_digest(value))
        return hashlib.sha256(" ".join(facts).encode()).hexdigest()

    # --- hooks and patched layers

    @contextmanager
    def active(self) -> Iterator[None]:
        """For the forwards of this block, skip what is below the first residual where it is stored.

        The host's other computation, and every hook on or after the first injected layer, is
        unchanged.
        """
        if not self.max_bytes:
            yield
            return
        self._check()
        self._used_in_block.clear()
        entry = self.host.entry
        before = Hook(partial(self._before, signature(entry.forward)))
        with ExitStack() as undo:
            undo.callback(entry.register_forward_pre_hook(before, with_kwargs=True).remove)
            undo.callback(entry.register_forward_hook(Hook(self._after), always_call=True).remove)
            for index, layer in enumerate(self.layers):
                run_layer = partial(self._run_layer, index, layer.forward)
                undo.enter_context(patched_method(layer, "forward", run_layer))
            yield

    @torch.compiler.disable
    def _before(
        self,
        entry_signature: Signature,
        module: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        arguments = arguments_by_name(entry_signature, args, kwargs)
        # An interrupted forward never reached `_after`: what it left must not answer this one.
        self._forward = _Forward()
        key = self._key(arguments)
        self._forward.key = key
        hit = None if key is None else self._entries.get(key)
        if key is None or hit is None:
            return None
        self._forward.hit = hit
        self._used_in_block.add(key)
        # Without pixels the host skips its tower. Placeholders keep their text embeddings, which
        # only the skipped layers would read.
        without_pixels = {name: None for name in (PIXELS, "pixel_values") if name in kwargs}
        return args, kwargs | without_pixels

    def _run_layer(self, index: int, original: Any, *args: Any, **kwargs: Any) -> Any:
        """Run in place of the forward of decoder layer ``index``."""
        hit = self._forward.hit
        if hit is None:
            output = original(*args, **kwargs)
            if index == self.first and self._forward.key is not None:
                self._note_output(output)
            return output
        hidden = args[0] if args else kwargs["hidden_states"]
        # Layers above, and the tokens that follow, expect a cache that every layer has filled.
        cache = find_cache(kwargs | {str(place): value for place, value in enumerate(args)})
        if cache is not None:
            keys, values = hit.keys_values[index]
            cache.update(keys.to(hidden.device), values.to(hidden.device), index)
        # What the layers before the last pass on is never read: the last one replaces it.
        if index == self.first:
            hidden = hit.hidden.to(hidden.device)
        return (hidden,) if hit.in_tuple else hidden

    def _note_output(self, output: Any) -> None:
        """Note the output of the first injected layer, before any hook writes a residual on it."""
        in_tuple = isinstance(output, tuple)
        if in_tuple and any(value is not None for value in output[1:]):
            # More than hidden states is wanted, attentions for example, which no entry holds.
            self._forward.key = None
        self._forward.computed = (output[0] if in_tuple else output), in_tuple

    @torch.compiler.disable
    def _after(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """Store the results of a forward, unless it failed (``output`` None)."""
        forward = self._forward
        self._forward = _Forward()
        if output is None or forward.key is None:
            return
        if forward.hit is None:
            self.misses += 1
        else:
            self.hits += 1
        if forward.computed is None:
            return
        cache = next(iter(output_cache(output).values()), None)
        keys_values = _keys_values(cache, self.first + 1)
        if keys_values is not None:
            hidden, in_tuple = forward.computed
            self._store(forward.key, CachedStates(hidden, in_tuple, keys_values))

    def _store(self, key: Key, states: CachedStates) -> None:
        if states.nbytes > self._free_bytes:
            # Make room: entries of another state of the host, and those of an earlier block.
            for other in list(self._entries):
                if other[0] != key[0] or other not in self._used_in_block:
                    self._free_bytes += self._entries.pop(other).nbytes
        if states.nbytes > self._free_bytes:
            return
        self._used_in_block.add(key)
        self._free_bytes -= states.nbytes
        self._entries[key] = CachedStates(
            _on_cpu(states.hidden),
            states.in_tuple,
            tuple((_on_cpu(keys), _on_cpu(values)) for keys, values in states.keys_values),
        )


def _is_trained(tensor: Tensor) -> bool:
    """Return whether the running forward may lead to a gradient of ``tensor``."""
    return tensor.requires_grad and torch.is_grad_enabled()


def _hook_tensors(module: nn.Module) -> list[Tensor]:
    """Return the tensors that the hooks on ``module`` depend on in the running forward."""
    hooks = module._forward_hooks.values()
    return [
        tensor
        for hook in hooks
        if isinstance(hook, TrackedHook)
        for tensor in hook.active_tensors()
    ]


def _nbytes(keys_values: tuple[tuple[Tensor, Tensor], ...]) -> int:
    return sum(keys.nbytes + values.nbytes for keys, values in keys_values)


def _keys_values(cache: Any, layers: int) -> tuple[tuple[Tensor, Tensor], ...] | None:
    """Return keys and values of the first ``layers`` of a cache, or () if there is no cache.

    None for a cache that is not simply appended to: a sliding window or a quantized cache could not
    be filled again by one update.
    """
    from transformers.cache_utils import DynamicLayer

    if cache is None:
        return ()
    # The exact type: subclasses such as the sliding window drop positions.
    if not all(type(layer) is DynamicLayer for layer in cache.layers[:layers]):
        return None
    return tuple((layer.keys, layer.values) for layer in cache.layers[:layers])


def _on_cpu(value: Tensor) -> Tensor:
    """Return ``value`` on the CPU, as a tensor that autograd accepts.

    A tensor made in inference mode is copied: a later forward with gradients could not save it.
    """
    with torch.inference_mode(False), torch.no_grad():
        return value.detach().to("cpu", copy=value.is_inference())

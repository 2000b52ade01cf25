"""LoRA tensors that a modulation owns, and the hooks through which a host is adapted by them.

A modulation keeps its low-rank matrices as parameters of its own, keyed by layer index and
sub-module, always in fp32. PEFT's adapter folder is the format in which they are saved and loaded.
"""

import math
import re
from collections.abc import Callable, Mapping
from typing import Annotated, Any

import torch
from pydantic import BeforeValidator, Field
from torch import Tensor, nn

from modulate.config.injection import LoraParams
from modulate.errors import CheckpointError, HostError
from modulate.hosts.hooks import Hook
from modulate.hosts.host import Host, bare
from modulate.hosts.wrappers import WrappedPath, named_inside
from modulate.interfaces.params import Params
from modulate.modulation.recompute import ForwardPass

_KEY = re.compile(r"(?:^|\.)layers\.(0|[1-9][0-9]{0,3})\.([^/|]+)\.lora_([AB])\.weight$")
_WRAPPED = re.compile(r"\b_(?:orig_mod|checkpoint_wrapped_module|fsdp_wrapped_module)\.")
"""Wrappers of torch in the names that versions before this one saved."""

Width = Annotated[int, Field(ge=1, le=2**20)]


def plain_name(name: Any) -> Any:
    """Return a module's path without wrappers, as every version reads it."""
    return _WRAPPED.sub("", name) if isinstance(name, str) else name


PlainName = Annotated[str, BeforeValidator(plain_name)]
SubModule = Annotated[PlainName, Field(pattern=r"^\w+(\.\w+)*$")]


class LoraSpec(Params):
    """What is saved of an adaptation: its parameters, and the shape of every adapted sub-module of
    a decoder layer.
    """

    params: LoraParams
    shapes: dict[SubModule, tuple[Width, Width]] = Field(
        description="sub-module of a decoder layer → (input width, output width)"
    )
    layers: dict[PlainName, tuple[int, ...]] = Field(
        default_factory=dict,
        description="of sub-modules that not every layer has: the layers that have it",
    )
    layers_path: PlainName = Field(
        description=(
            "where the decoder layers are inside the host, for the names in the PEFT adapter file"
        )
    )


def describe(host: Host, params: LoraParams) -> LoraSpec:
    """Find the targets in a host.

    Raises :class:`HostError` when one matches nothing, or not the same in all layers.
    """
    shapes: dict[str, tuple[int, int]] = {}
    where: dict[str, list[int]] = {}
    for index, layer in enumerate(host.layers):
        module: Any
        for name, module in named_inside(layer):
            if name.rpartition(".")[2] not in params.targets or not hasattr(module, "in_features"):
                continue
            shape = (int(module.in_features), int(module.out_features))
            if shapes.setdefault(name, shape) != shape:
                raise HostError(
                    f"LoRA target {name!r} is {shapes[name]} in layer {where[name][0]} and {shape}"
                    f" in layer {index}; one shape is needed."
                )
            where.setdefault(name, []).append(index)
    missing = set(params.targets) - {name.rpartition(".")[2] for name in shapes}
    if missing:
        linear = sorted(
            {
                n.rpartition(".")[2]
                for n, m in named_inside(host.layers)
                if hasattr(m, "in_features")
            }
        )
        raise HostError(
            f"LoRA targets {sorted(missing)} match no linear layer of the host's decoder layers;"
            f" there are {', '.join(linear)}."
        )
    some = {name: tuple(layers) for name, layers in where.items() if len(layers) < len(host.layers)}
    return LoraSpec(params=params, shapes=shapes, layers=some, layers_path=layers_path(host))


def layers_path(host: Host) -> str:
    """Return the dotted path of the decoder layers inside the bare host."""
    return next(name for name, module in named_inside(bare(host.model)) if module is host.layers)


def check_numbers(tensors: Mapping[str, Tensor], source: str) -> None:
    """Raise :class:`CheckpointError` for a tensor that holds other than finite floating-point
    numbers; ``source`` names its file.
    """
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            raise CheckpointError(
                f"{source}: tensor {name!r:.200} is {tensor.dtype}; floating-point numbers are"
                " needed."
            )
        if not tensor.isfinite().all():
            raise CheckpointError(
                f"{source}: tensor {name!r:.200} holds numbers that are not finite."
            )


class LoraTensors(nn.ParameterDict):
    """The A and B matrices of every adapted sub-module of every decoder layer; A random, B zero, so
    that a fresh one changes nothing.
    """

    def __init__(self, spec: LoraSpec, n_layers: int) -> None:
        super().__init__()
        self.spec = spec
        for layer in range(n_layers):
            for name, (d_in, d_out) in spec.shapes.items():
                if layer not in spec.layers.get(name, range(n_layers)):
                    continue
                a = torch.empty(spec.params.rank, d_in)
                nn.init.kaiming_uniform_(a, a=math.sqrt(5))  # as in the LoRA reference code
                self[_slot(layer, name, "A")] = nn.Parameter(a)
                self[_slot(layer, name, "B")] = nn.Parameter(torch.zeros(d_out, spec.params.rank))

    def to_peft(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Return (adapter_config, tensors) under PEFT's own names."""
        tensors = {}
        for slot, value in self.items():
            layer, name, side = _unslot(slot)
            tensors[
                f"base_model.model.{self.spec.layers_path}.{layer}.{name}.lora_{side}.weight"
            ] = value.detach().contiguous().cpu()
        return (
            self._peft_config(
                sorted(
                    {
                        key.removeprefix("base_model.model.").rpartition(".lora_")[0]
                        for key in tensors
                    }
                )
            ).to_dict(),
            tensors,
        )

    def load_peft(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over an adapter file.

        Raises :class:`CheckpointError` on unexpected or missing keys and on wrong shapes.
        """
        check_numbers(tensors, "The adapter file")
        todo = dict(self.items())
        for key, value in tensors.items():
            match = _KEY.search(plain_name(key))
            slot = _slot(int(match[1]), match[2], match[3]) if match else ""
            if slot not in todo:
                raise CheckpointError(
                    f"The adapter file holds {key!r:.200}, which the configuration does not expect."
                )
            target = todo.pop(slot)
            if target.shape != value.shape:
                raise CheckpointError(
                    f"The adapter file's {key!r:.200} has shape {tuple(value.shape)}, the"
                    f" configuration says {tuple(target.shape)}."
                )
            with torch.no_grad():
                target.copy_(value)
        if todo:
            raise CheckpointError(
                f"The adapter file lacks {len(todo)} tensors, the first is {_unslot(min(todo))}."
            )

    def _peft_config(self, targets: list[str]) -> Any:
        from peft import LoraConfig

        alpha: Any = self.spec.params.alpha  # PEFT annotates an int and takes any number
        return LoraConfig(
            r=self.spec.params.rank,
            lora_alpha=alpha,
            target_modules=targets,
            lora_dropout=0.0,
            bias="none",
        )


class LoraHook(Hook):
    """Adds α/r · B A x to what one linear layer of a host returns, in fp32."""

    tracked = True

    def __init__(
        self, a: Tensor, b: Tensor, scale: float, layer: int, current: Callable[[], ForwardPass]
    ) -> None:
        super().__init__(self._add)
        self.a = a
        self.b = b
        self.scale = scale
        self.layer = layer
        self.current = current

    def _add(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> Any:
        now = self.current()
        if not now.lora:
            return None
        now.fired.add(self.layer)
        given = args[0] if args else next(iter(kwargs.values()))
        kind = given.device.type
        if kind != "meta" and torch.is_autocast_enabled(kind):
            with torch.autocast(kind, enabled=False):
                return self._sum(given, output)
        return self._sum(given, output)

    def _sum(self, given: Tensor, output: Tensor) -> Tensor:
        a = self.a.to(given.device, torch.float32)
        b = self.b.to(given.device, torch.float32)
        low = nn.functional.linear(given.float(), a) * self.scale
        added = output + nn.functional.linear(low, b).to(output.device)
        return added.to(output.dtype)


class LoraHooks:
    """LoRA tensors at work in a host: hooks on its linear layers, and no module of it replaced.

    So whatever is done to the host's modules and parameters (casting, freezing, saving, copying,
    merging or removing a user's adapters) is not done to these tensors, nor the other way round.
    Where a library puts another module in the place of an adapted one, the hook moves on to it.

    ``current``: returns the forward that is running, which says whether LoRA is on.

    Raises :class:`HostError` where the host lacks a layer that the tensors are for, or has it in
    another shape.
    """

    def __init__(
        self, tensors: LoraTensors, host: Host, current: Callable[[], ForwardPass]
    ) -> None:
        self._host = host
        self._hooks: dict[tuple[int, str], LoraHook] = {}
        scale = tensors.spec.params.alpha / tensors.spec.params.rank
        for slot, a in tensors.items():
            layer, name, side = _unslot(slot)
            if side == "A":
                b = tensors[_slot(layer, name, "B")]
                self._hooks[layer, name] = LoraHook(a, b, scale, layer, current)
        self.layers = frozenset(layer for layer, _ in self._hooks)
        self._places: dict[tuple[int, str], tuple[WrappedPath, Any]] = {}
        try:
            self.follow()
        except BaseException:
            self.remove()
            raise

    def follow(self) -> None:
        """Put each hook on what is in its place now, where it is not there yet."""
        for target, hook in self._hooks.items():
            known = self._places.get(target)
            if known is not None and known[0].stands:
                continue
            place = self._place(target, hook)
            if known is not None:
                known[1].remove()
            handle = place.module.register_forward_hook(hook, with_kwargs=True)
            self._places[target] = place, handle

    def _place(self, target: tuple[int, str], hook: LoraHook) -> WrappedPath:
        layer, name = target
        try:
            place = WrappedPath.of(self._host.layers, f"{layer}.{name}")
        except LookupError as error:
            raise HostError(
                f"The modulation's LoRA is for {name!r} of decoder layer {layer}, which this "
                f"{type(bare(self._host.model)).__name__} does not have: {error}."
            ) from None
        module: Any = place.module
        shape = hook.a.shape[1], hook.b.shape[0]
        found = getattr(module, "in_features", None), getattr(module, "out_features", None)
        if found != shape:
            raise HostError(
                f"The modulation's LoRA is for a {name!r} of {shape[0]} to {shape[1]} features; "
                f"in decoder layer {layer} of this host it has {found[0]} to {found[1]}."
            )
        return place

    def remove(self) -> None:
        """Take all hooks out."""
        for _, handle in self._places.values():
            handle.remove()
        self._places.clear()


def _slot(layer: int, name: str, side: str) -> str:
    return f"{layer}|{name.replace('.', '/')}|{side}"


def _unslot(slot: str) -> tuple[int, str, str]:
    layer, name, side = slot.split("|")
    return int(layer), name.replace("/", "."), side

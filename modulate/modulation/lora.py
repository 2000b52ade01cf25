"""The LoRA tensors that a modulation owns, and the hooks that adapt a host with them.

A modulation keeps its low-rank matrices as parameters of its own, keyed by layer index and
submodule, always in fp32. They are saved and loaded in the format of PEFT's adapter folder.
"""

import math
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any

import torch
from pydantic import BeforeValidator, Field
from torch import Tensor, nn

from modulate.config.injection import LoraParams
from modulate.errors import CheckpointError, HostError
from modulate.hosts.hooks import TrackedHook
from modulate.hosts.host import Host, base_model
from modulate.hosts.wrappers import WrappedPath, named_descendants
from modulate.interfaces.params import Params
from modulate.modulation.recompute import ForwardPass

_KEY = re.compile(r"(?:^|\.)layers\.(0|[1-9][0-9]{0,3})\.([^/|]+)\.lora_([AB])\.weight$")
"""Key of a tensor in an adapter file: layer, submodule, matrix.

ASCII digits without leading zeros: two keys never name the same tensor.
"""

_WRAPPER = re.compile(r"\b_(?:orig_mod|checkpoint_wrapped_module|fsdp_wrapped_module)\.")
"""Torch's wrappers, which earlier versions saved as part of the names."""

Width = Annotated[int, Field(ge=1, le=2**20)]


def plain_name(name: Any) -> Any:
    """Return a module's path without torch's wrappers; anything but a string is returned as is."""
    return _WRAPPER.sub("", name) if isinstance(name, str) else name


PlainName = Annotated[str, BeforeValidator(plain_name)]
SubModule = Annotated[PlainName, Field(pattern=r"^\w+(\.\w+)*$")]


class LoraSpec(Params):
    """The saved description of LoRA: its parameters and the shape of every adapted submodule."""

    params: LoraParams
    shapes: dict[SubModule, tuple[Width, Width]] = Field(
        description="submodule of a decoder layer → (input width, output width)"
    )
    layers: dict[PlainName, tuple[int, ...]] = Field(
        default_factory=dict,
        description="for each submodule that not every layer has: the layers that have it",
    )
    layers_path: PlainName = Field(
        description=(
            "path of the decoder layers inside the host, for the names in the PEFT adapter file"
        )
    )


def describe(host: Host, params: LoraParams) -> LoraSpec:
    """Find the LoRA targets in a host.

    Raises :class:`HostError` for a target that matches nothing, or has several shapes.
    """
    shapes: dict[str, tuple[int, int]] = {}
    layers_of: dict[str, list[int]] = {}
    for index, layer in enumerate(host.layers):
        for name, module in _linear_layers(layer):
            if _last_name(name) not in params.targets:
                continue
            shape = (int(module.in_features), int(module.out_features))
            if shapes.setdefault(name, shape) != shape:
                raise HostError(
                    f"LoRA target {name!r} is {shapes[name]} in layer {layers_of[name][0]} and"
                    f" {shape} in layer {index}; one shape is needed."
                )
            layers_of.setdefault(name, []).append(index)
    missing = set(params.targets) - {_last_name(name) for name in shapes}
    if missing:
        available = sorted({_last_name(name) for name, _ in _linear_layers(host.layers)})
        raise HostError(
            f"LoRA targets {sorted(missing)} match no linear layer of the host's decoder layers;"
            f" there are {', '.join(available)}."
        )
    n_layers = len(host.layers)
    partial = {name: tuple(found) for name, found in layers_of.items() if len(found) < n_layers}
    return LoraSpec(params=params, shapes=shapes, layers=partial, layers_path=layers_path(host))


def _linear_layers(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """Yield (path, layer) of the linear layers inside ``module``.

    Known by their widths, not by class: quantized layers have classes of their own.
    """
    for name, inner in named_descendants(module):
        if hasattr(inner, "in_features"):
            yield name, inner


def _last_name(path: str) -> str:
    return path.rpartition(".")[2]


def layers_path(host: Host) -> str:
    """Return the dotted path of the decoder layers inside the bare host."""
    modules = named_descendants(base_model(host.model))
    return next(name for name, module in modules if module is host.layers)


def check_numbers(tensors: Mapping[str, Tensor], source: str) -> None:
    """Raise :class:`CheckpointError` for a tensor that is not of finite floating-point numbers.

    ``source`` names its file in the message.
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
    """The A and B matrices of every adapted submodule of every decoder layer.

    A is random and B zero, so that fresh tensors change nothing.
    """

    def __init__(self, spec: LoraSpec, n_layers: int) -> None:
        super().__init__()
        self.spec = spec
        for layer in range(n_layers):
            for name, (d_in, d_out) in spec.shapes.items():
                if layer not in spec.layers.get(name, range(n_layers)):
                    continue
                matrix_a = torch.empty(spec.params.rank, d_in)
                # As in the LoRA reference code.
                nn.init.kaiming_uniform_(matrix_a, a=math.sqrt(5))
                self[_slot(layer, name, "A")] = nn.Parameter(matrix_a)
                self[_slot(layer, name, "B")] = nn.Parameter(torch.zeros(d_out, spec.params.rank))

    def to_peft(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Return (adapter_config, tensors) under PEFT's own names."""
        prefix = f"base_model.model.{self.spec.layers_path}"
        tensors = {}
        for slot, value in self.items():
            layer, name, side = _unslot(slot)
            key = f"{prefix}.{layer}.{name}.lora_{side}.weight"
            tensors[key] = value.detach().contiguous().cpu()
        targets = {key.removeprefix("base_model.model.").rpartition(".lora_")[0] for key in tensors}
        return self._peft_config(sorted(targets)).to_dict(), tensors

    def load_peft(self, tensors: Mapping[str, Tensor]) -> None:
        """Copy the tensors of an adapter file.

        Raises :class:`CheckpointError` on unexpected or missing keys and on wrong shapes.
        """
        check_numbers(tensors, "The adapter file")
        missing = dict(self.items())
        for key, value in tensors.items():
            match = _KEY.search(plain_name(key))
            slot = _slot(int(match[1]), match[2], match[3]) if match else ""
            if slot not in missing:
                raise CheckpointError(
                    f"The adapter file holds {key!r:.200}, which the configuration does not expect."
                )
            target = missing.pop(slot)
            if target.shape != value.shape:
                raise CheckpointError(
                    f"The adapter file's {key!r:.200} has shape {tuple(value.shape)}, the"
                    f" configuration says {tuple(target.shape)}."
                )
            # In place: an optimizer or a hook may hold the parameter.
            with torch.no_grad():
                target.copy_(value)
        if missing:
            first = _unslot(min(missing))
            raise CheckpointError(
                f"The adapter file lacks {len(missing)} tensors, the first is {first}."
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


class LoraHook(TrackedHook):
    """Adds α/r · B A x to the output of one linear layer of a host, computed in fp32.

    ``current_pass``: returns the forward that is running, which says whether LoRA is on.
    """

    def __init__(
        self,
        matrix_a: Tensor,
        matrix_b: Tensor,
        scale: float,
        layer: int,
        current_pass: Callable[[], ForwardPass],
    ) -> None:
        super().__init__(self._add)
        self.matrix_a = matrix_a
        self.matrix_b = matrix_b
        self.scale = scale
        self.layer = layer
        self.current_pass = current_pass

    def active_tensors(self) -> tuple[Tensor, ...]:
        """Return A and B while LoRA is on in the forward that is running, else none."""
        return (self.matrix_a, self.matrix_b) if self.current_pass().lora else ()

    def _add(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> Any:
        passed = self.current_pass()
        if not passed.lora:
            return None
        passed.fired.add(self.layer)
        inputs = args[0] if args else next(iter(kwargs.values()))
        device_type = inputs.device.type
        # Autocast would compute the matrix products in half precision. Torch refuses to be asked
        # about the meta device, which computes nothing.
        if device_type != "meta" and torch.is_autocast_enabled(device_type):
            with torch.autocast(device_type, enabled=False):
                return self._adapted(inputs, output)
        return self._adapted(inputs, output)

    def _adapted(self, inputs: Tensor, output: Tensor) -> Tensor:
        matrix_a = self.matrix_a.to(inputs.device, torch.float32)
        matrix_b = self.matrix_b.to(inputs.device, torch.float32)
        low_rank = nn.functional.linear(inputs.float(), matrix_a) * self.scale
        added = output + nn.functional.linear(low_rank, matrix_b).to(output.device)
        return added.to(output.dtype)


class LoraHooks:
    """LoRA tensors at work in a host: hooks on its linear layers, which are never replaced.

    Nothing that is done to the host's modules and parameters (casting, freezing, saving, copying,
    merging or removing a user's adapters) affects these tensors, and vice versa. Where a library
    replaces an adapted module, its hook moves on to the replacement.

    ``current_pass``: returns the forward that is running, which says whether LoRA is on. Raises
    :class:`HostError` where the host lacks an adapted layer, or has it in another shape.
    """

    def __init__(
        self, tensors: LoraTensors, host: Host, current_pass: Callable[[], ForwardPass]
    ) -> None:
        self._host = host
        self._hooks: dict[tuple[int, str], LoraHook] = {}
        scale = tensors.spec.params.alpha / tensors.spec.params.rank
        for slot, matrix_a in tensors.items():
            layer, name, side = _unslot(slot)
            if side == "A":
                matrix_b = tensors[_slot(layer, name, "B")]
                hook = LoraHook(matrix_a, matrix_b, scale, layer, current_pass)
                self._hooks[layer, name] = hook
        self.layers = frozenset(layer for layer, _ in self._hooks)
        self._places: dict[tuple[int, str], tuple[WrappedPath, Any]] = {}
        try:
            self.follow()
        except BaseException:
            self.remove()  # from the layers before the one that does not fit
            raise

    def follow(self) -> None:
        """Move each hook to the module that now stands at its path, unless it is there already."""
        for target, hook in self._hooks.items():
            known = self._places.get(target)
            if known is not None and known[0].is_current:
                continue
            # Found before the old hook goes: if there is no such module, the old one stays.
            place = self._find_place(target, hook)
            if known is not None:
                known[1].remove()
            handle = place.module.register_forward_hook(hook, with_kwargs=True)
            self._places[target] = place, handle

    def _find_place(self, target: tuple[int, str], hook: LoraHook) -> WrappedPath:
        layer, name = target
        try:
            place = WrappedPath.of(self._host.layers, f"{layer}.{name}")
        except LookupError as error:
            raise HostError(
                f"The modulation's LoRA is for {name!r} of decoder layer {layer}, which this "
                f"{type(base_model(self._host.model)).__name__} does not have: {error}."
            ) from None
        module: Any = place.module
        expected = (hook.matrix_a.shape[1], hook.matrix_b.shape[0])
        actual = (getattr(module, "in_features", None), getattr(module, "out_features", None))
        if actual != expected:
            raise HostError(
                f"The modulation's LoRA is for a {name!r} of {expected[0]} to {expected[1]}"
                f" features; in decoder layer {layer} of this host it has {actual[0]} to"
                f" {actual[1]}."
            )
        return place

    def remove(self) -> None:
        """Remove all hooks."""
        for _, handle in self._places.values():
            handle.remove()
        self._places.clear()


def _slot(layer: int, name: str, side: str) -> str:
    """Return the parameter name of a matrix. It cannot hold dots: they would mean submodules."""
    return f"{layer}|{name.replace('.', '/')}|{side}"


def _unslot(slot: str) -> tuple[int, str, str]:
    """Return (layer, submodule, side): the inverse of :func:`_slot`."""
    layer, name, side = slot.split("|")
    return int(layer), name.replace("/", "."), side

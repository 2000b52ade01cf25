"""LoRA tensors that a modulation owns, put into a host through PEFT and taken out again.

A modulation keeps its low-rank matrices as parameters of its own, keyed by layer index and sub-module. Attaching injects a uniquely named
PEFT adapter whose weights *are* those parameters; detaching puts back the very modules that were there. A user's own adapters stay.
"""

import itertools
import math
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn

from modulate.choice import LoraParams, Params
from modulate.errors import CheckpointError, HostError
from modulate.hosts import Host, bare

_numbers = itertools.count()
_KEY = re.compile(r"(?:^|\.)layers\.(0|[1-9][0-9]{0,3})\.([^/|]+)\.lora_([AB])\.weight$")


Width = Annotated[int, Field(ge=1, le=2**20)]


class LoraSpec(Params):
    """What is saved of an adaptation: its parameters, and the shape of every adapted sub-module of a decoder layer."""

    params: LoraParams
    shapes: dict[Annotated[str, Field(pattern=r"^\w+(\.\w+)*$")], tuple[Width, Width]] = Field(description="sub-module of a decoder layer → (input width, output width)")
    layers: dict[str, tuple[int, ...]] = Field(default_factory=dict, description="of sub-modules that not every layer has: the layers that have it")
    layers_path: str = Field(description="where the decoder layers are inside the host, for the names in the PEFT adapter file")


def describe(host: Host, params: LoraParams) -> LoraSpec:
    """Find the targets in a host. Raises :class:`HostError` when one matches nothing, or not the same in all layers."""
    shapes: dict[str, tuple[int, int]] = {}
    where: dict[str, list[int]] = {}
    for index, layer in enumerate(host.layers):
        for name, module in layer.named_modules():
            if name.rpartition(".")[2] not in params.targets or not hasattr(module, "in_features"):
                continue
            shape = (int(module.in_features), int(module.out_features))
            if shapes.setdefault(name, shape) != shape:
                raise HostError(f"LoRA target {name!r} is {shapes[name]} in layer {where[name][0]} and {shape} in layer {index}; one shape is needed.")
            where.setdefault(name, []).append(index)
    missing = set(params.targets) - {name.rpartition(".")[2] for name in shapes}
    if missing:
        linear = sorted({n.rpartition(".")[2] for n, m in host.layers.named_modules() if hasattr(m, "in_features")})
        raise HostError(f"LoRA targets {sorted(missing)} match no linear layer of the host's decoder layers; there are {', '.join(linear)}.")
    some = {name: tuple(layers) for name, layers in where.items() if len(layers) < len(host.layers)}
    return LoraSpec(params=params, shapes=shapes, layers=some, layers_path=layers_path(host))


def layers_path(host: Host) -> str:
    """Return the dotted path of the decoder layers inside the bare host."""
    return next(name for name, module in bare(host.model).named_modules() if module is host.layers)


def check_numbers(tensors: Mapping[str, Tensor], source: str) -> None:
    """Raise :class:`CheckpointError` for a tensor that holds other than finite floating-point numbers; ``source`` names its file."""
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            raise CheckpointError(f"{source}: tensor {name!r:.200} is {tensor.dtype}; floating-point numbers are needed.")
        if not tensor.isfinite().all():
            raise CheckpointError(f"{source}: tensor {name!r:.200} holds numbers that are not finite.")


class LoraTensors(nn.ParameterDict):
    """The A and B matrices of every adapted sub-module of every decoder layer; A random, B zero, so that a fresh one changes nothing."""

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
            tensors[f"base_model.model.{self.spec.layers_path}.{layer}.{name}.lora_{side}.weight"] = value.detach().contiguous().cpu()
        return self._peft_config(sorted({key.removeprefix("base_model.model.").rpartition(".lora_")[0] for key in tensors})).to_dict(), tensors

    def load_peft(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over an adapter file. Raises :class:`CheckpointError` on unexpected or missing keys and on wrong shapes."""
        check_numbers(tensors, "The adapter file")
        todo = dict(self.items())
        for key, value in tensors.items():
            match = _KEY.search(key)
            slot = _slot(int(match[1]), match[2], match[3]) if match else ""
            if slot not in todo:
                raise CheckpointError(f"The adapter file holds {key!r:.200}, which the configuration does not expect.")
            target = todo.pop(slot)
            if target.shape != value.shape:
                raise CheckpointError(f"The adapter file's {key!r:.200} has shape {tuple(value.shape)}, the configuration says {tuple(target.shape)}.")
            with torch.no_grad():
                target.copy_(value)
        if todo:
            raise CheckpointError(f"The adapter file lacks {len(todo)} tensors, the first is {_unslot(min(todo))}.")

    def _peft_config(self, targets: list[str]) -> Any:
        from peft import LoraConfig

        alpha: Any = self.spec.params.alpha  # PEFT annotates an int and takes any number
        return LoraConfig(r=self.spec.params.rank, lora_alpha=alpha, target_modules=targets, lora_dropout=0.0, bias="none")

    def inject(self, host: Host) -> "Injected":
        """Put the tensors into a host under a unique adapter name; flags, other adapters and ``peft_config`` stay as found."""
        return Injected(self, host)


class Injected:
    """An adapter inside a host; :meth:`remove` restores the modules that were there."""

    def __init__(self, tensors: LoraTensors, host: Host) -> None:
        from peft import inject_adapter_in_model
        from peft.tuners.lora import LoraLayer

        self.name = f"modulate_{next(_numbers)}"
        self.model: Any = bare(host.model)
        targets = {}
        for slot in tensors:
            layer, name, _ = _unslot(slot)
            targets[f"{layers_path(host)}.{layer}.{name}"] = (layer, name)
        self.before = {path: self.model.get_submodule(path) for path in targets}
        self.active = {path: list(m.active_adapters) for path, m in self.model.named_modules() if isinstance(m, LoraLayer)}
        flags = [(p, p.requires_grad) for p in self.model.parameters()]
        theirs = self.model.__dict__.get("peft_config")  # PEFT adds our entry to a user's own dictionary
        entries = dict(theirs or {})
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # PEFT warns about a second adapter; ours is meant to be one
            inject_adapter_in_model(tensors._peft_config(sorted(targets)), self.model, self.name)
        self.model.__dict__.pop("peft_config", None)
        if theirs is not None:
            theirs.clear()
            theirs.update(entries)
            self.model.peft_config = theirs
        for path, (layer, name) in targets.items():
            module: Any = self.model.get_submodule(path)
            module.set_adapter([*self.active.get(path, []), self.name])
            module.train(self.before[path].training)
            module.lora_A[self.name].weight = tensors[_slot(layer, name, "A")]
            module.lora_B[self.name].weight = tensors[_slot(layer, name, "B")]
        for path in self.active.keys() - targets.keys():  # injecting made ours the active adapter everywhere
            other: Any = self.model.get_submodule(path)
            other.set_adapter(self.active[path])
        for parameter, flag in flags:
            parameter.requires_grad_(flag)

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """Switch this adapter off for a while; a user's own adapters stay on."""
        self._switch(on=False)
        try:
            yield
        finally:
            self._switch(on=True)

    def _switch(self, on: bool) -> None:
        for path in self.before:
            module: Any = self.model.get_submodule(path)
            flags = [(p, p.requires_grad) for p in module.parameters()]
            others = self.active.get(path, [])
            module.set_adapter([*others, self.name] if on else others)
            for parameter, flag in flags:
                parameter.requires_grad_(flag)

    def remove(self) -> None:
        """Put back the modules that were there before; in a user's own adapted layers only our adapter goes."""
        for path, module in self.before.items():
            if path in self.active:
                layer: Any = module
                flags = [(p, p.requires_grad) for p in layer.parameters()]
                layer.set_adapter(self.active[path])
                layer.delete_adapter(self.name)
                for parameter, flag in flags:
                    parameter.requires_grad_(flag)
            else:
                parent, _, child = path.rpartition(".")
                setattr(self.model.get_submodule(parent), child, module)


def _slot(layer: int, name: str, side: str) -> str:
    return f"{layer}|{name.replace('.', '/')}|{side}"


def _unslot(slot: str) -> tuple[int, str, str]:
    layer, name, side = slot.split("|")
    return int(layer), name.replace("/", "."), side

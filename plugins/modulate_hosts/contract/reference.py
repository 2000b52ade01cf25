"""What the contract compares with: slow, plain, and independent of how modulate finds positions and
writes.

Residuals are laid out as one dense tensor for each injected layer by the places that the prompt's
author noted; plain hooks add the slice of it that belongs to the absolute positions of a forward.
Nothing here reads token ids.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache


def decoder_layers(model: nn.Module) -> nn.ModuleList:
    """The layers of the language model, by transformers' own `get_decoder`."""
    base: Any = model.get_base_model() if hasattr(model, "get_base_model") else model
    return base.get_decoder().layers


def residual_rows(modulation: Any, k: int, clip: Any) -> list[Tensor]:
    """α·W·z of every visual token of one clip, token by token, fp32; zeros for a clip without a
    signal.
    """
    if clip.signal is None:
        return [torch.zeros(modulation.config.host.d_model)] * clip.grid.tokens
    weight = modulation.out[0 if len(modulation.out) == 1 else k].weight
    return [modulation.amplitude[k] * (weight @ z) for z in modulation.latents([clip]).layers[k]]


def dense(
    modulation: Any,
    rows: Sequence[Sequence[Any]],
    positions: Sequence[Sequence[Sequence[int]]],
    length: int,
) -> list[Tensor]:
    """For each injected layer (row, length, d_model): the residual of every position, zero where
    there is none.
    """
    layers = []
    for k in range(len(modulation.config.injection.layers)):
        values = torch.zeros(len(positions), length, modulation.config.host.d_model)
        for r, clips in enumerate(rows):
            for clip, places in zip(clips, positions[r], strict=bool(clips)):
                for place, value in zip(places, residual_rows(modulation, k, clip), strict=True):
                    values[r, place] = value
        layers.append(values)
    return layers


@contextmanager
def written(model: nn.Module, modulation: Any, values: Sequence[Tensor]) -> Iterator[None]:
    """Add the dense residuals in every forward of this block; beams and returned sequences repeat
    each row.

    The modulation's LoRA is merged into the weights meanwhile, as W + α/r · B A.
    """
    base: Any = model.get_base_model() if hasattr(model, "get_base_model") else model
    past = [0]

    def note(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        found = [value for value in kwargs.values() if isinstance(value, Cache)]
        past[0] = int(found[0].get_seq_length()) if found else 0

    def adder(k: int) -> Any:
        def add(module: nn.Module, args: Any, output: Any) -> Any:
            hidden = output[0] if isinstance(output, tuple) else output
            here = values[k][:, past[0] : past[0] + hidden.shape[1]]
            here = nn.functional.pad(here, (0, 0, 0, hidden.shape[1] - here.shape[1]))
            added = hidden + here.repeat_interleave(hidden.shape[0] // len(here), 0).to(
                hidden.dtype
            )
            return (added, *output[1:]) if isinstance(output, tuple) else added

        return add

    handles = [base.model.register_forward_pre_hook(note, with_kwargs=True)]
    handles += [
        decoder_layers(model)[layer].register_forward_hook(adder(k), prepend=True)
        for k, layer in enumerate(modulation.config.injection.layers)
    ]
    try:
        with merged(model, modulation):
            yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def merged(model: nn.Module, modulation: Any) -> Iterator[None]:
    """Merge the modulation's LoRA into the model's weights for this block."""
    before: list[tuple[Tensor, Tensor]] = []
    beside: list[Any] = []
    try:
        if modulation.lora is not None:
            base: Any = model.get_base_model() if hasattr(model, "get_base_model") else model
            params = modulation.config.lora.params
            _, tensors = modulation.lora.to_peft()
            for name in sorted({key.rpartition(".lora_")[0] for key in tensors}):
                module = base.get_submodule(name.removeprefix("base_model.model."))
                a = tensors[f"{name}.lora_A.weight"]
                b = params.alpha / params.rank * tensors[f"{name}.lora_B.weight"]
                weight = getattr(module, "base_layer", module).weight.data
                if weight.dtype == torch.float32 and not weight.is_meta:
                    before.append((weight, weight.clone()))
                    weight += b @ a
                else:  # rounded when merged, or not there: added to what the layer returns
                    beside.append(
                        module.register_forward_hook(
                            lambda m, args, out, a=a, b=b: (
                                out.float() + args[0].float() @ a.T @ b.T
                            ).to(out.dtype)
                        )
                    )
        yield
    finally:
        for weight, value in before:
            weight.copy_(value)
        for handle in beside:
            handle.remove()


def states_after(model: nn.Module, layer: int, call: Any) -> Tensor:
    """The output of one decoder layer while ``call()`` runs (of its first forward)."""
    found: list[Tensor] = []
    handle = decoder_layers(model)[layer].register_forward_hook(
        lambda m, a, out: found.append((out[0] if isinstance(out, tuple) else out).detach().clone())
    )
    try:
        call()
    finally:
        handle.remove()
    return found[0]


def greedy(
    model: nn.Module, inputs: dict[str, Tensor], steps: int, types: str | None
) -> tuple[Tensor, list[Tensor]]:
    """Generate without a cache, one whole forward a step: the ids generated (row, step), and the
    logits of every step.
    """
    inputs = dict(inputs)
    scores = []
    start = inputs["input_ids"].shape[1]
    for _ in range(steps):
        scores.append(model(**inputs, use_cache=False).logits[:, -1].float())
        chosen = scores[-1].argmax(-1, keepdim=True)
        inputs["input_ids"] = torch.cat([inputs["input_ids"], chosen], 1)
        inputs["attention_mask"] = torch.cat([inputs["attention_mask"], torch.ones_like(chosen)], 1)
        if types:
            inputs[types] = torch.cat([inputs[types], torch.zeros_like(chosen)], 1)
    return inputs["input_ids"][:, start:], scores


def together(
    model: nn.Module, parts: Sequence[tuple[Any, Sequence[Tensor] | None]], call: Any
) -> Any:
    """Call ``call(model)`` with gradients to all that ``parts`` are made of.

    ``parts``: modulations with their dense residuals, or None for LoRA alone. Weights are
    W + Σ α/r · B A, put in for this call only; residuals are added by plain hooks.
    """
    weights: dict[str, Tensor] = {}
    handles = []
    for modulation, values in parts:
        for slot, a in (modulation.lora or {}).items():
            layer, name, side = slot.split("|")
            if side == "A":
                module = decoder_layers(model)[int(layer)].get_submodule(name.replace("/", "."))
                weight = getattr(module, "base_layer", module).weight
                key = next(key for key, value in model.named_parameters() if value is weight)
                params = modulation.config.lora.params
                b = modulation.lora[f"{layer}|{name}|B"]
                weights[key] = weights.get(key, weight) + params.alpha / params.rank * b @ a
        for layer, value in zip(
            modulation.config.injection.layers, values or (), strict=bool(values)
        ):
            handles.append(
                decoder_layers(model)[layer].register_forward_hook(_adder(value), prepend=True)
            )
    wrapper = _Called(model, call)
    try:
        return torch.func.functional_call(
            wrapper, {f"model.{key}": value for key, value in weights.items()}, ()
        )
    finally:
        for handle in handles:
            handle.remove()


class _Called(nn.Module):
    """Any call of a model as a forward of its own."""

    def __init__(self, model: nn.Module, call: Any) -> None:
        super().__init__()
        self.model = model
        self.call = call

    def forward(self) -> Any:
        return self.call(self.model)


def _adder(value: Tensor) -> Any:
    def add(module: nn.Module, args: Any, output: Any) -> Any:
        hidden = output[0] if isinstance(output, tuple) else output
        added = hidden + value[:, : hidden.shape[1]].to(hidden.dtype)
        return (added, *output[1:]) if isinstance(output, tuple) else added

    return add

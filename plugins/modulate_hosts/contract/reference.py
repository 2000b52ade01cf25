"""The reference implementation that hosts are compared with: slow, plain and independent.

It shares no code with how modulate finds positions and writes residuals. They are laid out as one
dense tensor for each injected layer, at the places noted when the prompt was written. Plain hooks
add the slice for the absolute positions of a forward. Nothing here reads token ids.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache


def decoder_layers(model: nn.Module) -> nn.ModuleList:
    """Return the layers of the language model, by transformers' own `get_decoder`."""
    return without_peft(model).get_decoder().layers


def without_peft(model: nn.Module) -> Any:
    """Return the transformers model inside PEFT's wrapper, if any."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def residual_rows(modulation: Any, index: int, clip: Any) -> list[Tensor]:
    """Return α·W·z of each visual token of a clip, in fp32; zeros if the clip has no signal."""
    if clip.signal is None:
        return [torch.zeros(modulation.config.host.d_model)] * clip.grid.tokens
    weight = modulation.out[0 if len(modulation.out) == 1 else index].weight
    return [
        modulation.amplitude[index] * (weight @ latent)
        for latent in modulation.latents([clip]).layers[index]
    ]


def dense(
    modulation: Any,
    rows: Sequence[Sequence[Any]],
    positions: Sequence[Sequence[Sequence[int]]],
    length: int,
) -> list[Tensor]:
    """Return the residual of every position, (row, length, d_model), for each injected layer.

    It is zero at positions that get none.
    """
    layers = []
    for index in range(len(modulation.config.injection.layers)):
        values = torch.zeros(len(positions), length, modulation.config.host.d_model)
        for row, clips in enumerate(rows):
            for clip, places in zip(clips, positions[row], strict=bool(clips)):
                for place, value in zip(
                    places, residual_rows(modulation, index, clip), strict=True
                ):
                    values[row, place] = value
        layers.append(values)
    return layers


@contextmanager
def written(model: nn.Module, modulation: Any, values: Sequence[Tensor]) -> Iterator[None]:
    """Add the dense residuals in every forward of this block.

    Beams and returned sequences repeat each row. The modulation's LoRA is merged into the weights
    meanwhile, as W + α/r · B A.
    """
    past = 0

    def note_past(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        nonlocal past
        caches = [value for value in kwargs.values() if isinstance(value, Cache)]
        past = int(caches[0].get_seq_length()) if caches else 0

    def adder(index: int) -> Any:
        def add(module: nn.Module, args: Any, output: Any) -> Any:
            hidden = output[0] if isinstance(output, tuple) else output
            residual = values[index][:, past : past + hidden.shape[1]]
            # Generated positions lie beyond the prompt and get none.
            residual = nn.functional.pad(residual, (0, 0, 0, hidden.shape[1] - residual.shape[1]))
            repeats = hidden.shape[0] // len(residual)
            added = hidden + residual.repeat_interleave(repeats, 0).to(hidden.dtype)
            return (added, *output[1:]) if isinstance(output, tuple) else added

        return add

    entry = without_peft(model).model
    handles = [entry.register_forward_pre_hook(note_past, with_kwargs=True)]
    handles += [
        decoder_layers(model)[layer].register_forward_hook(adder(index), prepend=True)
        for index, layer in enumerate(modulation.config.injection.layers)
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
    handles: list[Any] = []
    try:
        if modulation.lora is not None:
            base = without_peft(model)
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
                else:
                    # Merging would round, or there is no weight (meta): add to the output instead.
                    handles.append(module.register_forward_hook(_low_rank_adder(a, b)))
        yield
    finally:
        for weight, value in before:
            weight.copy_(value)
        for handle in handles:
            handle.remove()


def _low_rank_adder(a: Tensor, b: Tensor) -> Any:
    def add(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        return (output.float() + args[0].float() @ a.T @ b.T).to(output.dtype)

    return add


def states_after(model: nn.Module, layer: int, call: Any) -> Tensor:
    """Return the output of one decoder layer in the first forward of ``call()``."""
    outputs: list[Tensor] = []

    def keep(module: nn.Module, args: Any, output: Any) -> None:
        hidden = output[0] if isinstance(output, tuple) else output
        outputs.append(hidden.detach().clone())

    handle = decoder_layers(model)[layer].register_forward_hook(keep)
    try:
        call()
    finally:
        handle.remove()
    return outputs[0]


def greedy(
    model: nn.Module, inputs: dict[str, Tensor], steps: int, types: str | None
) -> tuple[Tensor, list[Tensor]]:
    """Generate without a cache, by one whole forward a step.

    Return the generated ids, (row, step), and the logits of every step.
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


def call_differentiably(
    model: nn.Module, parts: Sequence[tuple[Any, Sequence[Tensor] | None]], call: Any
) -> Any:
    """Return ``call(model)`` under several modulations, with gradients to all their parameters.

    ``parts``: modulations with their dense residuals, or None for LoRA alone. Weights are
    W + Σ α/r · B A, for this call only; residuals are added by plain hooks.
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
    """A call of a model as a module's forward, which `functional_call` needs."""

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

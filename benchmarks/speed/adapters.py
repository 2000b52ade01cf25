"""Figures of LoRA: the same matrices on the same host, applied by our hooks and by PEFT."""

import copy
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn

from benchmarks.speed.bench import Bench
from benchmarks.speed.inference import generate_greedily
from benchmarks.speed.side_by_side import side_by_side
from benchmarks.speed.timing import compared, interleaved
from modulate import Modulation
from modulate.config.injection import LoraParams
from modulate.inference.batching import LAST_LOGITS

NAME = "bench"
"""The adapter's name in PEFT."""


def lora(bench: Bench) -> dict[str, Any]:
    """Compare our LoRA with PEFT's: forward, generate, training step."""
    modulation = with_lora(bench)
    models = [adapted(bench, modulation) for _ in range(2)]

    def forward(model: Any) -> None:
        model(**bench.inputs, **LAST_LOGITS)

    rows = {}
    for name, act, repeats in (
        ("forward", forward, 4 * bench.repeats),
        ("generate", partial(generate_greedily, bench), 8 * bench.repeats),
    ):
        calls = [torch.inference_mode()(way(act, modulation)) for way in (by_ours, by_peft)]
        found = side_by_side(calls, models, repeats)
        rows[f"lora {name}"] = compared(*found)
    return rows | {"lora step": step(bench, modulation, models[0])}


def step(bench: Bench, modulation: Modulation, model: nn.Module) -> dict[str, Any]:
    """Compare forward and backward to the LoRA matrices of all layers, without residuals."""
    train(modulation, model)
    calls = [way(loss(bench), modulation) for way in (by_ours, by_peft)]
    costs = interleaved([lambda call=call: call(model) for call in calls], 2 * bench.repeats)
    return compared(*costs)


def loss(bench: Bench) -> Callable[[Any], None]:
    """Return a function that runs forward and backward on a model."""

    def act(model: Any) -> None:
        model(**bench.inputs, **LAST_LOGITS).logits.square().sum().backward()

    return act


def train(modulation: Modulation, model: nn.Module) -> None:
    """Make only the two LoRAs trainable."""
    for name, value in modulation.named_parameters():
        value.requires_grad_(name.startswith("lora."))
    for name, value in model.named_parameters():
        value.requires_grad_(f".{NAME}." in name)


def with_lora(bench: Bench) -> Modulation:
    """Return a modulation of the bench host with non-zero LoRA matrices (rank 8, q and v)."""
    config = bench.modulation.config
    torch.manual_seed(0)
    modulation = Modulation.for_host(
        bench.pipeline.model,
        encoder=config.encoder,
        modulator=config.modulator,
        injection=config.injection,
        d_features=config.d_features,
        lora=LoraParams(),
    )
    assert modulation.lora is not None
    for name, value in modulation.lora.items():
        if name.endswith("|B"):
            nn.init.normal_(value, std=0.02)
    return modulation.eval().requires_grad_(False)


def adapted(bench: Bench, modulation: Modulation) -> nn.Module:
    """Return a copy of the bench host with the same matrices in a disabled PEFT adapter."""
    from peft import LoraConfig, inject_adapter_in_model, set_peft_model_state_dict

    assert modulation.lora is not None
    settings, tensors = modulation.lora.to_peft()
    config = LoraConfig(
        r=settings["r"],
        lora_alpha=settings["lora_alpha"],
        target_modules=settings["target_modules"],
    )
    model: Any = copy.deepcopy(bench.pipeline.model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT's, about models that it did not wrap
        inject_adapter_in_model(config, model, NAME)
        set_peft_model_state_dict(
            model,
            {key.removeprefix("base_model.model."): value for key, value in tensors.items()},
            NAME,
        )
    for layer in layers(model):
        layer.enable_adapters(False)
    return model.eval().requires_grad_(False)


def layers(model: nn.Module) -> Iterator[Any]:
    """Return PEFT's layers."""
    from peft.tuners.lora import LoraLayer

    return (module for module in model.modules() if isinstance(module, LoraLayer))


def by_ours(act: Callable[[Any], None], modulation: Modulation) -> Callable[[Any], None]:
    """Return ``act`` with attaching and detaching; PEFT's layers stay disabled."""

    def call(model: Any) -> None:
        with modulation.attached(model):
            act(model)

    return call


def by_peft(act: Callable[[Any], None], modulation: Modulation) -> Callable[[Any], None]:
    """Return ``act`` with PEFT's adapter enabled."""

    def call(model: Any) -> None:
        with switched_on(model):
            act(model)

    return call


@contextmanager
def switched_on(model: nn.Module) -> Iterator[None]:
    """Enable PEFT's adapters within a block."""
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    for on in (True, False):
        for layer in layers(model):
            layer.enable_adapters(on)
        for parameter, flag in flags:  # enabling and disabling change these flags
            parameter.requires_grad_(flag)
        if on:
            yield

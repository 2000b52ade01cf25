"""Which injected layers can move the answer at all: found by gradient, through the real hooks."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from modulate.grid import VisualGrid
from modulate.modulation import ClipInput, Latents, Modulation, step_spans


def reach(model: nn.Module, modulation: Modulation, inputs: Mapping[str, Tensor], grid: VisualGrid) -> dict[int, float]:
    """Return, per injected layer, the norm of the gradient of the last position's logits with respect to a residual there; 0.0: a dead layer.

    The modulation is attached as always, but in place of its own residuals it writes zeros that record gradients, so that neither its
    weights nor any signal matter. ``inputs``: one prompt with one clip on ``grid``. The logits are mixed with fixed random weights,
    because equal ones could cancel. A gradient of exactly 0 at every visual token means that no path leads to the answer.
    """
    layers, probes = modulation.config.injection.layers, dict[int, Tensor]()
    device, width = modulation.amplitude.device, modulation.config.host.d_model

    def residual(k: int, latents: Tensor, *_: Any) -> Tensor:
        probes[k] = torch.zeros(len(latents), width, device=device, requires_grad=True)
        return probes[k]

    def latents(clips: Any) -> Latents:
        return Latents([torch.zeros(grid.tokens, 1, device=device) for _ in layers], (grid.steps,), (grid.steps,), step_spans([grid]))

    stand_ins: dict[str, Any] = {"residual": residual, "latents": latents}
    modulation.__dict__.update(stand_ins)
    try:
        with modulation.attached(model) as attachment, torch.enable_grad():
            clip: Any = ClipInput(object(), grid)  # type: ignore[arg-type]  # never looked at: the latents are ours
            with attachment.condition([[clip]]):
                logits = model(**inputs, use_cache=False).logits[0, -1].float()
                weights = torch.randn(logits.shape, generator=torch.Generator().manual_seed(0)).to(logits.device)
                found = torch.autograd.grad(logits @ weights, [probes[k] for k in range(len(layers))], allow_unused=True)
    finally:
        for name in stand_ins:
            del modulation.__dict__[name]
    return {layer: 0.0 if gradient is None else float(gradient.norm()) for layer, gradient in zip(layers, found, strict=True)}


def kept_bytes(run: Any) -> int:
    """Return the bytes that autograd keeps for the backward of what ``run()`` computes, parameters and duplicates not counted."""
    seen: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, nn.Parameter) and not (tensor.is_leaf and tensor.requires_grad):
            storage = tensor.untyped_storage()
            seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = run()
    del output
    return sum(seen.values())

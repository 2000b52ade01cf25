"""Which injected layers can move the answer at all: found by gradient, through the real hooks."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Self, cast

import numpy as np
import torch
from torch import Tensor, nn

from modulate.config.recipe import Recipe
from modulate.hosts.hooks import patched_method
from modulate.hosts.host import base_model, understand
from modulate.interfaces.frames import Frames
from modulate.interfaces.signal import ANY, Control, Signal
from modulate.interfaces.visual_grid import VisualGrid
from modulate.modulation.clip_inputs import ClipInput
from modulate.modulation.latents import Latents, step_spans
from modulate.modulation.module import Modulation


class AnySignal(Signal):
    """A signal that is there, and that nobody looks at: for forwards whose shapes and times alone
    matter.
    """

    kind = ANY
    controls: ClassVar[Mapping[str, Control]] = {}

    @classmethod
    def read(cls, path: Path) -> Self:
        """Return it, whatever the file."""
        return cls()

    def within(self, start: float, end: float) -> Self:
        """Return it."""
        return self

    def moved(self, seconds: float) -> Self:
        """Return it."""
        return self

    def blank(self) -> Self:
        """Return it: it is as good as empty."""
        return self

    def __len__(self) -> int:
        return 1


def reach(
    model: nn.Module, modulation: Modulation, inputs: Mapping[str, Tensor], grid: VisualGrid
) -> dict[int, float]:
    """Return, per injected layer, the norm of the gradient of the last position's logits with
    respect to a residual there; 0.0: a dead layer.

    The modulation is attached as always, but in place of its own residuals it writes zeros that
    record gradients, so that neither its weights nor any signal matter. ``inputs``: one prompt with
    one clip on ``grid``. The logits are mixed with fixed random weights, because equal ones could
    cancel. A gradient of exactly 0 at every visual token means that no path leads to the answer.
    """
    layers = modulation.config.injection.layers
    probes = dict[int, Tensor]()
    device = modulation.amplitude.device
    width = modulation.config.host.d_model

    def residual(k: int, latents: Tensor, *_: Any) -> Tensor:
        probes[k] = torch.zeros(len(latents), width, device=device, requires_grad=True)
        return probes[k]

    def latents(clips: Any) -> Latents:
        return Latents(
            [[torch.zeros(grid.tokens, 1, device=device)] for _ in layers],
            (grid.steps,),
            (grid.steps,),
            step_spans([grid]),
        )

    features = torch.zeros(()).expand(
        grid.steps, grid.tokens_per_step, modulation.config.d_features
    )
    clip = ClipInput(AnySignal(), grid, features)  # never looked at: the latents are ours
    with (
        patched_method(modulation, "residual", residual),
        patched_method(modulation, "latents", latents),
        modulation.attached(model) as attachment,
        torch.enable_grad(),
        attachment.condition([[clip]]),
    ):
        logits = model(**inputs, use_cache=False).logits[0, -1].float()
        weights = torch.randn(logits.shape, generator=torch.Generator().manual_seed(0)).to(
            logits.device
        )
        found = torch.autograd.grad(
            logits @ weights, [probes[k] for k in range(len(layers))], allow_unused=True
        )
    return {
        layer: 0.0 if gradient is None else float(gradient.norm())
        for layer, gradient in zip(layers, found, strict=True)
    }


def twin_reach(
    recipe: Recipe, model: nn.Module, processor: Any, d_features: int
) -> dict[int, float]:
    """Return what :func:`reach` does, found on a narrow twin of ``model``: same class, same layers
    in the same order, few channels, random weights.

    Whether a path leads from a layer to the answer is a matter of how layers are connected, not of
    how wide they are: for models on ``meta``, or too large. Raises
    :class:`modulate.errors.HostError` for families that do not say how they are narrowed.
    """
    from transformers import AutoModelForImageTextToText

    with torch.random.fork_rng(), torch.device("cpu"):
        torch.manual_seed(0)
        config = type(understand(model)).narrow(cast(Any, base_model(model)).config)
        twin = (
            AutoModelForImageTextToText.from_config(config, dtype=torch.float32)
            .requires_grad_(False)
            .eval()
        )
        host = understand(twin)
        modulation = Modulation.for_host(
            twin,
            encoder=recipe.encoder,
            modulator=recipe.modulator,
            injection=recipe.injection,
            d_features=d_features,
        )
    frames = Frames(np.zeros((4, 64, 64, 3), np.uint8), (0.0, 1.0, 2.0, 3.0))
    prompt = host.encode(processor, "What is this?", frames, (0.0, 3.0))
    return reach(twin, modulation, prompt.inputs, prompt.grid)

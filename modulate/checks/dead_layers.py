"""Find dead layers: injected layers that cannot change the answer, by gradient."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Self, cast

import numpy as np
import torch
from torch import Tensor, nn

from modulate.config.recipe import Recipe
from modulate.hosts.hooks import patched_method
from modulate.hosts.host import base_model, understand
from modulate.interfaces.frames import Frames
from modulate.interfaces.messages import VideoClip, user_turn
from modulate.interfaces.signal import ANY, Control, Signal
from modulate.interfaces.visual_grid import VisualGrid
from modulate.interfaces.writer import Mixture
from modulate.modulation.clip_inputs import ClipInput
from modulate.modulation.latents import Latents, step_spans
from modulate.modulation.module import Modulation


class AnySignal(Signal):
    """A placeholder that is never read, for forwards in which only shapes and times matter."""

    kind = ANY
    controls: ClassVar[Mapping[str, Control]] = {}

    @classmethod
    def read(cls, path: Path) -> Self:
        """Return a placeholder, whatever the file."""
        return cls()

    def within(self, start: float, end: float) -> Self:
        """Return this signal."""
        return self

    def moved(self, seconds: float) -> Self:
        """Return this signal."""
        return self

    def blank(self) -> Self:
        """Return this signal, which is as good as empty."""
        return self

    def __len__(self) -> int:
        return 1


def reach(
    model: nn.Module,
    modulation: Modulation,
    inputs: Mapping[str, Tensor],
    grids: Sequence[VisualGrid],
) -> dict[int, float]:
    """Return {injected layer: gradient norm of the answer with respect to a residual there}.

    A norm of exactly 0 means that no path leads from that layer's visual tokens to the logits of
    the last position: a dead layer. The modulation is attached through the real hooks, but writes
    zeros that record gradients instead of its own residuals, so that neither its weights nor a
    signal matter. ``inputs``: one prompt with a clip on each of ``grids``.
    """
    layers = modulation.config.injection.layers
    # Signal and features are never read, because the latents are replaced.
    d_features = modulation.config.d_features
    clips = [
        ClipInput(
            AnySignal(),
            grid,
            torch.zeros(()).expand(grid.steps, grid.tokens_per_step, d_features),
        )
        for grid in grids
    ]
    with (
        _zero_residuals(modulation, grids) as probes,
        modulation.attached(model) as attachment,
        torch.enable_grad(),
        attachment.condition([clips]),
    ):
        logits = model(**inputs, use_cache=False).logits[0, -1].float()
        # Mixed with random weights, because the gradients of a plain sum could cancel.
        generator = torch.Generator().manual_seed(0)
        weights = torch.randn(logits.shape, generator=generator).to(logits.device)
        residuals = [probes[index] for index in range(len(layers))]
        gradients = torch.autograd.grad(logits @ weights, residuals, allow_unused=True)
    return {
        layer: 0.0 if gradient is None else float(gradient.norm())
        for layer, gradient in zip(layers, gradients, strict=True)
    }


@contextmanager
def _zero_residuals(
    modulation: Modulation, grids: Sequence[VisualGrid]
) -> Iterator[dict[int, Tensor]]:
    """Let ``modulation`` write zeros that record gradients during a block.

    Yields a dictionary that a forward fills with {index of an injected layer: its residuals}.
    """
    probes = dict[int, Tensor]()
    device = modulation.amplitude.device
    width = modulation.config.host.d_model
    layers = modulation.config.injection.layers

    def residual(index: int, latents: Tensor, *_: Any) -> Tensor:
        probes[index] = torch.zeros(len(latents), width, device=device, requires_grad=True)
        return probes[index]

    def latents(clips: Any) -> Latents:
        steps = tuple(grid.steps for grid in grids)
        parts: list[list[Tensor | Mixture]] = [
            [torch.zeros(grid.tokens, 1, device=device) for grid in grids] for _ in layers
        ]
        return Latents(parts, steps, steps, step_spans(grids))

    with (
        patched_method(modulation, "residual", residual),
        patched_method(modulation, "latents", latents),
    ):
        yield probes


def twin_reach(
    recipe: Recipe, model: nn.Module, processor: Any, d_features: int
) -> dict[int, float]:
    """Return what :func:`reach` finds on a narrow twin of ``model``, for models on meta tensors.

    The twin has the same class and the same layers in the same order, but few channels and random
    weights. Whether a path leads to the answer depends on how layers are connected, not on their
    width. Raises :class:`modulate.errors.HostError` for families that cannot be narrowed.
    """
    from transformers import AutoModelForImageTextToText

    # A fork, so that building the twin leaves the caller's random state unchanged.
    with torch.random.fork_rng(), torch.device("cpu"):
        torch.manual_seed(0)
        family = type(understand(model))
        config = family.narrow(cast(Any, base_model(model)).config)
        twin = (
            AutoModelForImageTextToText.from_config(config, dtype=torch.float32)
            .requires_grad_(False)
            .eval()
        )
        family.serve(twin)
        host = understand(twin)
        modulation = Modulation.for_host(
            twin,
            encoder=recipe.encoder,
            modulator=recipe.modulator,
            injection=recipe.injection,
            d_features=d_features,
        )
    frames = Frames(np.zeros((4, 64, 64, 3), np.uint8), (0.0, 1.0, 2.0, 3.0))
    prompt = host.encode(processor, user_turn(VideoClip(frames, (0.0, 3.0)), "What is this?"))
    return reach(twin, modulation, prompt.inputs, prompt.grids)

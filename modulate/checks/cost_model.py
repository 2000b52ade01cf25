"""Estimate a recipe's memory and operations by rehearsing its passes on meta tensors.

Nothing is loaded or allocated.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from modulate.checks.dead_layers import AnySignal
from modulate.checks.examples import Example
from modulate.checks.meta_tensors import META, Rehearsal
from modulate.config.recipe import Recipe
from modulate.config.sections import Stage
from modulate.hosts.hooks import patched_method
from modulate.inference.batching import LAST_LOGITS
from modulate.inference.pipeline import Pipeline
from modulate.interfaces.components import FrameFeatures, SignalFeatures
from modulate.interfaces.visual_grid import VisualGrid
from modulate.modulation.attachment import ModulatedHost
from modulate.modulation.clip_inputs import ClipInput
from modulate.modulation.module import Modulation
from modulate.training.optimizer import select

MOMENTS = 2
"""Float32 numbers that AdamW keeps for every trained parameter."""


@dataclass(frozen=True)
class Phase:
    """The estimate of one phase of a run.

    ``peak``: most bytes alive, weights included. ``flops``: operations of one optimizer step, one
    clip or one sample. ``uncounted``: names of torch operations that are missing in ``flops``, see
    :class:`Rehearsal`.
    """

    name: str
    peak: int
    flops: int
    uncounted: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Budget:
    """The estimates of all phases of a run.

    ``weights``: bytes by part, all of them alive during every phase. ``feature_shape``: shape of
    the cached features of one clip.
    """

    device: str
    weights: dict[str, int]
    features: Phase
    stages: tuple[Phase, ...]
    evaluation: Phase
    feature_shape: tuple[int, ...]

    @property
    def phases(self) -> tuple[Phase, ...]:
        """All phases in their order."""
        return (self.features, *self.stages, self.evaluation)

    @property
    def peak(self) -> int:
        """Most bytes alive during the whole run."""
        return max(phase.peak for phase in self.phases)


def meta_recipe(recipe: Recipe) -> Recipe:
    """Return ``recipe`` with host and backbone on the device ``meta``, without weights to load."""
    _, params = recipe.host.resolved("host")
    kind, wanted = recipe.backbone.resolved("backbone")
    host = recipe.host.params | (
        {"weights": "random", "device": "meta"} if "weights" in type(params).model_fields else {}
    )
    backbone = dict(recipe.backbone.params)
    # Without any of these parameters, the dimensions are in the file of the weights, which must
    # then exist and is read.
    if "weights" in kind.Params.model_fields and any(
        getattr(wanted, name, None) is not None for name in ("preset", "dims", "model")
    ):
        backbone["weights"] = "random"
    return recipe.model_copy(
        update={
            "host": recipe.host.model_copy(update={"params": host}),
            "backbone": recipe.backbone.model_copy(update={"params": backbone}),
        }
    )


def budget(
    pipeline: Pipeline, modulation: Modulation, training: Example, evaluation: Example, device: str
) -> Budget:
    """Rehearse every phase of a run on clips like these, as if on a "cuda" or "cpu" ``device``.

    ``pipeline`` must be on ``meta`` (see :func:`meta_recipe`). ``modulation`` is moved there and
    cannot be used afterwards. Not included: the memory of the signal encoder, which is not run,
    mixed precision, and the libraries' own memory.
    """
    modulation = modulation.to(META)
    recipe = pipeline.recipe
    weights = {
        "host": size_of(pipeline.model),
        "backbone": size_of(pipeline.backbone),
        "modulation": size_of(modulation),
    }
    resident = []
    for module in (pipeline.model, pipeline.backbone, modulation):
        resident += tensors_of(module)
    with any_signal(modulation, META):
        features, shape = _features(pipeline, evaluation, resident, device)
        trained = _Steps(pipeline, modulation, resident, device, training)
        stages = tuple(trained.stage(stage) for stage in recipe.training.stages)
        evaluated = _Steps(pipeline, modulation, resident, device, evaluation)
        return Budget(device, weights, features, stages, evaluated.evaluation(), shape)


@dataclass
class _Steps:
    """Rehearse passes through the host."""

    pipeline: Pipeline
    modulation: Modulation
    resident: list[Tensor]
    device: str
    example: Example

    def stage(self, stage: Stage) -> Phase:
        """Rehearse one optimizer step in the middle of training."""
        settings = self.pipeline.recipe.training
        select(self.modulation, stage)
        trained = [p for p in self.modulation.parameters() if p.requires_grad]
        moments = [torch.empty(p.shape, device=META) for p in trained for _ in range(MOMENTS)]
        gradients = []
        for parameter in trained:
            parameter.grad = None
            # With accumulation, gradients of earlier batches are alive during the forward.
            if settings.accumulation > 1:
                parameter.grad = torch.empty_like(parameter)
                gradients.append(parameter.grad)
        with Rehearsal(self.device) as rehearsal:
            rehearsal.see([*self.resident, *moments, *gradients])
            # Without a signal in training, the hooks do nothing and only LoRA learns.
            logits = self.forward(settings.batch_size, signal=settings.condition != "none")
            # The loss reads the answer's letters; which four tokens they are costs the same.
            options = logits[:, -1].float()[:, :4]
            nn.functional.cross_entropy(
                options, torch.zeros(len(options), dtype=torch.long, device=META)
            ).backward()  # type: ignore[no-untyped-call]
        for parameter in trained:
            parameter.grad = None
        return Phase(
            f"stage {stage.name}",
            rehearsal.peak,
            rehearsal.flops * settings.accumulation,
            frozenset(rehearsal.uncounted),
        )

    def evaluation(self) -> Phase:
        """Rehearse one batch of an evaluation; ``flops`` is that of one sample."""
        size = self.pipeline.recipe.evaluation.batch_size
        with torch.no_grad(), Rehearsal(self.device) as rehearsal:
            rehearsal.see(self.resident)
            self.forward(size)
        return Phase(
            "evaluation", rehearsal.peak, rehearsal.flops // size, frozenset(rehearsal.uncounted)
        )

    def forward(self, size: int, signal: bool = True) -> Tensor:
        """Return the logits of ``size`` samples, with a ``signal`` through the hooks."""
        rows = [self.example.prompt.inputs] * size
        # Samples of a batch differ in length, and padding needs a mask, with which attention
        # cannot take its cheapest kernel.
        if size > 1:
            rows[0] = _lengthened(rows[0])
        inputs = {key: on_meta(value) for key, value in self.pipeline.host.collate(rows, 0).items()}
        host = ModulatedHost(self.modulation, self.pipeline.model)
        try:
            if signal:
                d_features = self.pipeline.backbone.d_features
                clips = [
                    ClipInput(
                        AnySignal(),
                        grid,
                        torch.empty(grid.steps, grid.tokens_per_step, d_features, device=META),
                    )
                    for grid in self.example.prompt.grids
                ]
                return host([clips] * size, **inputs, **LAST_LOGITS).logits  # type: ignore[no-any-return]
            return self.pipeline.model(**inputs, **LAST_LOGITS).logits  # type: ignore[no-any-return]
        finally:
            host.attachment.detach()


def _features(
    pipeline: Pipeline, example: Example, resident: Sequence[Tensor], device: str
) -> tuple[Phase, tuple[int, ...]]:
    """Rehearse the backbone on the largest clip; return the phase and the shape of its features."""
    with torch.no_grad(), Rehearsal(device) as rehearsal:
        rehearsal.see(list(resident))
        frames = torch.empty(*example.largest.frames, 3, dtype=torch.uint8, device=META)
        features: FrameFeatures = pipeline.backbone(frames, example.largest.times)
    phase = Phase("features", rehearsal.peak, rehearsal.flops, frozenset(rehearsal.uncounted))
    return phase, tuple(features.values.shape)


@contextmanager
def any_signal(modulation: Modulation, device: torch.device) -> Iterator[None]:
    """Let the encoder return features without reading any signal during a block.

    What a real encoder does depends on the values of a signal, which a rehearsal does not have.
    """
    encoder = modulation.encoder

    def forward(signals: Sequence[Any], grids: Sequence[VisualGrid]) -> SignalFeatures:
        steps = sum(grid.steps for grid in grids)
        tokens = grids[0].tokens_per_step
        return SignalFeatures(
            torch.zeros(steps, tokens, encoder.d_signal, device=device),
            torch.ones(steps, dtype=torch.bool, device=device),
        )

    with patched_method(encoder, "forward", forward):
        yield


def on_meta(value: Tensor) -> Tensor:
    """Return a model input for a rehearsal: pixels move to meta; ids, masks, grids and rates stay.

    The code of the host branches on the values of the latter.
    """
    return value.to(META) if value.is_floating_point() and value.ndim > 1 else value


def _lengthened(row: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return ``row`` with its last token repeated once."""
    length = row["input_ids"].shape[1]
    longer = {}
    for key, value in row.items():
        per_token = value.ndim == 2 and value.shape[1] == length and not value.is_floating_point()
        longer[key] = torch.cat([value, value[:, -1:]], 1) if per_token else value
    return longer


def tensors_of(module: nn.Module) -> list[Tensor]:
    """Return a module's parameters and buffers."""
    return [*module.parameters(), *module.buffers()]


def size_of(module: nn.Module) -> int:
    """Return the bytes of a module's parameters and buffers; shared ones count once."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors_of(module))


def count_parameters(
    host: nn.Module, backbone: nn.Module, modulation: Modulation
) -> dict[str, int]:
    """Return the number of parameters of every existing part."""
    parts: dict[str, nn.Module | None] = {
        "host": host,
        "backbone": backbone,
        "encoder": modulation.encoder,
        "modulator": modulation.modulator,
        "output projections": modulation.out,
        "LoRA": modulation.lora,
    }
    counts = {
        name: sum(parameter.numel() for parameter in part.parameters())
        for name, part in parts.items()
        if part is not None
    }
    return counts | {"amplitudes": modulation.amplitude.numel()}

"""What a recipe will take: parameters, tokens, operations, memory.

Found by rehearsing its forwards and backwards on meta tensors, before anything is loaded.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from modulate.checks.dead_layers import AnySignal
from modulate.checks.meta_tensors import META, Rehearsal
from modulate.config.recipe import Recipe
from modulate.config.sections import Stage
from modulate.hosts.hooks import patched_method
from modulate.hosts.host import EncodedPrompt
from modulate.inference.batching import LAST_LOGITS
from modulate.inference.pipeline import Pipeline
from modulate.interfaces.components import FrameFeatures, SignalFeatures
from modulate.interfaces.visual_grid import VisualGrid
from modulate.modulation.clip_inputs import ClipInput
from modulate.modulation.modulated_host import ModulatedHost
from modulate.modulation.module import Modulation
from modulate.training.optimizer import select

MOMENTS = 2
"""Numbers that AdamW keeps of every trained one, float32."""


@dataclass(frozen=True)
class Phase:
    """One part of a run. ``peak``: bytes alive at most, weights included; ``flops``: operations of
    one optimizer step, or of one clip or sample.

    ``uncounted``: names of torch operations that ``flops`` is without, see :class:`Rehearsal`.
    """

    name: str
    peak: int
    flops: int
    uncounted: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Budget:
    """What was found. ``weights``: bytes by part, all there during every phase.

    ``feature_shape``: of one clip's features, as cached.
    """

    device: str
    weights: dict[str, int]
    features: Phase
    stages: tuple[Phase, ...]
    evaluation: Phase
    feature_shape: tuple[int, ...]

    @property
    def phases(self) -> tuple[Phase, ...]:
        """All phases."""
        return (self.features, *self.stages, self.evaluation)

    @property
    def peak(self) -> int:
        """Bytes alive at most during the whole run."""
        return max(phase.peak for phase in self.phases)


@dataclass(frozen=True)
class Example:
    """The clip that a budget is made for: the host's inputs (batch 1) and grid, ``frames`` as
    (frame, height, width), their ``times`` in s.
    """

    prompt: EncodedPrompt
    frames: tuple[int, int, int]
    times: tuple[float, ...]


def meta_recipe(recipe: Recipe) -> Recipe:
    """Return ``recipe`` with host and backbone of the same architecture on the device ``meta``,
    with no weights to load.
    """
    _, params = recipe.host.resolved("host")
    kind, wanted = recipe.backbone.resolved("backbone")
    host = recipe.host.params | (
        {"weights": "random", "device": "meta"} if "weights" in type(params).model_fields else {}
    )
    backbone = dict(recipe.backbone.params)
    # A file may hold the dimensions, too: then it must be there, and is read.
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
    """Rehearse every phase of a run for clips like these, as if on a ``device`` of type "cuda" or
    "cpu".

    ``pipeline`` must be on ``meta`` (see :func:`meta_recipe`); ``modulation`` is taken there, and
    is of no other use afterwards. Nothing is allocated. Signals are not looked at: the encoder's
    own memory is left out. Mixed precision, and what the libraries need, are not in it either.
    """
    modulation = modulation.to(META)
    recipe = pipeline.recipe
    weights = {
        "host": size_of(pipeline.model),
        "backbone": size_of(pipeline.backbone),
        "modulation": size_of(modulation),
    }
    resident = [
        t for module in (pipeline.model, pipeline.backbone, modulation) for t in tensors_of(module)
    ]
    with any_signal(modulation, META):
        features, shape = _features(pipeline, evaluation, resident, device)
        train, ask = (
            _Steps(pipeline, modulation, resident, device, example)
            for example in (training, evaluation)
        )
        return Budget(
            device,
            weights,
            features,
            tuple(train.stage(stage) for stage in recipe.training.stages),
            ask.evaluation(),
            shape,
        )


@dataclass
class _Steps:
    """Rehearses what is done with the host."""

    pipeline: Pipeline
    modulation: Modulation
    resident: list[Tensor]
    device: str
    example: Example

    def stage(self, stage: Stage) -> Phase:
        """Rehearse one optimizer step, in the middle of training."""
        settings = self.pipeline.recipe.training
        select(self.modulation, stage)
        trained = [p for p in self.modulation.parameters() if p.requires_grad]
        kept = [torch.empty(p.shape, device=META) for p in trained for _ in range(MOMENTS)]
        for p in trained:  # of the forwards that were accumulated before
            p.grad = torch.empty_like(p) if settings.accumulation > 1 else None
        with Rehearsal(self.device) as rehearsal:
            rehearsal.see([*self.resident, *kept, *(p.grad for p in trained if p.grad is not None)])
            logits = self.forward(settings.batch_size, signal=settings.condition != "none")
            options = logits[:, -1].float()[:, :4]
            nn.functional.cross_entropy(
                options, torch.zeros(len(options), dtype=torch.long, device=META)
            ).backward()  # type: ignore[no-untyped-call]
        for p in trained:
            p.grad = None
        return Phase(
            f"stage {stage.name}",
            rehearsal.peak,
            rehearsal.flops * settings.accumulation,
            frozenset(rehearsal.uncounted),
        )

    def evaluation(self) -> Phase:
        """Rehearse the forward of one batch of an evaluation; operations are given for one sample."""
        size = self.pipeline.recipe.evaluation.batch_size
        with torch.no_grad(), Rehearsal(self.device) as rehearsal:
            rehearsal.see(self.resident)
            self.forward(size)
        return Phase(
            "evaluation", rehearsal.peak, rehearsal.flops // size, frozenset(rehearsal.uncounted)
        )

    def forward(self, size: int, signal: bool = True) -> Tensor:
        """Run one forward of ``size`` samples through the hooks; return its logits."""
        rows = [self.example.prompt.inputs] * size
        if (
            size > 1
            # samples of a batch differ in length: padding takes away the attention kernel's shortcut
        ):
            rows[0] = _lengthened(rows[0])
        inputs = {key: on_meta(value) for key, value in self.pipeline.host.collate(rows, 0).items()}
        host = ModulatedHost(self.modulation, self.pipeline.model)
        try:
            if signal:
                grid = self.example.prompt.grid
                features = torch.empty(
                    grid.steps, grid.tokens_per_step, self.pipeline.backbone.d_features, device=META
                )
                clip = ClipInput(AnySignal(), grid, features)
                return host([[clip]] * size, **inputs, **LAST_LOGITS).logits  # type: ignore[no-any-return]
            return self.pipeline.model(**inputs, **LAST_LOGITS).logits  # type: ignore[no-any-return]
        finally:
            host.attachment.detach()


def _features(
    pipeline: Pipeline, example: Example, resident: Sequence[Tensor], device: str
) -> tuple[Phase, tuple[int, ...]]:
    """Rehearse the backbone on one clip."""
    with torch.no_grad(), Rehearsal(device) as rehearsal:
        rehearsal.see(list(resident))
        found: FrameFeatures = pipeline.backbone(
            torch.empty(*example.frames, 3, dtype=torch.uint8, device=META), example.times
        )
    return Phase(
        "features", rehearsal.peak, rehearsal.flops, frozenset(rehearsal.uncounted)
    ), tuple(found.values.shape)


@contextmanager
def any_signal(modulation: Modulation, device: torch.device) -> Iterator[None]:
    """Let the encoder return features without looking at any signal, whose values would decide what
    it does.
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
    """Return a model input for a rehearsal: pixels on meta; ids, masks, grids and rates stay, since
    what is done depends on their values.
    """
    return value.to(META) if value.is_floating_point() and value.ndim > 1 else value


def _lengthened(row: dict[str, Tensor]) -> dict[str, Tensor]:
    length = row["input_ids"].shape[1]
    return {
        key: (
            torch.cat([v, v[:, -1:]], 1)
            if v.ndim == 2 and v.shape[1] == length and not v.is_floating_point()
            else v
        )
        for key, v in row.items()
    }


def tensors_of(module: nn.Module) -> list[Tensor]:
    """Return a module's parameters and buffers."""
    return [*module.parameters(), *module.buffers()]


def size_of(module: nn.Module) -> int:
    """Return the bytes of a module's parameters and buffers, those that are shared once."""
    return sum(p.numel() * p.element_size() for p in tensors_of(module))


def count_parameters(
    host: nn.Module, backbone: nn.Module, modulation: Modulation
) -> dict[str, int]:
    """Return the number of parameters by part, for parts that are there."""
    parts: dict[str, nn.Module | None] = {
        "host": host,
        "backbone": backbone,
        "encoder": modulation.encoder,
        "modulator": modulation.modulator,
        "output projections": modulation.out,
        "LoRA": modulation.lora,
    }
    found = {
        name: sum(p.numel() for p in part.parameters())
        for name, part in parts.items()
        if part is not None
    }
    return found | {"amplitudes": modulation.amplitude.numel()}

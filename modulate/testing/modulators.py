"""The contract of a modulator and its writers."""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from modulate.interfaces.components import Modulator, SignalFeatures
from modulate.interfaces.result_checks import check_latents, check_residual
from modulate.interfaces.writer import Memory, Mixture, Projection
from modulate.testing.contract import (
    ComponentContract,
    load_exactly,
    require,
    require_gradients,
    same,
    state,
)

STEPS = 4
TOKENS = 6
D_FEATURES = 5
D_MODEL = 8
N_LAYERS = 3

ROUNDING = 1e-5
"""What latents of steps computed together may differ by from those computed alone."""


class ModulatorContract(ComponentContract):
    """Rows that every modulator must pass.

    Derive a class whose name begins with ``Test``, and run pytest::

        class TestPupilGate(modulate.ModulatorContract):
            name = "pupil_gate"

    Attributes:
        name, params: see :class:`ComponentContract`.
        d_signal: width of the signal features that it is tried with.
        unused: names of weights that no gradient reaches, if that is meant.
    """

    component_kind = "modulator"
    d_signal: ClassVar[int] = 4
    unused: ClassVar[tuple[str, ...]] = ()

    def make(self, n_layers: int = N_LAYERS) -> "Built":
        """Return a new modulator with its writers."""
        modulator = self.build(d_features=D_FEATURES, d_signal=self.d_signal, n_layers=n_layers)
        with self.blame("writer"):
            count = 1 if modulator.shared_output else n_layers
            writers = nn.ModuleList(modulator.writer(layer, D_MODEL) for layer in range(count))
        return Built(modulator, writers.eval())

    def compute(
        self,
        modulator: Modulator,
        features: Tensor,
        signal: SignalFeatures,
        n_layers: int = N_LAYERS,
    ) -> list[Tensor]:
        """Return each layer's latents, mixtures written out; fail if they break the interface."""
        with self.blame("forward"):
            layers = check_latents(modulator(features, signal), modulator, n_layers, signal)
        return [layer.dense() if isinstance(layer, Mixture) else layer for layer in layers]

    def write(self, writer: nn.Module, latents: Tensor, hidden: Tensor) -> Tensor:
        """Return a writer's residuals for the tokens of clips; fail if their shape is wrong."""
        tokens = latents.flatten(0, 1)
        begin = torch.arange(len(tokens)) // TOKENS * TOKENS
        memory = Memory(tokens, torch.stack([begin, begin + TOKENS], 1))
        with self.blame("writer"):
            return check_residual(writer(tokens, hidden, memory), tokens, D_MODEL)

    def clip(self) -> tuple[Tensor, SignalFeatures]:
        """Return features and signal features of a clip; at the last step no signal is active."""
        generator = torch.Generator().manual_seed(0)
        features = torch.randn(STEPS, TOKENS, D_FEATURES, generator=generator)
        active = torch.ones(STEPS, dtype=torch.bool)
        active[-1] = False
        values = torch.randn(STEPS, TOKENS, self.d_signal, generator=generator)
        return features, SignalFeatures(values * active[:, None, None], active)

    # --- rows

    def test_it_gives_latents_for_each_layer(self) -> None:
        """One tensor or mixture for each injected layer, of the width ``d_latent``."""
        features, signal = self.clip()
        for n_layers in (1, N_LAYERS):
            built = self.make(n_layers)
            self.compute(built.modulator, features, signal, n_layers)
            shared: Any = built.modulator.shared_output
            require(isinstance(shared, bool), "shared_output is no bool")

    def test_steps_do_not_affect_each_other(self) -> None:
        """Each step is computed independently of the others."""
        modulator = self.make().modulator
        features, signal = self.clip()
        together = self.compute(modulator, features, signal)
        for step in range(STEPS):
            part = slice(step, step + 1)
            alone = self.compute(
                modulator, features[part], SignalFeatures(signal.values[part], signal.active[part])
            )
            for layer in range(N_LAYERS):
                require(
                    same(together[layer][part], alone[layer], ROUNDING),
                    f"the latents of step {step} are others when it is computed alone",
                )

    def test_it_keeps_nothing_between_calls(self) -> None:
        """Latents depend on the arguments alone, which stay as they are."""
        modulator = self.make().modulator
        features, signal = self.clip()
        before = state((features, signal.values, signal.active))
        first = self.compute(modulator, features, signal)
        self.compute(modulator, features.flip(0), SignalFeatures(signal.values, signal.active))
        require(
            same(first, self.compute(modulator, features, signal)),
            "computing a clip twice gives different latents",
        )
        require(
            same((features, signal.values, signal.active), before), "forward changed its arguments"
        )

    def test_it_bears_an_empty_signal(self) -> None:
        """Latents are finite where no step is active."""
        features, _ = self.clip()
        silent = torch.zeros(STEPS, dtype=torch.bool)
        values = torch.zeros(STEPS, TOKENS, self.d_signal)
        self.compute(self.make().modulator, features, SignalFeatures(values, silent))

    def test_new_writers_write_nothing(self) -> None:
        """An untrained modulation leaves the host as it is, to the bit."""
        built = self.make()
        latents = self.compute(built.modulator, *self.clip())
        for dtype in (torch.float32, torch.bfloat16):
            for layer, writer in enumerate(built.writers_of(N_LAYERS)):
                hidden = torch.randn(STEPS * TOKENS, D_MODEL).to(dtype)
                residual = self.write(writer, latents[layer], hidden)
                require(
                    not bool(residual.any()),
                    f"a new writer of layer {layer} writes other numbers than 0; initialize its"
                    " last weight, or a gate, with zeros",
                )
                require(
                    residual.dtype == torch.float32,
                    f"a writer returns {residual.dtype} for hidden states of {dtype}; residuals are"
                    " float32: use `hidden.float()`",
                )

    def test_new_writers_can_learn(self) -> None:
        """Some weight of each new writer has a gradient: two zeros in a row would stay zero."""
        built = self.make()
        latents = self.compute(built.modulator, *self.clip())
        hidden = torch.randn(STEPS * TOKENS, D_MODEL)
        for layer, writer in enumerate(built.writers_of(N_LAYERS)):
            weights = [weight for weight in writer.parameters() if weight.requires_grad]
            require(bool(weights), f"the writer of layer {layer} has no weights")
            residual = self.write(writer, latents[layer].detach(), hidden)
            require(residual.requires_grad, f"the writer of layer {layer} ignores its weights")
            gradients = torch.autograd.grad(residual.sum(), weights, allow_unused=True)
            require(
                any(gradient is not None and bool(gradient.any()) for gradient in gradients),
                f"no weight of the new writer of layer {layer} has a gradient, so it stays 0",
            )

    def test_gradients_reach_every_weight(self) -> None:
        """Once its writers write, every weight of the modulator can learn."""
        built = self.make().awake()
        latents = self.compute(built.modulator.train(), *self.clip())
        hidden = torch.randn(STEPS * TOKENS, D_MODEL)
        residuals = [
            self.write(writer, of_layer, hidden)
            for writer, of_layer in zip(built.writers_of(N_LAYERS), latents, strict=True)
        ]
        require_gradients(built, torch.stack(residuals), self.unused)

    def test_its_weights_are_all_it_learned(self) -> None:
        """A saved modulator computes the same when it is loaded."""
        built = self.make().awake()
        _, params = self.spec.resolved(self.component_kind)
        portable = built.modulator.portable(params)
        for key, value in portable:
            require(
                not isinstance(value, Path),
                f"`portable` keeps the file {key!r}, which other machines do not have",
            )
        torch.manual_seed(1)
        modulator = type(built.modulator)(
            portable, d_features=D_FEATURES, d_signal=self.d_signal, n_layers=N_LAYERS
        )
        writers = [modulator.writer(layer, D_MODEL) for layer in range(len(built.writers))]
        twin = Built(modulator, nn.ModuleList(writers)).eval()
        load_exactly(twin, built)
        require(
            same(self._residuals(twin), self._residuals(built)),
            "a modulator with the same state_dict writes other residuals; register every tensor"
            " that counts as a parameter or buffer",
        )
        require(
            same(self._residuals(copy.deepcopy(built)), self._residuals(built)),
            "a deep copy writes other residuals",
        )

    def _residuals(self, built: "Built") -> list[Tensor]:
        latents = self.compute(built.modulator, *self.clip())
        hidden = torch.randn(STEPS * TOKENS, D_MODEL, generator=torch.Generator().manual_seed(2))
        return [
            self.write(writer, of_layer, hidden)
            for writer, of_layer in zip(built.writers_of(N_LAYERS), latents, strict=True)
        ]

    def test_mixtures_are_written_as_tokens_are(self) -> None:
        """What a projection writes for a mixture equals what it writes token by token."""
        built = self.make().awake()
        features, signal = self.clip()
        with self.blame("forward"):
            layers = check_latents(
                built.modulator(features, signal), built.modulator, N_LAYERS, signal
            )
        for writer, layer in zip(built.writers_of(N_LAYERS), layers, strict=True):
            if not (isinstance(layer, Mixture) and isinstance(writer, Projection)):
                continue
            hidden = torch.zeros(STEPS * TOKENS, D_MODEL)
            whole = writer.write_mixture(layer, torch.ones(()))
            require(
                same(whole, self.write(writer, layer.dense(), hidden), ROUNDING),
                "a mixture is written otherwise than its tokens",
            )


class Built(nn.Module):
    """A modulator and its writers, whose weights are saved together."""

    def __init__(self, modulator: Modulator, writers: nn.ModuleList) -> None:
        super().__init__()
        self.modulator = modulator
        self.writers = writers

    def writers_of(self, n_layers: int) -> Sequence[nn.Module]:
        """Return the writer of each layer; they may share one."""
        shared = len(self.writers) == 1
        return [self.writers[0 if shared else layer] for layer in range(n_layers)]

    def awake(self) -> "Built":
        """Return itself with writers that write: no weight of theirs is 0."""
        generator = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for weight in self.writers.parameters():
                weight.add_(0.3 * torch.randn(weight.shape, generator=generator))
        return self

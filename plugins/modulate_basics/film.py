"""The modulator ``film``: the signal scales and shifts the hidden states.

[FiLM, arXiv 1709.07871]
"""

from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from modulate import Memory, Modulator, Params, SignalFeatures, Writer


class FiLMParams(Params):
    """Parameters of ``film``."""

    width: int = Field(
        64,
        gt=0,
        le=2**16,
        description="width of the hidden layer between signal and scale/shift, channels [ours]",
    )


class ScaleAndShift(Writer):
    """Writes γ(z) ⊙ h + β(z); both start at 0."""

    def __init__(self, d_latent: int, d_model: int) -> None:
        super().__init__()
        self.scale = nn.Linear(d_latent, d_model, bias=False)
        self.shift = nn.Linear(d_latent, d_model, bias=False)
        nn.init.zeros_(self.scale.weight)
        nn.init.zeros_(self.shift.weight)

    def forward(
        self,
        latents: Float[Tensor, "token d_latent"],
        hidden: Float[Tensor, "token d_model"],
        memory: Memory,
    ) -> Float[Tensor, "token d_model"]:
        """Return the residual that turns h into (1 + γ) h + β."""
        return self.scale(latents) * hidden.float() + self.shift(latents)


class FiLM(Modulator):
    """Computes scale and shift of each hidden channel from the signal at the token.

    Ignores frame features; without a signal the residual is exactly 0.
    """

    Params = FiLMParams

    def __init__(
        self, params: FiLMParams, *, d_features: int, d_signal: int, n_layers: int
    ) -> None:
        super().__init__()
        self.d_latent = params.width
        # No biases: a token without a signal must stay unchanged.
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Linear(d_signal, params.width, bias=False), nn.GELU())
            for _ in range(n_layers)
        )

    def forward(
        self, features: Float[Tensor, "step token d_features"], signal: SignalFeatures
    ) -> list[Float[Tensor, "step token d_latent"]]:
        """Return the hidden activations for each injected layer's scale and shift."""
        return [layer(signal.values.float()) for layer in self.layers]

    def writer(self, layer: int, d_model: int) -> Writer:
        """Return the scale and shift of one layer."""
        return ScaleAndShift(self.d_latent, d_model)

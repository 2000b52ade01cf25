"""The modulator ``steering``: one learned or given direction per layer, on all or some tokens."""

import math
from pathlib import Path
from typing import Annotated, Literal

import torch
from jaxtyping import Float
from pydantic import BaseModel, Field, field_validator
from safetensors import SafetensorError
from torch import Tensor, nn

from modulate import LocalPath, Memory, Modulator, Params, Projection, SignalFeatures, Writer
from modulate.errors import CheckpointError, RecipeError
from modulate.utils.atomic_files import read_tensors
from modulate.utils.paths import resolve


class SteeringParams(Params):
    """Parameters of ``steering``."""

    by: Literal["constant", "signal"] = Field(
        "signal",
        description=(
            "signal: a linear map of the encoder's features, which decide position and strength"
            " (with dim 1 a single direction); constant: the same direction on every selected"
            " token, whatever the signal"
        ),
    )
    directions: Annotated[Path | Literal["saved"] | None, LocalPath(("saved",))] = Field(
        None,
        description=(
            "safetensors file with a fixed tensor `directions` (injected layer, d_model), of which"
            " only the strength is learned; saved: directions in the weights of a saved modulation,"
            " not for recipes"
        ),
    )

    @field_validator("directions", mode="after")
    @classmethod
    def _word(cls, value: Path | str | None) -> Path | str | None:
        return "saved" if value == Path("saved") else value

    strength: float = Field(
        0.0,
        description=(
            "initial strength of given directions, times their norm; other values than 0 change the"
            " host before any training"
        ),
    )


class GivenDirection(Writer):
    """Writes a fixed direction times a learned strength of the latents' sum."""

    direction: Tensor

    def __init__(
        self, direction: Float[Tensor, " d_model"], d_latent: int, strength: float
    ) -> None:
        super().__init__()
        self.register_buffer("direction", direction)
        self.strength = nn.Parameter(torch.full((d_latent,), strength))

    def forward(
        self,
        latents: Float[Tensor, "token d_latent"],
        hidden: Float[Tensor, "token d_model"],
        memory: Memory,
    ) -> Float[Tensor, "token d_model"]:
        """Return (z · strength) times the direction."""
        return (latents @ self.strength)[:, None] * self.direction


class Steering(Modulator):
    """Writes one direction per injected layer; ignores frame features.

    With ``by: signal`` a token without any signal gets exactly 0. Raises :class:`RecipeError` or
    :class:`CheckpointError` for directions that do not fit.
    """

    Params = SteeringParams

    def __init__(
        self, params: SteeringParams, *, d_features: int, d_signal: int, n_layers: int
    ) -> None:
        super().__init__()
        if params.strength and params.directions is None:
            raise RecipeError(
                "`strength` is that of given directions; name a file under `directions`, or leave"
                " it at 0 to learn both."
            )
        self.params = params
        self.n_layers = n_layers
        self.d_latent = d_signal if params.by == "signal" else 1

    def forward(
        self, features: Float[Tensor, "step token d_features"], signal: SignalFeatures
    ) -> list[Float[Tensor, "step token d_latent"]]:
        """Return the signal's features, or ones, for every layer."""
        values = (
            signal.values.float()
            if self.params.by == "signal"
            else torch.ones_like(signal.values[..., :1], dtype=torch.float32)
        )
        return [values] * self.n_layers

    def writer(self, layer: int, d_model: int) -> Writer:
        """Return a learned map of the latents, or the given direction of this layer."""
        if self.params.directions is None:
            return Projection(self.d_latent, d_model)
        if self.params.directions == "saved":
            return GivenDirection(
                torch.full((d_model,), math.nan), self.d_latent, self.params.strength
            )
        directions = _read(Path(self.params.directions))
        if tuple(directions.shape) != (self.n_layers, d_model):
            raise CheckpointError(
                f"{self.params.directions} holds directions of shape {tuple(directions.shape)};"
                f" here ({self.n_layers}, {d_model}) are needed."
            )
        return GivenDirection(
            directions[layer].float().clone(), self.d_latent, self.params.strength
        )

    def portable(self, params: BaseModel) -> BaseModel:
        """Return ``params`` without the file of directions, which are saved as buffers."""
        assert isinstance(params, SteeringParams)
        return (
            params
            if params.directions in (None, "saved")
            else params.model_copy(update={"directions": "saved"})
        )


def _read(path: Path) -> Tensor:
    try:
        return read_tensors(resolve(str(path)))["directions"]
    except (SafetensorError, OSError, KeyError) as error:
        raise CheckpointError(
            f"{path} is no safetensors file with a tensor `directions`: {error}."
        ) from error

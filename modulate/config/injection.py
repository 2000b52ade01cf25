"""Where a modulation adds residuals to a host, and its LoRA parameters. Imports no torch."""

from collections.abc import Sequence
from typing import Literal

from pydantic import Field, model_validator

from modulate.interfaces.params import Departure, Params


class Tokens(Params):
    """Which tokens receive residuals, in rows that have a signal."""

    kind: Literal["visual", "text", "last", "mask"] = Field(
        "visual",
        description=(
            "`visual`: each visual token receives its own residual. The other kinds add one"
            " residual to all their tokens, made from the mean over the row's visual tokens."
            " `text`: all other tokens, generated ones included. `last`: the prompt's last token"
            " and every generated one. `mask`: the positions passed to `condition(…, mask=…)`"
        ),
    )
    steps: tuple[int, ...] | None = Field(
        None,
        min_length=1,
        description=(
            "time steps whose visual tokens receive residuals; negative numbers count from the"
            " end of the clip. `null`: all steps"
        ),
    )

    @model_validator(mode="after")
    def _steps_are_visual(self) -> "Tokens":
        if self.steps is not None and self.kind != "visual":
            raise ValueError(
                f"`steps` selects visual tokens; it has no effect with kind `{self.kind}`"
            )
        return self


class Injection(Params):
    """Which layers and tokens of the host receive residuals."""

    layers: tuple[int, ...] = Field(
        min_length=1, description="indices (from 0) of the decoder layers whose output is modulated"
    )
    alpha: float = Field(
        1.0,
        ge=-1e6,
        le=1e6,
        description="initial amplitude α of each layer, which is then learned [GazeQwen: 1]",
    )
    tokens: Tokens = Field(
        Tokens(), description="which tokens receive residuals [GazeQwen: visual tokens]"
    )
    empty: Literal["residual", "none"] = Field(
        "residual",
        description=(
            "what happens to a clip whose signal is empty. `residual`: it receives residuals made"
            " from its frame features alone. `none`: it receives none [GazeQwen's code]"
        ),
    )

    @model_validator(mode="after")
    def _layers_are_different(self) -> "Injection":
        repeated = sorted({layer for layer in self.layers if self.layers.count(layer) > 1})
        if repeated:
            raise ValueError(f"`layers` names layer {repeated[0]} twice")
        return self

    def departures(self) -> Sequence[Departure]:
        """Return the consequence of giving no residuals to clips with an empty signal."""
        text = (
            "empty is `none`: a clip whose signal is empty receives no residuals, but a clip whose"
            " signal has events and is active at no step does. The control `blank` is the former."
        )
        return [("info", text)] if self.empty == "none" else []

    @model_validator(mode="after")
    def _empty_is_visual(self) -> "Injection":
        if self.empty != "residual" and self.tokens.kind != "visual":
            raise ValueError(
                f"`empty: {self.empty}` applies to visual tokens; it has no effect with kind"
                f" `{self.tokens.kind}`"
            )
        return self


class LoraParams(Params):
    """Low-rank adaptation (arXiv 2106.09685) of the language model's linear layers.

    The vision tower is never adapted.
    """

    rank: int = Field(8, ge=1, le=2**16, description="rank of the weight update [GazeQwen: 8]")
    alpha: float = Field(
        16.0, gt=0, le=1e6, description="the weight update is scaled by alpha / rank [GazeQwen: 16]"
    )
    targets: tuple[str, ...] = Field(
        ("q_proj", "v_proj"),
        min_length=1,
        description="linear layers to adapt in every decoder layer, by the last part of their name",
    )

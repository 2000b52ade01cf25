"""Where a modulation injects residuals, and its LoRA parameters. Imports no torch."""

from collections.abc import Sequence
from typing import Literal

from pydantic import Field, model_validator

from modulate.interfaces.params import Departure, Params


class Tokens(Params):
    """Which tokens get residuals, of the rows that have a signal."""

    kind: Literal["visual", "text", "last", "mask"] = Field(
        "visual",
        description=(
            "visual: visual tokens, each its own residual; the others get one residual for all,"
            " from the mean over the row's visual tokens. text: all that is not visual, generated"
            " tokens too; last: the prompt's last token and every generated one; mask: positions"
            " given to `condition(…, mask=…)`"
        ),
    )
    steps: tuple[int, ...] | None = Field(
        None,
        min_length=1,
        description=(
            "of visual tokens, those of these time steps only; negative: from the clip's end."
            " null: all"
        ),
    )

    @model_validator(mode="after")
    def _steps_are_visual(self) -> "Tokens":
        if self.steps is not None and self.kind != "visual":
            raise ValueError(
                f"`steps` chooses among visual tokens; it has no effect on kind `{self.kind}`"
            )
        return self


class Injection(Params):
    """Where residuals go."""

    layers: tuple[int, ...] = Field(
        min_length=1, description="decoder layers whose output is modulated, 0-based"
    )
    alpha: float = Field(
        1.0,
        ge=-1e6,
        le=1e6,
        description="initial amplitude α of every layer; learned [GazeQwen: 1]",
    )
    tokens: Tokens = Field(
        Tokens(), description="which tokens get them [GazeQwen: the visual ones]"
    )
    empty: Literal["residual", "none"] = Field(
        "residual",
        description=(
            "what a clip gets whose signal is empty. residual: what the modulator makes of its"
            " frame features alone; none: nothing, as in GazeQwen's code"
        ),
    )

    def departures(self) -> Sequence[Departure]:
        """Say what follows from leaving out clips without a signal."""
        text = (
            "empty is `none`: a clip without any signal gets no residual, one whose signal is"
            " active at no step does; the control `blank` is the former."
        )
        return [("info", text)] if self.empty == "none" else []

    @model_validator(mode="after")
    def _empty_is_visual(self) -> "Injection":
        if self.empty != "residual" and self.tokens.kind != "visual":
            raise ValueError(
                f"`empty: {self.empty}` is for visual tokens; it has no effect on kind"
                f" `{self.tokens.kind}`"
            )
        return self


class LoraParams(Params):
    """Low-rank adaptation (arXiv 2106.09685) of the language model's own linear layers; never of
    the vision tower.
    """

    rank: int = Field(8, ge=1, le=2**16, description="rank of the update [GazeQwen: 8]")
    alpha: float = Field(
        16.0, gt=0, le=1e6, description="the update is scaled by alpha / rank [GazeQwen: 16]"
    )
    targets: tuple[str, ...] = Field(
        ("q_proj", "v_proj"),
        min_length=1,
        description="last names of the linear layers to adapt, in every decoder layer",
    )

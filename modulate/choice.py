"""The parts that recipes and saved modulations share; imports no torch, so that recipes are read instantly."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from modulate import plugins

Departure = tuple[Literal["info", "warning"], str]
"""A parameter that departs from what is right, to repeat what somebody's code does: how much it matters, and what follows from it, as a sentence."""


class Params(BaseModel):
    """Base of every component's parameters: unknown keys are errors, values do not change once read."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    def departures(self) -> Sequence[Departure]:
        """Return what `modulate check` must say of these parameters: those that repeat what some published code does, although it is not right."""
        return ()


class Choice(Params):
    """A component by its registered name, with its parameters."""

    name: str = Field(description="registered name; `modulate plugins` lists them")
    params: dict[str, Any] = Field(default_factory=dict, description="the component's own parameters")

    def resolved(self, kind: str) -> tuple[Any, Any]:
        """Return (class, validated parameters). Raises PluginError for unknown names, pydantic's error for wrong parameters."""
        component = plugins.get(kind, self.name)
        with self.blame(kind, "its parameters"):
            return component, component.Params.model_validate(self.params)

    def build(self, kind: str, **more: Any) -> Any:
        """Return the component, built as ``Class(params, **more)``. Raises what :meth:`resolved` does, and ComponentError when its constructor fails."""
        component, params = self.resolved(kind)
        with self.blame(kind, "its constructor"):
            return component(params, **more)

    def blame(self, kind: str, doing: str) -> AbstractContextManager[None]:
        """Return a context that names this component and its plugin in any error that is not meant: see :meth:`modulate.plugins.Registry.blame`."""
        return plugins.registry().blame(kind, self.name, doing, (ValidationError,))


class Tokens(Params):
    """Which tokens get residuals, of the rows that have a signal."""

    kind: Literal["visual", "text", "last", "mask"] = Field(
        "visual",
        description="visual: visual tokens, each its own residual; the others get one residual for all, from the mean over the row's visual tokens. "
        "text: all that is not visual, generated tokens too; last: the prompt's last token and every generated one; mask: positions given to `condition(…, mask=…)`",
    )
    steps: tuple[int, ...] | None = Field(None, min_length=1, description="of visual tokens, those of these time steps only; negative: from the clip's end. null: all")

    @model_validator(mode="after")
    def _steps_are_visual(self) -> "Tokens":
        if self.steps is not None and self.kind != "visual":
            raise ValueError(f"`steps` chooses among visual tokens; it has no effect on kind `{self.kind}`")
        return self


class Injection(Params):
    """Where residuals go."""

    layers: tuple[int, ...] = Field(min_length=1, description="decoder layers whose output is modulated, 0-based")
    alpha: float = Field(1.0, ge=-1e6, le=1e6, description="initial amplitude α of every layer; learned [GazeQwen: 1]")
    tokens: Tokens = Field(Tokens(), description="which tokens get them [GazeQwen: the visual ones]")
    empty: Literal["residual", "none"] = Field(
        "residual",
        description="what a clip gets whose signal is empty. residual: what the modulator makes of its frame features alone; none: nothing, as in GazeQwen's code",
    )

    def departures(self) -> Sequence[Departure]:
        """Say what follows from leaving out clips without a signal."""
        text = "empty is `none`: a clip without any signal gets no residual, one whose signal is active at no step does; the control `blank` is the former."
        return [("info", text)] if self.empty == "none" else []

    @model_validator(mode="after")
    def _empty_is_visual(self) -> "Injection":
        if self.empty != "residual" and self.tokens.kind != "visual":
            raise ValueError(f"`empty: {self.empty}` is for visual tokens; it has no effect on kind `{self.tokens.kind}`")
        return self


class LoraParams(Params):
    """Low-rank adaptation (arXiv 2106.09685) of the language model's own linear layers; never of the vision tower."""

    rank: int = Field(8, ge=1, le=2**16, description="rank of the update [GazeQwen: 8]")
    alpha: float = Field(16.0, gt=0, le=1e6, description="the update is scaled by alpha / rank [GazeQwen: 16]")
    targets: tuple[str, ...] = Field(("q_proj", "v_proj"), min_length=1, description="last names of the linear layers to adapt, in every decoder layer")

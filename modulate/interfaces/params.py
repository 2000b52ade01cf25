"""The parts that recipes and saved modulations share; imports no torch, so that recipes are read
instantly.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from modulate import plugins

Departure = tuple[Literal["info", "warning"], str]
"""A parameter that departs from what is right, to repeat what somebody's code does: how much it
matters, and what follows from it, as a sentence.
"""


class Params(BaseModel):
    """Base of every component's parameters: unknown keys are errors, values do not change once
    read.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    def departures(self) -> Sequence[Departure]:
        """Return what `modulate check` must say of these parameters: those that repeat what some
        published code does, although it is not right.
        """
        return ()


class ComponentSpec(Params):
    """A component by its registered name, with its parameters."""

    name: str = Field(description="registered name; `modulate plugins` lists them")
    params: dict[str, Any] = Field(
        default_factory=dict, description="the component's own parameters"
    )

    def resolved(self, kind: str) -> tuple[Any, Any]:
        """Return (class, validated parameters).

        Raises PluginError for unknown names, pydantic's error for wrong parameters.
        """
        component = plugins.get(kind, self.name)
        with self.blame(kind, "its parameters"):
            return component, component.Params.model_validate(self.params)

    def build(self, kind: str, **more: Any) -> Any:
        """Return the component, built as ``Class(params, **more)``.

        Raises what :meth:`resolved` does, and ComponentError when its constructor fails.
        """
        component, params = self.resolved(kind)
        with self.blame(kind, "its constructor"):
            return component(params, **more)

    def blame(self, kind: str, doing: str) -> AbstractContextManager[None]:
        """Return a context that names this component and its plugin in any error that is not meant:
        see :meth:`modulate.plugins.Registry.blame`.
        """
        return plugins.registry().blame(kind, self.name, doing, (ValidationError,))

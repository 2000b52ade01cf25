"""Parameters and component specs, shared by recipes and saved modulations.

Imports no torch, so that reading a recipe takes no time.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from modulate import plugins

Departure = tuple[Literal["info", "warning"], str]
"""The severity and, as a sentence, the consequence of a parameter that repeats published code.

Such a parameter exists for comparison although its value is not the right one.
"""


SET_BY_CONSTRUCTOR: dict[str, dict[str, type]] = {
    "signal_encoder": {"signal_kind": str, "d_signal": int},
    "backbone": {"d_features": int},
    "modulator": {"d_latent": int},
    "input": {"signal_kind": str},
}
"""Attributes that a component of each kind must have once it is built."""


@dataclass(frozen=True)
class LocalPath:
    """Marks a parameter as a path from the working directory: ``Annotated[Path, LocalPath()]``.

    A run records where it leads, so that the run works from any directory. ``words``: values of the
    parameter that are no path.
    """

    words: tuple[str, ...] = ()


class Params(BaseModel):
    """Base class of components' parameters. Unknown keys are errors; instances are immutable."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    def departures(self) -> Sequence[Departure]:
        """Return the departures that `modulate check` reports; by default none."""
        return ()

    @classmethod
    def local_paths(cls) -> dict[str, LocalPath]:
        """Return the parameters that are paths from the working directory, by name."""
        return {
            name: mark
            for name, field in cls.model_fields.items()
            for mark in field.metadata
            if isinstance(mark, LocalPath)
        }


class ComponentSpec(Params):
    """A component: its registered name and its parameters."""

    name: str = Field(description="registered name; `modulate plugins` lists all names")
    params: dict[str, Any] = Field(
        default_factory=dict, description="the component's own parameters"
    )

    def resolved(self, kind: str) -> tuple[Any, Any]:
        """Return the component's class and its validated parameters.

        Raises:
            PluginError: no component of this kind has this name.
            ValidationError: pydantic's error, for wrong parameters.
        """
        component = plugins.get(kind, self.name)
        with self.blame(kind, "its parameters"):
            params_class = getattr(component, "Params", None)
            if not (isinstance(params_class, type) and issubclass(params_class, Params)):
                raise plugins.InterfaceError(
                    "has no class `Params` derived from modulate.Params; a component without"
                    " parameters sets `Params = modulate.Params`."
                )
            return component, params_class.model_validate(self.params)

    def build(self, kind: str, **more: Any) -> Any:
        """Return the component, built as ``Class(params, **more)``.

        Raises the errors of :meth:`resolved`, and :class:`ComponentError` if its constructor fails.
        """
        component, params = self.resolved(kind)
        with self.blame(kind, "its constructor"):
            built = component(params, **more)
            for name, expected in SET_BY_CONSTRUCTOR.get(kind, {}).items():
                value = getattr(built, name, None)
                if not (isinstance(value, expected) and value):
                    raise plugins.InterfaceError(
                        f"has {name} = {value!r} after its constructor; it must set {name} to"
                        f" {'a positive int' if expected is int else 'a registered name'}."
                    )
            return built

    def blame(self, kind: str, doing: str) -> AbstractContextManager[None]:
        """Return a context that names this component and its plugin in every unintended error.

        See :meth:`modulate.plugins.Registry.blame`.
        """
        return plugins.registry().blame(kind, self.name, doing, (ValidationError,))

"""What the contract suites of all kinds share: building the component, comparing, failing."""

import copy
import json
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar, NoReturn

import numpy as np
import torch
from torch import Tensor, nn

from modulate import plugins
from modulate.errors import ComponentError
from modulate.interfaces.params import ComponentSpec


class ComponentContract:
    """Base of the suites of kinds whose components have parameters.

    Derive a class whose name begins with ``Test`` from the suite of your kind; pytest then runs
    every row of the suite on your component.

    Attributes:
        name: the component's registered name.
        params: its parameters, as a recipe would give them. Keep it small: the rows run on a CPU.
    """

    component_kind: ClassVar[str]
    name: ClassVar[str]
    params: ClassVar[Mapping[str, Any]] = {}

    @property
    def spec(self) -> ComponentSpec:
        """The component as recipes name it."""
        return ComponentSpec(name=self.name, params=dict(self.params))

    def build(self, **more: Any) -> Any:
        """Return a new component, initialized from a fixed seed, in evaluation mode."""
        torch.manual_seed(0)
        built = self.spec.build(self.component_kind, **more)
        return built.eval() if isinstance(built, nn.Module) else built

    @contextmanager
    def blame(self, method: str) -> Iterator[None]:
        """Turn errors of the component into failures of the row."""
        try:
            with self.spec.blame(self.component_kind, method):
                yield
        except ComponentError as error:
            raise AssertionError(str(error)) from error

    # --- rows

    def test_it_is_registered(self) -> None:
        """The name is registered by a plugin that works."""
        info = plugins.registry().provider(self.component_kind, self.name)
        if info is None:
            plugins.get(self.component_kind, self.name)  # raises the error that names the reasons
        plugins.get(self.component_kind, self.name)

    def test_its_parameters_are_described(self) -> None:
        """Each parameter has a description, which reference pages and error messages show."""
        component, _ = self.spec.resolved(self.component_kind)
        for key, field in component.Params.model_fields.items():
            require(
                bool(field.description),
                f"the parameter {key!r} has no description; write it as `{key}: … ="
                " Field(…, description=…)`",
            )

    def test_its_parameters_survive_being_saved(self) -> None:
        """Parameters are equal after a way through JSON: a run keeps its recipe in a file."""
        component, params = self.spec.resolved(self.component_kind)
        again = component.Params.model_validate(json.loads(params.model_dump_json()))
        require(again == params, f"after a way through JSON, {params!r} is {again!r}")

    def test_unknown_parameters_are_refused(self) -> None:
        """A misspelled parameter is an error."""
        component, _ = self.spec.resolved(self.component_kind)
        require(
            component.Params.model_config.get("extra") == "forbid",
            "its Params accept unknown keys, so that a misspelled one has no effect; derive them"
            " from modulate.Params and leave `extra` at `forbid`",
        )


def require(condition: bool, otherwise: str) -> None:
    """Fail the row with the text ``otherwise`` unless ``condition`` holds."""
    if not condition:
        fail(otherwise)


def fail(text: str) -> NoReturn:
    """Fail the row."""
    raise AssertionError(f"{text}.")


def state(value: Any) -> Any:
    """Return a deep copy of what a value holds, to compare it later with :func:`same`."""
    return copy.deepcopy(value)


def same(first: Any, second: Any, tolerance: float = 0.0) -> bool:
    """Return whether two values hold the same, numbers up to ``tolerance``.

    Tensors, arrays, containers and objects are compared by what is in them.
    """
    if isinstance(first, Tensor) and isinstance(second, Tensor):
        return _same_numbers(first.detach().cpu(), second.detach().cpu(), tolerance)
    if isinstance(first, np.ndarray) and isinstance(second, np.ndarray):
        if first.dtype.kind not in "biufc" or second.dtype.kind not in "biufc":
            return np.array_equal(first, second)
        # Copies: torch warns of read-only arrays, which immutable signals hold.
        return _same_numbers(torch.tensor(first), torch.tensor(second), tolerance)
    if isinstance(first, float | int) and isinstance(second, float | int):
        return abs(first - second) <= tolerance
    if type(first) is not type(second):
        return False
    if isinstance(first, Mapping):
        return first.keys() == second.keys() and all(
            same(first[key], second[key], tolerance) for key in first
        )
    if isinstance(first, list | tuple):
        pairs = zip(first, second, strict=False)
        return len(first) == len(second) and all(same(*pair, tolerance) for pair in pairs)
    if isinstance(first, str | bytes) or first is None:
        return bool(first == second)
    return same(_held_by(first), _held_by(second), tolerance)


def _same_numbers(first: Tensor, second: Tensor, tolerance: float) -> bool:
    if first.shape != second.shape or first.dtype != second.dtype:
        return False
    return torch.allclose(first.double(), second.double(), rtol=0.0, atol=tolerance)


def _held_by(value: Any) -> dict[str, Any]:
    """Return the attributes of an object by name, those in slots included."""
    slots = [name for cls in type(value).__mro__ for name in getattr(cls, "__slots__", ())]
    held = {name: getattr(value, name) for name in slots if hasattr(value, name)}
    return held | getattr(value, "__dict__", {})


def require_gradients(module: nn.Module, result: Tensor, unused: Collection[str] = ()) -> None:
    """Fail unless a loss on ``result`` gives every weight of ``module`` a gradient.

    ``unused``: names of weights that none reaches.
    """
    weights = {name: weight for name, weight in module.named_parameters() if weight.requires_grad}
    if not weights:
        return
    require(result.requires_grad, "the result does not depend on any weight, so nothing can learn")
    generator = torch.Generator().manual_seed(0)
    loss = (result * torch.randn(result.shape, generator=generator)).sum()
    gradients = torch.autograd.grad(loss, list(weights.values()), allow_unused=True)
    for name, gradient in zip(weights, gradients, strict=True):
        if name in unused:
            continue
        require(
            gradient is not None and bool(gradient.any()),
            f"no gradient reaches {name!r}, so it never learns; use it, make it a buffer, or"
            " list it in `unused`",
        )
        require(
            gradient is None or bool(gradient.isfinite().all()),
            f"the gradient of {name!r} is not finite",
        )


def load_exactly(twin: nn.Module, original: nn.Module) -> None:
    """Load the weights of ``original`` into ``twin``; fail if names or shapes differ."""
    try:
        twin.load_state_dict(original.state_dict())
    except RuntimeError as error:
        fail(f"a new instance cannot load the state_dict of another: {error}")

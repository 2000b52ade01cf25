"""Signatures are shown as the source writes them, whatever the installed libraries are."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, Optional

import numpy as np
import pytest
from jaxtyping import Float
from numpy.typing import ArrayLike, NDArray
from pydantic import BaseModel, Field
from torch import Tensor, nn

import modulate
from modulate.cli import signatures
from modulate.cli.signatures import signature

Form = Literal["letter", "text"]
Part = int | Form


@pytest.fixture(autouse=True)
def shown(monkeypatch):
    """This module counts as one of the project's own."""
    monkeypatch.setattr(signatures, "PACKAGE", "tests")


def of_libraries(image: NDArray[np.uint8], values: ArrayLike, module: nn.Module) -> Optional[int]:  # noqa: UP045 as users may write it
    """Annotations whose objects' texts differ between releases."""


def of_tensors(x: Float[Tensor, " step"], y: Float[Tensor, "step d"]) -> Tensor:
    """Annotations with axes."""


def of_aliases(form: Form, part: Part | None, limited: Annotated[int, "limit"]) -> "Later":
    """Annotations with names of this module."""


def of_defaults(
    a: Any,
    b: str = "x",
    *others: int,
    on_end: Callable[[int], str] = lambda number: str(number),
    **more: Any,
) -> None:
    """Defaults of many kinds."""


@contextmanager
def decorated(flag: bool = True) -> Iterator[None]:
    """A function within another."""
    yield


class Later:
    """A class with a constructor of its own."""

    def __init__(self, size: int, *, name: str = "") -> None: ...

    def sizes(self, of: Sequence["Later"]) -> list[int]:
        """A method."""


class Plain:
    """A class without a constructor."""


class Module(nn.Module):
    """A class with a library's constructor."""


@dataclass
class Record:
    """A class with a generated constructor."""

    form: Form
    parts: dict[str, int] = field(default_factory=dict)


@dataclass
class Longer(Record):
    """A class with inherited fields."""

    end: "Later | None" = None


class Limits(BaseModel):
    """A model whose fields are restricted."""

    count: int = Field(1, ge=1, le=2**20, description="how many")


class Nested(BaseModel):
    """A model with another in it."""

    limits: Limits = Field(Limits(), description="the limits")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (
            of_libraries,
            "(image: NDArray[uint8], values: ArrayLike, module: Module) -> Optional[int]",
        ),
        (of_tensors, '(x: Float[Tensor, "step"], y: Float[Tensor, "step d"]) -> Tensor'),
        (
            of_aliases,
            '(\n    form: Literal["letter", "text"],\n    part: int | Literal["letter", "text"]'
            " | None,\n    limited: int,\n) -> Later",
        ),
        (
            of_defaults,
            '(\n    a: Any,\n    b: str = "x",\n    *others: int,\n'
            "    on_end: Callable[[int], str] = ...,\n    **more: Any,\n) -> None",
        ),
        (decorated, "(flag: bool = True) -> Iterator[None]"),
        (Later, '(size: int, *, name: str = "")'),
        (Later.sizes, "(of: Sequence[Later]) -> list[int]"),
        (Record, '(form: Literal["letter", "text"], parts: dict[str, int] = <factory>)'),
        (
            Longer,
            '(\n    form: Literal["letter", "text"],\n    parts: dict[str, int] = <factory>,\n'
            "    end: Later | None = None,\n)",
        ),
        (Limits, "(\n    *,\n    count: int = 1,  # ge=1, le=2**20\n)"),
        (Nested, "(*, limits: Limits = Limits())"),
    ],
)
def test_parameters_are_shown_as_written(value, text):
    assert signature("name", value) == f"name{text}"


@pytest.mark.parametrize(
    ("cls", "text"),
    [
        (Plain, "class Plain"),
        (Module, "class Module(Module)"),
        (KeyError, "class KeyError(LookupError)"),
    ],
)
def test_a_class_without_a_constructor_of_its_own_is_shown_with_its_bases(cls, text):
    assert signature(cls.__name__, cls) == text


def test_a_value_of_a_library_is_shown_by_its_name(monkeypatch):
    monkeypatch.setattr(signatures, "PACKAGE", "modulate")
    assert signature("hookimpl", modulate.hookimpl) == "hookimpl"

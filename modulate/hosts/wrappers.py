"""Modules that other libraries put around a host's: torch.compile, activation checkpointing, FSDP.

A wrapper changes the path of what is inside it. Everything that is looked up or saved here goes by
the path without wrappers, which is the same for every way of running one host.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn


def is_wrapper(module: nn.Module) -> bool:
    """Return whether ``module`` only stands around its one child, and answers for it.

    A wrapper is known by what it does, not by its class: it hands out its child's own parts as if
    they were its own.
    """
    if len(module._modules) != 1:
        return False
    child = next(iter(module._modules.values()))
    if child is None or module._parameters:
        return False
    inside = unwrapped(child)  # of a wrapper twice around a module, both have a child of one name
    parts = [*inside._modules, *inside._parameters]
    return bool(parts) and all(
        name not in module._modules and hasattr(module, name) for name in parts
    )


def unwrapped(module: nn.Module) -> nn.Module:
    """Return what is inside any number of wrappers."""
    while is_wrapper(module):
        module = next(child for child in module._modules.values() if child is not None)
    return module


def named_inside(module: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Yield (path without wrappers, module) of all that is in ``module``, itself aside.

    Of a module and the wrappers around it the outermost comes: it is what the host calls.
    """
    for name, child in unwrapped(module).named_children():
        path = f"{prefix}{name}"
        yield path, child
        yield from named_inside(child, f"{path}.")


@dataclass(frozen=True)
class WrappedPath:
    """Where a module is: every step of the way from a root, so that a replaced one is noticed.

    ``module``: the outermost module there. ``steps``: (children of the parent, name, child) each.
    """

    module: nn.Module
    steps: tuple[tuple[dict[str, nn.Module | None], str, nn.Module], ...]

    @classmethod
    def of(cls, root: nn.Module, path: str) -> "WrappedPath":
        """Follow ``path``, which names no wrappers. Raises :class:`LookupError` where it ends."""
        steps = []
        here = root
        for name in path.split("."):
            while name not in here._modules and is_wrapper(here):
                inner, child = next(iter(here._modules.items()))
                assert child is not None
                steps.append((here._modules, inner, child))
                here = child
            found = here._modules.get(name)
            if found is None:
                raise LookupError(f"there is no {name!r} in {type(here).__name__}")
            steps.append((here._modules, name, found))
            here = found
        return cls(here, tuple(steps))

    @property
    def stands(self) -> bool:
        """Return whether the way still leads to ``module``."""
        return all(children.get(name) is child for children, name, child in self.steps)

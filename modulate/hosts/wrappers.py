"""Modules that libraries wrap around a host's: torch.compile, activation checkpointing, FSDP.

A wrapper changes the path of everything inside it. Look-ups and saved names use the path without
wrappers, which is the same however a host is run.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn


def is_wrapper(module: nn.Module) -> bool:
    """Return whether ``module`` merely wraps its one child.

    Wrappers are recognized by what they do, since every library has its own classes: a wrapper
    exposes its child's parts as if they were its own.
    """
    if len(module._modules) != 1:
        return False
    child = next(iter(module._modules.values()))
    if child is None or module._parameters:
        return False
    # Twice wrapped, the outer wrapper and its child have a child of the same name. Only the parts
    # of the innermost module tell.
    inner = unwrapped(child)
    parts = [*inner._modules, *inner._parameters]
    # `hasattr` alone would also find the module's own child.
    exposed = (name not in module._modules and hasattr(module, name) for name in parts)
    return bool(parts) and all(exposed)


def unwrapped(module: nn.Module) -> nn.Module:
    """Return the module inside any number of wrappers."""
    while is_wrapper(module):
        module = next(child for child in module._modules.values() if child is not None)
    return module


def named_descendants(module: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Yield (path without wrappers, module) for everything inside ``module``.

    For a wrapped module, the outermost wrapper is yielded: it is what the host calls.
    """
    for name, child in unwrapped(module).named_children():
        path = f"{prefix}{name}"
        yield path, child
        yield from named_descendants(child, f"{path}.")


@dataclass(frozen=True)
class WrappedPath:
    """A module and every step from a root to it, so that a replaced module is noticed.

    ``module``: the outermost module at the end of the path. ``steps``: for each step, the parent's
    dictionary of children, the child's name, and the child.
    """

    module: nn.Module
    steps: tuple[tuple[dict[str, nn.Module | None], str, nn.Module], ...]

    @classmethod
    def of(cls, root: nn.Module, path: str) -> "WrappedPath":
        """Follow ``path``, without wrappers, from ``root``.

        Raises :class:`LookupError` where a step is missing.
        """
        steps = []
        module = root
        for name in path.split("."):
            while name not in module._modules and is_wrapper(module):
                inner_name, inner = next(iter(module._modules.items()))
                assert inner is not None
                steps.append((module._modules, inner_name, inner))
                module = inner
            child = module._modules.get(name)
            if child is None:
                raise LookupError(f"there is no {name!r} in {type(module).__name__}")
            steps.append((module._modules, name, child))
            module = child
        return cls(module, tuple(steps))

    @property
    def is_current(self) -> bool:
        """Whether the path still leads to ``module``."""
        return all(children.get(name) is child for children, name, child in self.steps)

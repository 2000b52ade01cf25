"""What may be put into a host for a while: hooks, and stand-ins for its methods where a hook cannot
leave a computation out.
"""

import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from inspect import Signature
from types import MethodType
from typing import Any

import torch
from torch import nn


class Hook:
    """A hook of ours. A copy, or one that was pickled with its host, does nothing.

    A copied host is a bare host, not a second one under the same attachment.
    """

    tracked = False

    def __init__(self, call: Callable[..., Any]) -> None:
        self.call = call

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call what is hooked in."""
        return self.call(*args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> "Hook":
        return Hook(_nothing)

    def __reduce__(self) -> Any:
        return Hook, (_nothing,)


def _nothing(*args: Any, **kwargs: Any) -> None:
    """What a hook does in a copy of its host."""


def named(parameters: Signature, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of a call by their names; those that a method takes as ``**kwargs`` by
    their own.
    """
    if not args:
        return kwargs
    given = parameters.bind_partial(*args, **kwargs).arguments
    return given | given.pop("kwargs", {})


def may_run_modules(thread: int) -> bool:
    """Return whether ``thread`` may be in a call of a module right now: torch is on its stack."""
    frame = sys._current_frames().get(thread)
    while frame is not None:
        if frame.f_globals.get("__name__", "").startswith(("torch.nn.", "torch._dynamo.")):
            return True
        frame = frame.f_back
    return False


class ActiveCalls:
    """The threads that are in a forward of one host."""

    def __init__(self) -> None:
        self._inside: set[int] = set()
        self._lock = threading.Lock()

    def enter(self, alone: bool) -> bool:
        """Note that this thread begins a forward; False, and nothing noted, where it must be alone
        and is not.

        A forward that ended by an interrupt is over: torch calls no hook for what is no
        ``Exception``.
        """
        me = threading.get_ident()
        with self._lock:
            if alone and self._inside - {me}:
                self._inside = {thread for thread in self._inside if may_run_modules(thread)}
            if alone and self._inside - {me}:
                return False
            self._inside.add(me)
            return True

    def leave(self) -> None:
        """Note that this thread's forward has ended."""
        with self._lock:
            self._inside.discard(threading.get_ident())


class MethodPatch:
    """Stands in for a method of a module.

    In a deep copy of the module it is the copy's own method again.
    """

    def __init__(self, module: nn.Module, name: str, call: Callable[..., Any]) -> None:
        self.module = module
        self.name = name
        self.call = call

    @torch.compiler.disable
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Answer in the method's place."""
        return self.call(*args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return MethodType(getattr(type(self.module), self.name), memo[id(self.module)])

    def __reduce__(self) -> Any:
        return getattr, (self.module, self.name)  # of a module that is still empty: its own method


@contextmanager
def patched_method(module: nn.Module, name: str, call: Callable[..., Any]) -> Iterator[None]:
    """Let ``call`` stand in for the method ``name`` of ``module``, in its instance dictionary,
    which afterwards is as it was.
    """
    absent = object()
    before = module.__dict__.get(name, absent)
    module.__dict__[name] = MethodPatch(module, name, call)
    try:
        yield
    finally:
        if before is absent:
            del module.__dict__[name]
        else:
            module.__dict__[name] = before


def is_patched(module: nn.Module, name: str) -> bool:
    """Return whether something stands in for the method ``name`` of ``module``."""
    return isinstance(module.__dict__.get(name), MethodPatch)


def third_party_hook(hooks: Iterable[Any]) -> str:
    """Return the module that the first of ``hooks`` is from which is not transformers' own; "" when
    there is none.

    Hooks that say of themselves that they are ``tracked`` do not count: whoever keeps a module's
    output asks them what it depends on.
    """
    others = (hook for hook in hooks if not getattr(hook, "tracked", False))
    origins = (getattr(hook, "__module__", None) or type(hook).__module__ for hook in others)
    return next((origin for origin in origins if origin.partition(".")[0] != "transformers"), "")

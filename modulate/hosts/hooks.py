"""What may be put into a host for a while: hooks, and patched methods where a hook is not enough.

A hook runs beside a module's computation and cannot skip it. Where a computation must not run at
all, :func:`patched_method` replaces the method. Both leave the host's class alone, are undone at
the end of a block, and turn into nothing when the host is copied.
"""

import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from inspect import Signature
from types import MethodType
from typing import Any

import torch
from torch import Tensor


class Hook:
    """A forward hook of modulate's that does nothing in a copied or unpickled host.

    A copied host is a plain host, not a second one under the same attachment.
    """

    def __init__(self, call: Callable[..., Any]) -> None:
        self.call = call

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the hook."""
        return self.call(*args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> "Hook":
        return Hook(_do_nothing)

    def __reduce__(self) -> Any:
        return Hook, (_do_nothing,)


class TrackedHook(Hook):
    """A hook that names what its effect depends on, so that its module's output may be cached."""

    def active_tensors(self) -> Sequence[Tensor]:
        """Return the tensors that the hook's effect depends on now; none while it has no effect."""
        raise NotImplementedError


def _do_nothing(*args: Any, **kwargs: Any) -> None:
    """Stand in for a hook in a copy of its host."""


def arguments_by_name(
    signature: Signature, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> dict[str, Any]:
    """Return all arguments of a call by name, those that it takes as ``**kwargs`` included."""
    if not args:
        return kwargs
    arguments = signature.bind_partial(*args, **kwargs).arguments
    return arguments | arguments.pop("kwargs", {})


def may_run_modules(thread: int) -> bool:
    """Return whether ``thread`` may be calling a module right now: torch is on its stack."""
    frame = sys._current_frames().get(thread)
    while frame is not None:
        if frame.f_globals.get("__name__", "").startswith(("torch.nn.", "torch._dynamo.")):
            return True
        frame = frame.f_back
    return False


class ActiveCalls:
    """The threads that are running a forward of one host."""

    def __init__(self) -> None:
        self._threads: set[int] = set()
        self._lock = threading.Lock()

    def enter(self, alone: bool) -> bool:
        """Note that this thread begins a forward.

        ``alone``: no other thread may be running one. Where another is, return False and note
        nothing.
        """
        thread = threading.get_ident()
        with self._lock:
            if alone and self._threads - {thread}:
                # KeyboardInterrupt is no Exception, so torch skips even the hooks registered with
                # always_call and `leave` never ran. A thread without torch on its stack has ended
                # its forward, whatever was noted.
                self._threads = {other for other in self._threads if may_run_modules(other)}
            if alone and self._threads - {thread}:
                return False
            self._threads.add(thread)
            return True

    def leave(self) -> None:
        """Note that this thread's forward has ended."""
        with self._lock:
            self._threads.discard(threading.get_ident())


class MethodPatch:
    """A replacement for one method of one object.

    A copy or an unpickled object gets its own method back.
    """

    def __init__(self, owner: Any, name: str, call: Callable[..., Any]) -> None:
        self.owner = owner
        self.name = name
        self.call = call

    @torch.compiler.disable
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the replacement."""
        return self.call(*args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        # The memo already holds the owner's copy: deepcopy enters it before it copies attributes.
        return MethodType(getattr(type(self.owner), self.name), memo[id(self.owner)])

    def __reduce__(self) -> Any:
        # Unpickled while the owner's dictionary is still empty, so this finds its class's method.
        return getattr, (self.owner, self.name)


@contextmanager
def patched_attributes(owner: Any, values: Mapping[str, Any]) -> Iterator[None]:
    """Set attributes of ``owner`` for this block, then restore its instance dictionary exactly.

    The one place where modulate writes into an instance dictionary. ``setattr`` would not do: it
    registers modules and parameters, and an attribute that came from the class would afterwards
    remain on the instance.
    """
    attributes = vars(owner)
    absent = object()
    before = {name: attributes.get(name, absent) for name in values}
    attributes.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is absent:
                attributes.pop(name, None)
            else:
                attributes[name] = value


@contextmanager
def patched_method(owner: Any, name: str, call: Callable[..., Any]) -> Iterator[None]:
    """Replace the method ``name`` of ``owner``, a module for example, by ``call`` for this block.

    ``call`` does not receive ``owner``.
    """
    with patched_attributes(owner, {name: MethodPatch(owner, name, call)}):
        yield


def is_patched(owner: Any, name: str) -> bool:
    """Return whether the method ``name`` of ``owner`` is replaced by :func:`patched_method`."""
    return isinstance(vars(owner).get(name), MethodPatch)


def third_party_origin(hooks: Iterable[Any]) -> str | None:
    """Return the module that defines the first hook from outside transformers, or None.

    A :class:`TrackedHook` does not count: a cache asks it what the module's output depends on.
    """
    for hook in hooks:
        if isinstance(hook, TrackedHook):
            continue
        # Functions name their module; callable objects such as partials only through their class.
        origin: str = getattr(hook, "__module__", None) or type(hook).__module__
        if origin.partition(".")[0] != "transformers":
            return origin
    return None

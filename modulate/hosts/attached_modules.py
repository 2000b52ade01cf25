"""Which modules are attached to a host now, so that none is attached twice.

A host is recognized by its decoder layers, which are the same under every wrapper (PEFT,
torch.compile).
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol
from weakref import WeakSet

import torch

from modulate.errors import AttachmentWarning, HostError
from modulate.hosts.host import Host


class Attachable(Protocol):
    """A module that can be attached to a host, such as a modulation.

    ``config``: how it is made. ``source``: the folder that it was loaded from.
    """

    config: Any
    source: str | None

    def state_dict(self) -> dict[str, Any]:
        """Return its tensors."""


class AttachedModule:
    """One module on one host."""

    def __init__(self, module: Attachable, host: Host) -> None:
        self.module = module
        self.layers = host.layers


# Weak: a host that nobody holds any more takes its attachments along.
_attached: "WeakSet[AttachedModule]" = WeakSet()


@contextmanager
def noted(module: Attachable, host: Host) -> Iterator[None]:
    """Note that ``module`` is attached to ``host`` for this block."""
    entry = AttachedModule(module, host)
    _attached.add(entry)
    try:
        yield
    finally:
        _attached.discard(entry)


def refuse_second(module: Attachable, host: Host) -> None:
    """Raise :class:`HostError` where ``module``, or its equal, is attached to ``host`` already.

    Both would act, LoRA even without a conditioning. Warns of one from the same source with other
    weights; other modules may be attached beside it.
    """
    for other in [each.module for each in list(_attached) if each.layers is host.layers]:
        is_same = other is module
        if is_same or (other.config == module.config and _have_same_weights(other, module)):
            which = (
                "This modulation" if is_same else "A modulation with this configuration and weights"
            )
            raise HostError(
                f"{which} is attached to this host already, and would act twice. Call `detach()` of"
                " the earlier attachment first. `with modulation.attached(host)` does so by itself,"
                " also in a notebook cell that is run again."
            )
        if other.source is not None and other.source == module.source:
            warnings.warn(
                f"An earlier version of the modulation in {other.source} is attached to this host"
                " already; now both act. If that is not meant, call `detach()` of the earlier"
                " attachment.",
                AttachmentWarning,
                stacklevel=5,
            )


def _have_same_weights(first: Attachable, second: Attachable) -> bool:
    ours = first.state_dict()
    theirs = second.state_dict()
    return ours.keys() == theirs.keys() and all(
        _are_equal(value, theirs[name]) for name, value in ours.items()
    )


def _are_equal(first: torch.Tensor, second: torch.Tensor) -> bool:
    if first.shape != second.shape or first.is_meta or second.is_meta:
        return first.shape == second.shape and first.is_meta == second.is_meta
    return torch.equal(first, second.to(first.device))

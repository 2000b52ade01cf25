"""Gradient checkpointing: decoder layers are recomputed in the backward pass to save memory."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from torch.utils.checkpoint import checkpoint

from modulate.errors import HostError
from modulate.hosts.hooks import patched_attributes
from modulate.hosts.host import Host, base_model


@contextmanager
def checkpointed_layers(host: Host, enabled: bool) -> Iterator[None]:
    """Checkpoint the decoder layers of ``host`` in this block; afterwards they are as before.

    Does nothing unless ``enabled``. Raises :class:`HostError` for a host that does not support it.
    """
    if not enabled:
        yield
        return
    _require_support(host)
    # Set on the layers alone. `gradient_checkpointing_enable()` would also let the embeddings
    # require gradients, and the backward would then run through all layers below the first
    # residual. Layers checkpoint only in training mode; the modules inside them stay in evaluation
    # mode, so dropout remains off.
    flags = {
        "training": True,
        "gradient_checkpointing": True,
        # Reentrant checkpoints need inputs that require gradients, but the graph starts in the
        # middle of the host, at the first residual.
        "_gradient_checkpointing_func": partial(checkpoint, use_reentrant=False),
    }
    with ExitStack() as undo:
        for layer in host.layers:
            undo.enter_context(patched_attributes(layer, flags))
        yield


def _require_support(host: Host) -> None:
    """Raise :class:`HostError` unless transformers can checkpoint the host's decoder layers."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    model: Any = base_model(host.model)
    if not getattr(model, "supports_gradient_checkpointing", False):
        raise HostError(
            f"training.gradient_checkpointing: {type(model).__name__} does not support gradient"
            " checkpointing, says transformers; leave it out."
        )
    if not all(isinstance(layer, GradientCheckpointingLayer) for layer in host.layers):
        raise HostError(
            f"training.gradient_checkpointing: the decoder layers of {type(model).__name__} are no"
            " GradientCheckpointingLayer of transformers; leave it out."
        )

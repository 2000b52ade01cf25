"""Gradient checkpointing: what a decoder layer computes is not kept for the backward but computed
again, less memory for more time.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from torch.utils.checkpoint import checkpoint

from modulate.errors import HostError
from modulate.hosts.hooks import patched_attributes
from modulate.hosts.host import Host, base_model


@contextmanager
def recomputed(host: Host, wanted: bool) -> Iterator[None]:
    """Let ``host``'s decoder layers compute again in the backwards of this block what they do not
    keep, by transformers' own means; afterwards all is as found.

    Only the flags of transformers' layers are set. `gradient_checkpointing_enable()` would also let
    the embeddings require gradients, and take the backward through all that lies before the first
    residual. The layers alone are in training mode meanwhile, nothing in them is: dropout stays
    off. Raises :class:`HostError` for a host that cannot.
    """
    if not wanted:
        yield
        return
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
    flags = {
        "training": True,
        "gradient_checkpointing": True,
        # Not reentrant: the graph begins in the middle of the host, at the first residual.
        "_gradient_checkpointing_func": partial(checkpoint, use_reentrant=False),
    }
    with ExitStack() as undo:
        for layer in host.layers:
            undo.enter_context(patched_attributes(layer, flags))
        yield

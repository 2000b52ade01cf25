"""Gradient checkpointing: what a decoder layer computes is not kept for the backward but computed
again, less memory for more time.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch.utils.checkpoint import checkpoint

from modulate.errors import HostError
from modulate.hosts.host import Host, bare

_FLAGS = ("training", "gradient_checkpointing", "_gradient_checkpointing_func")
_ABSENT = object()


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

    model: Any = bare(host.model)
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
    before = [
        (layer, {name: vars(layer).get(name, _ABSENT) for name in _FLAGS}) for layer in host.layers
    ]
    try:
        for layer in host.layers:
            # Not reentrant: the graph begins in the middle of the host, at the first residual.
            vars(layer).update(
                training=True,
                gradient_checkpointing=True,
                _gradient_checkpointing_func=partial(checkpoint, use_reentrant=False),
            )
        yield
    finally:
        for layer, flags in before:
            for name, value in flags.items():
                if value is _ABSENT:
                    vars(layer).pop(name, None)
                else:
                    vars(layer)[name] = value

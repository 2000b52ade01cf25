"""Gradients: of the modulation only, and the same under activation checkpointing, however forwards
and backwards are ordered.
"""

import torch
from torch.utils.checkpoint import checkpoint

from modulate.errors import ConditioningError
from modulate_hosts.contract.suite import row


def trainable(case, **checkpointing):
    """A host in training mode with its own modulation; checkpointing where asked for."""
    host = case.family.build().train()
    if checkpointing:
        # Renamed after 5.17; the old name warns.
        enable = (
            getattr(host, "activation_checkpointing_enable", None)
            or host.gradient_checkpointing_enable
        )
        enable(checkpointing)
    return host, case.strong(host).train()


def loss_of(host, batch):
    return host(**batch.inputs, use_cache=False).logits[:, -1].square().sum()


def gradients(modulation):
    return {n: p.grad.clone() for n, p in modulation.named_parameters() if p.grad is not None}


def single(case, prepare=lambda host: None, **checkpointing):
    """Gradients of one conditioned forward, its backward after the block has ended."""
    host, modulation = trainable(case, **checkpointing)
    prepare(host)
    batch = case.write(["video", (7, 8, 9)], ["video", (10, 11)])
    with modulation.attached(host) as attachment:
        with attachment.condition(case.clips(batch)):
            loss = loss_of(host, batch)
        loss.backward()
    assert all(p.grad is None for p in host.parameters())
    return gradients(modulation)


def same(a, b):
    assert a and a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], atol=1e-5, rtol=1e-3)


@row("gradients reach every part of the modulation and never the host")
def test_gradients(case):
    found = single(case)
    assert [
        n
        for n, p in case.strong(case.host).named_parameters()
        if n not in found or not found[n].any()
    ] == []


@row("gradient checkpointing, not reentrant, backward after the block: the same gradients")
def test_checkpointing(case):
    same(single(case), single(case, use_reentrant=False))


# Torch warns of the frozen vision tower, which needs no gradients.
@row(
    "gradient checkpointing, reentrant, backward after the block: the same gradients",
    ignoring="None of the inputs have requires_grad=True",
)
def test_reentrant_checkpointing(case):
    try:
        found = single(
            case, prepare=lambda host: host.enable_input_require_grads(), use_reentrant=True
        )
    except ConditioningError as error:
        assert "use_reentrant=False" in str(error)
        case.refused(
            "transformers before 5.23 checkpoints a layer's whole call, hooks included; torch's"
            " reentrant recomputation then runs one backward for each layer through the"
            ' modulation\'s one graph ("Trying to backward through the graph a second time")'
        )
    else:
        same(single(case), found)


def two(case, inside, **checkpointing):
    """Gradients of two conditioned forwards and a bare one between them, then their backwards in
    the other order.
    """
    host, modulation = trainable(case, **checkpointing)
    batches = [case.write(["video", (7, 8, 9)]), case.write([(12,), "video", (10, 11)], first=1)]
    if inside:
        checkpoint_layers(host)
    losses = []
    with modulation.attached(host) as attachment:
        for i, batch in enumerate(batches):
            with attachment.condition(case.clips(batch, first=i)):
                losses.append(loss_of(host, batch))
            with torch.no_grad():
                loss_of(host, batches[0])
        for loss in reversed(losses):
            loss.backward()
    return gradients(modulation)


def checkpoint_layers(host):
    """Checkpoint each layer's whole call, hooks included, as transformers did up to 5.22 and as
    users do by hand.
    """
    for layer in host.get_decoder().layers:
        call = type(layer).__call__
        layer.__class__ = type(
            type(layer).__name__,
            (type(layer),),
            {
                "__call__": lambda self, *a, call=call, **kw: checkpoint(
                    call, self, *a, use_reentrant=False, **kw
                )
            },
        )


@row("two conditioned forwards, then two backwards, under checkpointing: the same gradients")
def test_two_forwards_then_two_backwards(case):
    expected = two(case, inside=False)
    same(expected, two(case, inside=False, use_reentrant=False))
    same(expected, two(case, inside=True))

"""Gradients: for the modulation only, and the same under activation checkpointing in any order."""

import torch
from torch.utils.checkpoint import checkpoint

from modulate.errors import ConditioningError
from modulate_hosts.contract.suite import row


def trainable(case, **checkpointing):
    """Return a host in training mode and a modulation; ``checkpointing``: its options, if any."""
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
    return {
        name: parameter.grad.clone()
        for name, parameter in modulation.named_parameters()
        if parameter.grad is not None
    }


def one_forward(case, prepare=lambda host: None, **checkpointing):
    """Return the gradients of one conditioned forward, with its backward after the block."""
    host, modulation = trainable(case, **checkpointing)
    prepare(host)
    batch, clips = case.two_prompts()
    with modulation.attached(host) as attachment:
        with attachment.condition(clips):
            loss = loss_of(host, batch)
        loss.backward()
    assert all(parameter.grad is None for parameter in host.parameters())
    return gradients(modulation)


def assert_same(expected, actual):
    assert expected and expected.keys() == actual.keys()
    for name in expected:
        torch.testing.assert_close(actual[name], expected[name], atol=1e-5, rtol=1e-3)


@row("gradients reach every part of the modulation and never the host")
def test_gradients(case):
    reached = one_forward(case)
    names = [name for name, _ in case.strong(case.host).named_parameters()]
    assert [name for name in names if name not in reached or not reached[name].any()] == []


@row("gradient checkpointing, not reentrant, backward after the block: the same gradients")
def test_checkpointing(case):
    assert_same(one_forward(case), one_forward(case, use_reentrant=False))


# Torch warns of the frozen vision tower, which needs no gradients.
@row(
    "gradient checkpointing, reentrant, backward after the block: the same gradients",
    ignoring="None of the inputs have requires_grad=True",
)
def test_reentrant_checkpointing(case):
    try:
        checkpointed = one_forward(
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
        assert_same(one_forward(case), checkpointed)


def two_forwards(case, inside, **checkpointing):
    """Return the gradients of two conditioned forwards with their backwards in reverse order.

    Each is followed by a forward without conditioning. ``inside``: checkpoint whole layer calls.
    """
    host, modulation = trainable(case, **checkpointing)
    batches = [case.write(["video", (7, 8, 9)]), case.write([(12,), "video", (10, 11)], first=1)]
    if inside:
        checkpoint_layers(host)
    losses = []
    with modulation.attached(host) as attachment:
        for number, batch in enumerate(batches):
            with attachment.condition(case.clips(batch, first=number)):
                losses.append(loss_of(host, batch))
            with torch.no_grad():
                loss_of(host, batches[0])
        for loss in reversed(losses):
            loss.backward()
    return gradients(modulation)


def checkpoint_layers(host):
    """Checkpoint each layer's whole call with its hooks, as transformers did up to 5.22.

    Users do the same by hand.
    """
    for layer in host.get_decoder().layers:
        call = type(layer).__call__
        layer.__class__ = type(
            type(layer).__name__,
            (type(layer),),
            {
                "__call__": lambda self, *args, call=call, **kwargs: checkpoint(
                    call, self, *args, use_reentrant=False, **kwargs
                )
            },
        )


@row("two conditioned forwards, then two backwards, under checkpointing: the same gradients")
def test_two_forwards_then_two_backwards(case):
    expected = two_forwards(case, inside=False)
    assert_same(expected, two_forwards(case, inside=False, use_reentrant=False))
    assert_same(expected, two_forwards(case, inside=True))

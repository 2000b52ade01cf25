"""Attachments beside other modulations, third-party hooks, exceptions, copies and threads."""

import contextlib
import copy
import io
import threading

import torch

from modulate.errors import ConditioningError
from modulate_hosts.contract import reference
from modulate_hosts.contract.suite import close, our_hooks, raises, row


@row("two and three modulations, detached in any order")
def test_stacked(case):
    batch, clips = case.two_prompts()
    host = case.host
    modulations = [
        case.strong(host, layers, seed) for seed, layers in enumerate([(1, 2), (0, 2), (1, 3)])
    ]
    residuals = [case.dense(batch, clips, modulation) for modulation in modulations]
    call = lambda: host(**batch.inputs).logits
    bare = call()
    for order in ([0, 1], [1, 0], [1, 2, 0], [2, 1, 0]):
        attachments = {index: modulations[index].attach(host) for index in sorted(order)}
        for detached in [None, *order]:
            if detached is not None:
                attachments.pop(detached).detach()
            if not attachments:
                break
            got = call_conditioned(attachments.values(), clips, call)
            with contextlib.ExitStack() as bare_host:
                for attachment in attachments.values():
                    bare_host.enter_context(attachment.bare())
                assert torch.equal(call(), bare)
                pairs = [(modulations[index], residuals[index]) for index in attachments]
                close(got, call_with_residuals(case, pairs, call))
        assert torch.equal(call(), bare)


def call_conditioned(attachments, clips, call):
    with contextlib.ExitStack() as blocks:
        for attachment in attachments:
            blocks.enter_context(attachment.condition(clips))
        return call()


def call_with_residuals(case, pairs, call):
    with contextlib.ExitStack() as blocks:
        for modulation, residuals in pairs:
            blocks.enter_context(reference.written(case.host, modulation, residuals))
        return call()


@row("third-party hooks, added before and after attaching, run once and stay")
def test_third_party_hooks(case):
    batch, clips = case.two_prompts()
    host = case.host
    layer = host.get_decoder().layers[1]
    calls = []

    def halve(name):
        def hook(module, args, output):
            calls.append(name)
            return (output[0] * 0.5, *output[1:]) if isinstance(output, tuple) else output * 0.5

        return hook

    call = lambda: host(**batch.inputs).logits
    early = layer.register_forward_hook(halve("before"))
    attachment = case.modulation.attach(host)
    late = layer.register_forward_hook(halve("after"))
    with attachment.condition(clips):
        got = call()
    assert calls == ["before", "after"]
    attachment.detach()
    with reference.written(host, case.modulation, case.dense(batch, clips)):
        close(got, call())
    calls.clear()
    call()
    assert calls == ["before", "after"]
    early.remove()
    late.remove()


@row("an exception inside the forward leaves nothing behind")
def test_an_exception_inside(case):
    batch, clips = case.two_prompts()
    host = case.host
    call = lambda: host(**batch.inputs).logits
    before = call()

    def broken(*args):
        raise RuntimeError("third party")

    with case.modulation.attached(host) as attachment:
        for place in (
            host.lm_head,
            host.get_decoder().layers[1],
            host.get_decoder().layers[2].mlp,
            host.get_input_embeddings(),
        ):
            handle = place.register_forward_hook(broken)
            with raises(RuntimeError, match="third party"), attachment.condition(clips):
                call()
            handle.remove()
            with attachment.bare():
                assert torch.equal(call(), before)
        with attachment.condition(clips):
            got = call()
    close(got, case.expected(batch, clips, call))
    assert torch.equal(call(), before)


@row("a deep copy of an attached host is a bare host; pickling an attachment is refused")
def test_copies(case):
    batch, clips = case.two_prompts()
    host = case.family.build()
    modulation = case.strong(host)
    bare = host(**batch.inputs).logits
    with modulation.attached(host) as attachment:
        with attachment.condition(clips):
            host(**batch.inputs)
            twin = copy.deepcopy(host)
            assert torch.equal(twin(**batch.inputs).logits, bare)
        pickled = lambda value: torch.save(value, io.BytesIO())
        for protocol in (pickled, copy.copy, copy.deepcopy):
            with raises(ConditioningError, match="cannot be pickled"):
                protocol(attachment)
        with attachment.condition(clips):
            host(**batch.inputs)
            assert torch.equal(twin(**batch.inputs).logits, bare)
    assert torch.equal(host(**batch.inputs).logits, bare)


@row("conditioning does not nest")
def test_nesting(case):
    batch, clips = case.two_prompts()
    with case.modulation.attached(case.host) as attachment, attachment.condition(clips):
        with raises(ConditioningError, match="does not nest"), attachment.condition(clips):
            pass
        with raises(ConditioningError, match="Cannot detach inside"):
            attachment.detach()
        got = case.host(**batch.inputs).logits
    close(got, case.expected(batch, clips, lambda: case.host(**batch.inputs).logits))


@row("two threads on one attached host are never mixed")
def test_threads(case):
    """One thread pauses between two layers; all that the other does meanwhile is right or refused.

    What the paused thread then computes is right too.
    """
    batch, clips = case.two_prompts()
    host = case.host
    call = lambda: host(**batch.inputs).logits
    bare = case.adapted(call)
    expected = case.expected(batch, clips, call)
    main = threading.get_ident()
    reached = threading.Event()
    resume = threading.Event()
    results = {}

    def pause(*args):
        if threading.get_ident() != main:
            reached.set()
            resume.wait(20)

    def run(attachment, conditioned):
        try:
            if conditioned:
                with attachment.condition(clips):
                    results["thread"] = call()
            else:
                results["thread"] = call()
        except ConditioningError as error:
            results["thread"] = error

    handle = host.get_decoder().layers[1].register_forward_pre_hook(pause)
    with case.modulation.attached(host) as attachment:
        for conditioned in (True, False):
            reached.clear()
            resume.clear()
            thread = threading.Thread(target=run, args=(attachment, conditioned))
            thread.start()
            assert reached.wait(20)
            with (
                raises(ConditioningError, match=r"[Aa]nother thread|does not nest"),
                attachment.condition(clips),
            ):
                call()
            if conditioned:
                with raises(ConditioningError, match="Another thread"):
                    call()
            else:
                close(call(), bare)
            resume.set()
            thread.join()
            assert isinstance(results["thread"], torch.Tensor)
            close(results["thread"], expected if conditioned else bare)
        with attachment.condition(clips):
            close(call(), expected)
    handle.remove()


@row("after detaching nothing is left: modules, hooks, keys, flags")
def test_detached(case):
    batch, clips = case.two_prompts()
    host = case.family.build()
    modules = {id(module) for module in host.modules()}
    keys = list(host.state_dict())
    modulation = case.strong(host)
    attachment = modulation.attach(host)
    with attachment.condition(clips):
        host(**batch.inputs)
    attachment.detach()
    attachment.detach()
    assert not our_hooks(host)
    assert {id(module) for module in host.modules()} == modules
    assert list(host.state_dict()) == keys
    assert not any(parameter.requires_grad for parameter in host.parameters())
    assert not any(module.training for module in host.modules())

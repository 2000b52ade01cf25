"""Hooks and patched methods are inert in copies, tell threads apart, and leave no trace."""

import copy
import inspect
import pickle  # noqa: TID251  (what users may do with their hosts)
import threading
from functools import partial

import pytest
import torch
from torch import nn

from modulate.hosts.hooks import (
    ActiveCalls,
    Hook,
    TrackedHook,
    arguments_by_name,
    is_patched,
    may_run_modules,
    patched_attributes,
    patched_method,
    third_party_origin,
)


def doubled(module, args, output):
    return 2 * output


def test_a_hook_works_in_its_host_and_in_no_copy_of_it():
    host = nn.Linear(2, 2)
    given = torch.ones(1, 2)
    bare = host(given)
    host.register_forward_hook(Hook(doubled))
    assert torch.equal(host(given), 2 * bare)
    for other in (copy.deepcopy(host), pickle.loads(pickle.dumps(host))):
        assert torch.equal(other(given), bare)


def test_arguments_are_named_whether_given_by_place_or_by_name():
    def forward(a, b=None, **kwargs): ...

    signature = inspect.signature(forward)
    assert arguments_by_name(signature, (1,), {"b": 2, "c": 3}) == {"a": 1, "b": 2, "c": 3}
    assert arguments_by_name(signature, (1, 2), {}) == {"a": 1, "b": 2}
    assert arguments_by_name(signature, (), {"a": 1, "c": 3}) == {"a": 1, "c": 3}


def start_thread(run):
    """Start a thread that waits inside ``run``; return its number and a function that ends it."""
    ready = threading.Event()
    end = threading.Event()

    def wait(*_):
        ready.set()
        end.wait(30)

    thread = threading.Thread(target=run, args=(wait,))
    thread.start()
    assert ready.wait(30)

    def stop():
        end.set()
        thread.join()

    return thread.ident, stop


def in_a_module(wait):
    module = nn.Identity()
    module.register_forward_hook(wait)
    module(torch.ones(1))


def outside_of_modules(wait):
    wait()


def test_a_thread_may_run_modules_while_torch_is_on_its_stack():
    for run, expected in ((in_a_module, True), (outside_of_modules, False)):
        thread, stop = start_thread(run)
        try:
            assert may_run_modules(thread) is expected
        finally:
            stop()
        assert not may_run_modules(thread)  # it has ended


def test_a_thread_that_must_be_alone_ignores_threads_that_were_interrupted():
    for run, free in ((in_a_module, False), (outside_of_modules, True)):
        callers = ActiveCalls()
        thread, stop = start_thread(
            lambda wait, run=run, callers=callers: callers.enter(alone=False) and run(wait)
        )
        try:
            assert callers.enter(alone=True) is free
            assert callers._threads == ({threading.get_ident()} if free else {thread})
            assert callers.enter(alone=False)
            callers.leave()
            assert callers._threads == (set() if free else {thread})
        finally:
            stop()
    # A thread is alone although it is in a forward itself.
    assert callers.enter(alone=True) and callers.enter(alone=True)
    callers.leave()
    callers.leave()


@pytest.mark.parametrize("before", [None, partial(int, 3)])
def test_a_patch_applies_inside_its_block_and_restores_what_was_there(before):
    module = nn.Linear(2, 2)
    if before is not None:
        module.forward = before
    assert not is_patched(module, "forward")
    with pytest.raises(KeyError), patched_method(module, "forward", lambda *a, **k: (a, k)):
        assert is_patched(module, "forward") and not is_patched(module, "extra_repr")
        assert module(1, b=2) == ((1,), {"b": 2})
        raise KeyError
    assert module.__dict__.get("forward") is before


def test_patched_attributes_come_from_the_class_again_afterwards():
    module = nn.Linear(2, 2)
    before = dict(vars(module))
    with patched_attributes(module, {"training": False, "extra_repr": 3}):
        assert module.training is False and module.extra_repr == 3
    assert vars(module) == before and callable(module.extra_repr)


def test_a_copy_made_while_a_method_is_patched_has_its_own_method():
    module = nn.Linear(2, 2)
    given = torch.ones(1, 2)
    bare = module(given)
    with patched_method(module, "forward", lambda *a: None):
        for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
            assert torch.equal(other(given), bare)
            assert other.__dict__["forward"].__self__ is other
        assert module(given) is None


def test_third_party_hooks_are_recognized_by_their_module():
    from transformers.utils.generic import set_attribute_for_modules

    assert third_party_origin([]) is None
    assert third_party_origin([TrackedHook(doubled), set_attribute_for_modules]) is None
    assert third_party_origin([set_attribute_for_modules, doubled]) == __name__
    assert third_party_origin([partial(doubled)]) == "functools"
    assert third_party_origin([Hook(doubled)]) == "modulate.hosts.hooks"

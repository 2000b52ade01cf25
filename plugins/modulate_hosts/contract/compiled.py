"""Hosts under torch.compile: right or refused, never silently without residuals."""

import contextlib
import warnings

import torch

from modulate.errors import ConditioningError
from modulate_hosts.contract import reference
from modulate_hosts.contract.suite import close, row

FEW = ("smolvlm",)
"""Families that these rows run on in the quick suite: compiling takes seconds."""

BACKEND = "aot_eager"


@contextlib.contextmanager
def fresh_compiler():
    torch._dynamo.reset()
    try:
        yield
    finally:
        torch._dynamo.reset()


@contextlib.contextmanager
def quietly():
    """Silence warnings: graph breaks and recompilations are no failures."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextlib.contextmanager
def compiling(case, bare):
    """Run this block; if it fails, the row applies only where the compiled bare host works.

    ``bare`` runs that host: its failure is a limit of transformers or torch.
    """
    with quietly():
        try:
            yield
        except (AssertionError, ConditioningError):
            raise
        except Exception:
            # Graphs are shared among hosts of one class.
            torch._dynamo.reset()
            case.bare(bare)
            raise


def compiled_bare_host(case):
    return lambda: torch.compile(case.family.build(), backend=BACKEND)(
        **case.write(["video", (7, 8, 9)]).inputs
    )


def conditioned_equals_expected(case, host, modulation, attachment, batch, clips, model=None):
    call = lambda: (host if model is None else model)(**batch.inputs).logits
    others = case.clips(batch, first=3)
    for chosen in (clips, others):
        with attachment.condition(chosen):
            got = call()
        close(got, case.expected(batch, chosen, lambda: case.host(**batch.inputs).logits))
    assert_unconditioned(case, modulation, attachment, batch, call)


def assert_unconditioned(case, modulation, attachment, batch, call):
    """Assert that without a conditioning only LoRA is on, and in ``bare`` nothing."""
    plain = lambda: case.host(**batch.inputs).logits
    with reference.merged(case.host, modulation):
        adapted = plain()
    close(call(), adapted)
    with attachment.bare():
        close(call(), plain())
    close(call(), adapted)


@row("torch.compile of the language model in one graph (fullgraph), after attaching", quick=FEW)
@fresh_compiler()
def test_compiled_in_one_graph(case):
    one_graph(case, BACKEND)


@row("torch.compile of the language model in one graph, by inductor", quick=())
@fresh_compiler()
def test_compiled_by_inductor(case):
    one_graph(case, "inductor")


def one_graph(case, backend):
    batch, clips = case.two_prompts()
    host = case.family.build()
    modulation = case.strong(host)
    with (
        compiling(case, lambda: bare_graph(case, backend)),
        modulation.attached(host) as attachment,
    ):
        host.get_decoder().compile(backend=backend, fullgraph=True)
        call = lambda: host(**batch.inputs, use_cache=False).logits
        for chosen in (clips, case.clips(batch, first=3)):
            with attachment.condition(chosen):
                got = call()
            close(got, case.expected(batch, chosen, lambda: case.host(**batch.inputs).logits))
        assert_unconditioned(case, modulation, attachment, batch, call)


def bare_graph(case, backend):
    host = case.family.build()
    host.get_decoder().compile(backend=backend, fullgraph=True)
    host(**case.write(["video", (7, 8, 9)]).inputs, use_cache=False)


@row("torch.compile of the whole host after attaching", quick=FEW)
@fresh_compiler()
def test_compiled_after_attaching(case):
    batch, clips = case.two_prompts()
    host = case.family.build()
    modulation = case.strong(host)
    with compiling(case, compiled_bare_host(case)), modulation.attached(host) as attachment:
        conditioned_equals_expected(
            case, host, modulation, attachment, batch, clips, torch.compile(host, backend=BACKEND)
        )


@row("torch.compile before attaching, first called after", quick=())
@fresh_compiler()
def test_compiled_before_attaching(case):
    batch, clips = case.two_prompts()
    compiled = torch.compile(case.family.build(), backend=BACKEND)
    modulation = case.strong(compiled)
    with (
        compiling(case, compiled_bare_host(case)),
        modulation.attached(compiled) as attachment,
    ):
        conditioned_equals_expected(case, compiled, modulation, attachment, batch, clips)


@row("torch.compile and a first call before attaching", quick=FEW)
@fresh_compiler()
def test_traced_before_attaching(case):
    batch, clips = case.two_prompts()
    host = case.family.build()
    host.get_decoder().compile(backend=BACKEND)
    call = lambda: host(**batch.inputs, use_cache=False)
    with quietly():
        case.bare(call)
        with case.strong(host).attached(host) as attachment:
            refused = False
            try:
                with attachment.condition(clips):
                    got = call().logits
            except ConditioningError as error:
                refused = "did not run" in str(error)
                assert refused
                torch._dynamo.reset()
                with attachment.condition(clips):
                    got = call().logits
    close(got, case.expected(batch, clips, lambda: case.host(**batch.inputs).logits))
    if refused:
        case.refused(
            "torch.compile does not guard on hooks"
            " (`torch._dynamo.config.skip_nnmodule_hook_guards`), so a graph traced earlier never"
            " runs ours; after `torch._dynamo.reset()` it is right"
        )

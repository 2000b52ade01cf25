"""Recomputed layers have the gradients of their own forward, whatever came between, or fail."""

import gc
import threading
import weakref
from contextlib import contextmanager, suppress
from functools import partial

import pytest
import torch
from torch.utils.checkpoint import CheckpointError, checkpoint

from modulate import ClipInput
from modulate.errors import ConditioningError
from tests.tiny import CLIP, GRID, VIDEO, features, fresh, inputs, qwen, scanpath

OTHER = ClipInput(scanpath(0.9, 0.1), GRID, features(seed=5))
BATCH = inputs()
POSITIONS = BATCH["input_ids"] == VIDEO
ONE = [[CLIP], [CLIP]]
TWO = [[OTHER], [CLIP]]
direct = partial(checkpoint, use_reentrant=False)


def strong(host, lora=True, layers=(0, 2)):
    """A modulation whose writers and LoRA are not zero, from the first layer on."""
    modulation = fresh(host, layers=layers, lora=lora).train()
    torch.manual_seed(1)
    for writer in modulation.out:
        torch.nn.init.normal_(writer.weight, std=0.5)
    for name, value in (modulation.lora or {}).items():
        if name.endswith("|B"):
            torch.nn.init.normal_(value, std=0.1)
    return modulation


def embedded(host):
    """The embeddings that the host gives its language model for ``BATCH``, and the positions."""
    calls = []
    handle = host.model.language_model.register_forward_pre_hook(
        lambda module, args, kwargs: calls.append(kwargs), with_kwargs=True
    )
    with torch.no_grad():
        host(**BATCH)
    handle.remove()
    return calls[0]["inputs_embeds"].clone(), calls[0]["position_ids"]


@contextmanager
def by_layer(host, wanted=True):
    """Checkpoint each layer's whole call, hooks included, as a user may by hand."""
    layers = host.get_decoder().layers if wanted else []
    classes = [type(layer) for layer in layers]
    for layer, cls in zip(layers, classes, strict=True):
        run = lambda self, *args, call=cls.__call__, **kw: direct(call, self, *args, **kw)
        layer.__class__ = type(cls.__name__, (cls,), {"__call__": run})
    try:
        yield
    finally:
        for layer, cls in zip(layers, classes, strict=True):
            layer.__class__ = cls


class Scene:
    """A host, a modulation, and forwards on one tensor of embeddings."""

    def __init__(self, lora=True):
        self.host = qwen()
        self.embeds, self.places = embedded(self.host)
        self.modulation = strong(self.host, lora)

    def call(self, until=None, head=True):
        options = dict(
            attention_mask=BATCH["attention_mask"][:, :until], position_ids=self.places[..., :until]
        )
        module = self.host if head else self.host.model
        return module(inputs_embeds=self.embeds[:, :until], **options, use_cache=False)[0]

    def loss(self, until=None):
        return self.call(until).square().mean()

    def under(self, attachment, rows, run):
        with attachment.condition(rows, positions=POSITIONS):
            return run()

    def gradients(self, *losses, **options):
        self.modulation.zero_grad()
        for loss in losses:
            loss.backward(**options)
        return {
            name: parameter.grad.clone()
            for name, parameter in self.modulation.named_parameters()
            if parameter.grad is not None
        }

    def expected_after(self, loss):
        return self.gradients(loss)

    @contextmanager
    def loud(self):
        """Allow an error in this block; gradients that it does compute must be right."""
        with suppress(ConditioningError, CheckpointError):
            yield

    def expected(self, *rows):
        """Gradients of forwards in turn, nothing recomputed; [] stands for a bare one."""
        total = {}
        with self.modulation.attached(self.host) as attachment:
            for each in rows:
                loss = self.under(attachment, each, self.loss) if each else self.loss()
                gradients = self.gradients(loss) if loss.requires_grad else {}
                for name, value in gradients.items():
                    total[name] = total.get(name, 0) + value
        return total


@pytest.fixture(params=[True, False], ids=["lora", "no lora"])
def scene(request):
    return Scene(request.param)


def same(actual, expected):
    assert actual.keys() == expected.keys()
    assert any(value.any() for value in expected.values())
    for name, value in expected.items():
        torch.testing.assert_close(
            actual[name], value, atol=1e-6, rtol=1e-4, msg=lambda text, name=name: f"{name}: {text}"
        )


def whole(scene):
    """A checkpoint around the whole call of the host."""
    return lambda: direct(scene.loss)


def nested(scene):
    """A checkpoint around the whole host, and one around each of its layers."""
    return lambda: direct(layers(scene))


def twice(scene):
    return lambda: direct(lambda: direct(scene.loss))


def layers(scene):
    def run():
        with by_layer(scene.host):
            return scene.loss()

    return run


def states(scene):
    """A checkpoint that ends with the entry's own output."""
    return lambda: scene.host.lm_head(direct(lambda: scene.call(head=False))).square().mean()


KINDS = [whole, nested, twice, layers, states]
of_every_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)


@of_every_kind
@pytest.mark.parametrize("order", [1, -1])
def test_two_forwards_on_one_tensor_of_embeddings(scene, kind, order):
    expected = scene.expected(ONE, TWO)
    with scene.modulation.attached(scene.host) as attachment:
        losses = [scene.under(attachment, rows, kind(scene)) for rows in (ONE, TWO)]
        same(scene.gradients(*losses[::order]), expected)


@of_every_kind
def test_two_losses_in_one_backward(scene, kind):
    expected = scene.expected(ONE, TWO)
    with scene.modulation.attached(scene.host) as attachment:
        losses = [scene.under(attachment, rows, kind(scene)) for rows in (ONE, TWO)]
        same(scene.gradients(sum(losses)), expected)


@of_every_kind
def test_a_bare_forward_between(scene, kind):
    """Bare forwards stay bare, also on a slice of the embeddings that a living graph holds."""
    expected = scene.expected(ONE)
    with scene.modulation.attached(scene.host) as attachment:
        idle = [scene.call(until) for until in (None, 10)]
        with attachment.bare():
            bare = [scene.call(until) for until in (None, 10)]
        loss = scene.under(attachment, ONE, kind(scene))
        for values, block in ((idle, attachment.maybe_condition([[]])), (bare, attachment.bare())):
            with block:
                for until, value in zip((None, 10), values, strict=True):
                    assert torch.equal(scene.call(until), value)
                    with torch.no_grad():
                        assert torch.equal(scene.call(until), value)
        same(scene.gradients(loss), expected)


@of_every_kind
def test_bare_forwards_have_gradients_of_their_own(scene, kind):
    if scene.modulation.lora is None:
        pytest.skip("without LoRA a bare forward has none")
    plain = scene.expected([])
    both = scene.expected([], ONE)
    with scene.modulation.attached(scene.host) as attachment:
        bare = kind(scene)()
        loss = scene.under(attachment, ONE, kind(scene))
        same(scene.gradients(bare), plain)
        bare = kind(scene)()
        same(scene.gradients(bare, loss), both)


@of_every_kind
def test_backward_while_bare(scene, kind):
    expected = scene.expected(ONE)
    with scene.modulation.attached(scene.host) as attachment:
        loss = scene.under(attachment, ONE, kind(scene))
        with attachment.bare():
            same(scene.gradients(loss), expected)


@of_every_kind
def test_backward_inside_another_conditioning(scene, kind):
    expected = scene.expected(ONE)
    with scene.modulation.attached(scene.host) as attachment:
        loss = scene.under(attachment, ONE, kind(scene))
        with attachment.condition(TWO, positions=POSITIONS):
            scene.call()
            gradients = scene.gradients(loss)
        same(gradients, expected)
        assert attachment.report().forwards == 1


@of_every_kind
def test_backward_in_another_thread(scene, kind):
    expected = scene.expected(ONE)
    results = []
    with scene.modulation.attached(scene.host) as attachment:
        loss = scene.under(attachment, ONE, kind(scene))
        thread = threading.Thread(target=lambda: results.append(scene.gradients(loss)))
        thread.start()
        thread.join()
    same(results[0], expected)


@of_every_kind
def test_two_backwards_through_one_graph(scene, kind):
    expected = scene.expected(ONE)
    with scene.modulation.attached(scene.host) as attachment:
        loss = scene.under(attachment, ONE, kind(scene))
        # Both need the graph before the checkpoint too: that of the latents.
        same(scene.gradients(loss, retain_graph=True), expected)
        same(scene.gradients(loss, retain_graph=True), expected)


@of_every_kind
def test_under_users_hooks_on_what_is_saved(scene, kind):
    expected = scene.expected(ONE, TWO)
    with scene.modulation.attached(scene.host) as attachment:
        with torch.autograd.graph.save_on_cpu():
            losses = [scene.under(attachment, rows, kind(scene)) for rows in (ONE, TWO)]
        same(scene.gradients(*losses), expected)


def test_users_hooks_inside_a_checkpoint(scene):
    """Such hooks hide the checkpoint from us."""
    expected = scene.expected(ONE)

    def run():
        with torch.autograd.graph.save_on_cpu():
            return scene.loss()

    with scene.modulation.attached(scene.host) as attachment:
        loss = scene.under(attachment, ONE, lambda: direct(run))
        with scene.loud():
            same(scene.gradients(loss), expected)


def several(scene, attachment):
    """Two conditioned forwards and a teacher's in one checkpoint."""

    def run():
        first = scene.under(attachment, ONE, scene.call)
        with torch.no_grad(), attachment.bare():
            teacher = scene.call()
        second = scene.under(attachment, TWO, scene.call)
        return (first - teacher).square().mean() + second.pow(3).mean()

    return run


@pytest.mark.parametrize(
    "outer",
    [lambda run: direct(run), lambda run: direct(lambda: direct(run))],
    ids=["one", "nested"],
)
def test_conditionings_inside_one_checkpoint(scene, outer):
    with scene.modulation.attached(scene.host) as attachment:
        expected = scene.gradients(several(scene, attachment)())
        same(scene.gradients(outer(several(scene, attachment))), expected)


@pytest.mark.parametrize("order", [1, -1])
def test_several_forwards_inside_one_checkpoint(scene, order):
    """One conditioning, forwards that differ, and one without gradients between them."""

    def run():
        short = scene.call(until=16)
        with torch.no_grad():
            teacher = scene.call()
        return (scene.call() - teacher.detach().roll(1, 0)).square().mean() + short.pow(3).mean()

    with scene.modulation.attached(scene.host) as attachment:
        expected = scene.gradients(
            scene.under(attachment, ONE, run), scene.under(attachment, TWO, run)
        )
        losses = [scene.under(attachment, rows, lambda: direct(run)) for rows in (ONE, TWO)]
        same(scene.gradients(*losses[::order]), expected)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_chained_forwards(scene, kind):
    """Each is in a checkpoint of its own, and both in one graph: the second reads the first."""

    def chain(attachment, kind):
        losses = []
        embeds = scene.embeds
        for rows in (ONE, TWO):
            loss = scene.under(attachment, rows, kind(scene))
            scene.embeds = embeds + loss
            losses.append(loss)
        scene.embeds = embeds
        return sum(losses)

    with scene.modulation.attached(scene.host) as attachment:
        expected = scene.gradients(chain(attachment, lambda scene: scene.loss))
        loss = chain(attachment, lambda scene: later(scene, kind))
        same(scene.gradients(loss), expected)


def later(scene, kind):
    """A call of ``kind`` whose recomputation reads the embeddings as they are now."""
    embeds = scene.embeds
    twin = Scene.__new__(Scene)
    vars(twin).update(vars(scene), embeds=embeds)
    return kind(twin)


# torch 2.11 closes an inner checkpoint that the outer one stopped early only when the traceback is
# freed, and Python reports what fails there; the gradients are right.
@pytest.mark.filterwarnings(
    "ignore:Exception ignored in. <generator object _checkpoint_without_reentrant"
    ":pytest.PytestUnraisableExceptionWarning"
)
def test_two_checkpoints_inside_one(scene):
    def run(attachment):
        return lambda: sum(scene.under(attachment, rows, whole(scene)) for rows in (ONE, TWO))

    def shared(attachment):
        inner = lambda: direct(scene.loss) + direct(lambda: scene.call(until=16).square().mean())
        return lambda: scene.under(attachment, ONE, lambda: direct(inner))

    for make in (run, shared):
        with scene.modulation.attached(scene.host) as attachment:
            if make is run:
                losses = [scene.under(attachment, rows, scene.loss) for rows in (ONE, TWO)]
            else:
                both = lambda: scene.loss() + scene.call(until=16).square().mean()
                losses = [scene.under(attachment, ONE, both)]
            expected = scene.gradients(*losses)
            loss = make(attachment)()
            with scene.loud():
                same(scene.gradients(loss), expected)


def test_a_reentrant_checkpoint_around_the_host_is_refused(scene):
    scene.embeds.requires_grad_(True)
    for rows in (ONE, []):
        with scene.modulation.attached(scene.host) as attachment:
            run = lambda: checkpoint(lambda embeds: scene.loss(), scene.embeds, use_reentrant=True)
            loss = scene.under(attachment, rows, run) if rows else run()
            with pytest.raises(ConditioningError, match="use_reentrant=False"):
                loss.backward()


@pytest.mark.parametrize("kind", [whole, nested, twice], ids=lambda kind: kind.__name__)
def test_saved_tensors_read_outside_of_a_backward_are_refused(scene, kind):
    """For a drawing of the graph, say: torch runs the host again for it."""
    with scene.modulation.attached(scene.host) as attachment:
        expected = scene.under(attachment, ONE, scene.loss).grad_fn.next_functions[0][0]._saved_self
        saved = scene.under(attachment, ONE, kind(scene)).grad_fn.next_functions[0][0]
        with pytest.raises(ConditioningError, match="read outside of a backward"):
            torch.testing.assert_close(saved._saved_self, expected)


@of_every_kind
def test_gradients_of_gradients(scene, kind):
    def second_order(loss):
        parameters = list(scene.modulation.parameters())
        first = torch.autograd.grad(loss, parameters, create_graph=True, allow_unused=True)
        total = sum(gradient.square().sum() for gradient in first if gradient is not None)
        second = torch.autograd.grad(total, parameters, allow_unused=True)
        return {index: value for index, value in enumerate(second) if value is not None}

    with (
        torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH),
        scene.modulation.attached(scene.host) as attachment,
    ):
        expected = second_order(scene.under(attachment, ONE, scene.loss))
        same(second_order(scene.under(attachment, ONE, kind(scene))), expected)


def test_a_forward_inside_a_backward_needs_a_block_of_its_own(scene):
    """In a user's tensor hook, say: it cannot be told from a recomputation."""
    with torch.no_grad(), scene.modulation.attached(scene.host) as attachment:
        bare = scene.call()
        conditioned = scene.under(attachment, TWO, scene.call)
        with attachment.bare():
            bare = scene.call()
    outputs = []

    def hook(gradient):
        with torch.no_grad(), attachment.bare():
            outputs.append(scene.call())
        with torch.no_grad():
            outputs.append(scene.under(attachment, TWO, scene.call))

    with scene.modulation.attached(scene.host) as attachment:
        loss = scene.under(attachment, ONE, scene.loss)
        loss.register_hook(hook)
        expected = scene.expected_after(loss)
        assert torch.equal(outputs[0], bare)
        assert torch.equal(outputs[1], conditioned)
        loss = scene.under(attachment, ONE, scene.loss)
        loss.register_hook(lambda gradient: scene.call() and None)
        with pytest.raises(ConditioningError, match="a new forward inside a backward"):
            loss.backward()
        same(scene.gradients(scene.under(attachment, ONE, scene.loss)), expected)


def test_a_frozen_modulation_below_a_head_that_learns():
    scene = Scene()
    scene.modulation.requires_grad_(False)
    head = torch.nn.Linear(64, 1)
    run = lambda: head(scene.call()).square().mean()
    with scene.modulation.attached(scene.host) as attachment:
        expected = gradient_of(head.weight, scene.under(attachment, ONE, run))
        loss = scene.under(attachment, ONE, lambda: direct(run))
        right_or_loud(lambda: gradient_of(head.weight, loss), expected)
        loss = scene.under(attachment, ONE, lambda: direct(run))
    right_or_loud(lambda: gradient_of(head.weight, loss), expected)
    expected = gradient_of(head.weight, run())
    loss = direct(run)
    with scene.modulation.attached(scene.host):
        right_or_loud(lambda: gradient_of(head.weight, loss), expected)


def test_layers_called_by_hand():
    """Without a forward of the entry there is LoRA alone, on or off as it was in the forward."""
    scene = Scene()
    weight = trained_host(scene)
    language = scene.host.model.language_model

    def run():
        return (
            language(
                inputs_embeds=scene.embeds,
                attention_mask=BATCH["attention_mask"],
                position_ids=scene.places,
                use_cache=False,
            )[0]
            .square()
            .mean()
        )

    plain = gradient_of(weight, run())
    before = checkpointed_by_layer(scene, run)
    with scene.modulation.attached(scene.host) as attachment:
        expected = scene.gradients(run())
        same(scene.gradients(checkpointed_by_layer(scene, run)), expected)
        same(scene.gradients(direct(run)), expected)
        right_or_loud(lambda: gradient_of(weight, before), plain)
        adapted = gradient_of(weight, run())
        with attachment.bare():
            loss = checkpointed_by_layer(scene, run)
        right_or_loud(lambda: gradient_of(weight, loss), plain)
        loss = checkpointed_by_layer(scene, run)
        with attachment.bare():
            right_or_loud(lambda: gradient_of(weight, loss), adapted)
        loss = checkpointed_by_layer(scene, run)
    right_or_loud(lambda: gradient_of(weight, loss), adapted)


def checkpointed_by_layer(scene, run):
    with by_layer(scene.host):
        return run()


def trained_host(scene):
    """A parameter of the host that is trained beside the modulation's."""
    weight = scene.host.model.language_model.layers[1].mlp.down_proj.weight
    weight.requires_grad_(True)
    return weight


def gradient_of(weight, loss):
    weight.grad = None
    loss.backward()
    return weight.grad.clone()


@of_every_kind
def test_a_forward_made_before_attaching(scene, kind):
    weight = trained_host(scene)
    expected = gradient_of(weight, scene.loss())
    loss = kind(scene)()
    with scene.modulation.attached(scene.host) as attachment:
        right_or_loud(lambda: gradient_of(weight, loss), expected)
        again = scene.under(attachment, ONE, scene.loss)
        assert again.requires_grad


@of_every_kind
@pytest.mark.parametrize("frozen", [False, True], ids=["learns", "frozen"])
def test_detached_before_the_backward(scene, kind, frozen):
    weight = trained_host(scene)
    scene.modulation.requires_grad_(not frozen)
    with scene.modulation.attached(scene.host) as attachment:
        expected = gradient_of(weight, scene.under(attachment, ONE, scene.loss))
        loss = scene.under(attachment, ONE, kind(scene))
    right_or_loud(lambda: gradient_of(weight, loss), expected)
    with scene.modulation.attached(scene.host) as attachment:
        loss = scene.under(attachment, ONE, kind(scene))
    with scene.modulation.attached(scene.host) as attachment:
        right_or_loud(lambda: gradient_of(weight, loss), expected)


def right_or_loud(run, expected):
    try:
        actual = run()
    except (ConditioningError, CheckpointError):
        return
    torch.testing.assert_close(actual, expected, atol=1e-6, rtol=1e-4)


@of_every_kind
def test_the_graphs_memory_is_freed(scene, kind):
    with scene.modulation.attached(scene.host) as attachment:
        gc.collect()
        gc.disable()
        try:
            loss = scene.under(attachment, ONE, kind(scene))
            references = [weakref.ref(value) for value in passes_of(loss)]
            references += [weakref.ref(passed().plan.latents) for passed in references]
            assert references
            scene.under(attachment, TWO, scene.loss)
            del loss
            # At once, without the garbage collector.
            assert all(reference() is None for reference in references)
        finally:
            gc.enable()


def passes_of(output):
    pending = [output.grad_fn]
    visited = set()
    passes = []
    while pending:
        node = pending.pop()
        if node is None or node in visited:
            continue
        visited.add(node)
        passes += [mark.passed for mark in node.metadata.values()]
        pending += [parent for parent, _ in node.next_functions]
    return list(dict.fromkeys(passes))


def test_layers_checkpointed_before_attaching_are_recomputed_as_the_bare_hosts():
    scene = Scene()
    weight = trained_host(scene)
    expected = gradient_of(weight, scene.loss())
    loss = checkpointed_by_layer(scene, scene.loss)
    with scene.modulation.attached(scene.host):
        torch.testing.assert_close(gradient_of(weight, loss), expected, atol=1e-6, rtol=1e-4)


def test_a_backward_after_detaching_is_refused_where_layers_are_recomputed(scene):
    with scene.modulation.attached(scene.host) as attachment:
        plain = scene.under(attachment, ONE, scene.loss)
        checkpointed = scene.under(attachment, ONE, layers(scene))
    plain.backward()
    with pytest.raises(ConditioningError, match="detached since"):
        checkpointed.backward()

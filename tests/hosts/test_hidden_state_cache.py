"""Caching hidden states below the first residual changes no result."""

import copy

import pytest
import torch

from modulate.errors import HostError
from modulate.hosts.hidden_state_cache import HiddenStateCache
from modulate.hosts.host import understand
from modulate.hosts.vision_tower_cache import ContentKeys
from tests.tiny import CLIP, cached, fresh, inputs, our_hooks, qwen

MIB = 2**20


@pytest.fixture
def state_cache(host):
    return HiddenStateCache(understand(host), 1, MIB, ContentKeys())


@pytest.fixture
def runs(host, monkeypatch):
    """The parts of the host that really run; not by hooks, which the cache would refuse."""
    seen = []
    for kind, name in (
        (type(host.model.visual.blocks[0]), lambda self: "tower"),
        (type(host.model.language_model.layers[0].self_attn), lambda self: self.layer_idx),
    ):
        monkeypatch.setattr(
            kind,
            "forward",
            lambda self, *args, _own=kind.forward, _name=name, **kwargs: (
                seen.append(_name(self)),
                _own(self, *args, **kwargs),
            )[1],
        )
    return seen


def logits_and_gradients(model, modulation, given):
    """Return the logits of a conditioned forward, and its gradients."""
    modulation.zero_grad()
    with (
        modulation.attached(model) as attachment,
        attachment.condition([[CLIP]] * len(given["input_ids"])),
    ):
        logits = model(**given, logits_to_keep=1, use_cache=False).logits
    logits.square().sum().backward()
    return [
        logits.detach(),
        *(
            parameter.grad.clone()
            for parameter in modulation.parameters()
            if parameter.grad is not None
        ),
    ]


@pytest.mark.parametrize(
    "texts", [((7, 8),), ((7, 8, 9), (10, 11))], ids=["one row", "two rows, one padded"]
)
def test_logits_and_gradients_are_the_same_to_the_bit_without_tower_and_lower_layers(
    host, modulation, state_cache, runs, texts
):
    given = inputs(texts)
    uncached = logits_and_gradients(host, modulation, given)
    assert runs == ["tower", 0, 1, 2, 3]
    with state_cache.active():
        # States stored by an evaluation serve a training.
        with torch.inference_mode():
            plain = host(**given, use_cache=False).logits
        del runs[:]
        copied = {name: value.clone() for name, value in given.items()}
        first_hit = logits_and_gradients(host, modulation, copied)
        second_hit = logits_and_gradients(host, modulation, given)
        assert runs == [2, 3, 2, 3]
        assert torch.equal(host(**given, use_cache=False).logits, plain)
    assert len(uncached) > 3
    for expected, first, second in zip(uncached, first_hit, second_hit, strict=True):
        assert torch.equal(expected, first)
        assert torch.equal(expected, second)
    assert (state_cache.hits, state_cache.misses) == (3, 1)


def layers_of(output):
    (cache,) = cached(output).values()
    return cache.layers


def test_a_key_value_cache_is_filled_as_always_and_can_be_continued(host, state_cache, runs):
    given = inputs(((7, 8),))
    more = torch.tensor([[9, 10]])
    first = host(**given, use_cache=True)
    expected = host(input_ids=more, **cached(first), use_cache=True).logits
    with state_cache.active():
        for _ in range(2):
            del runs[:]
            output = host(**given, use_cache=True)
            assert torch.equal(output.logits, first.logits)
            assert [layer.keys.shape for layer in layers_of(output)] == [
                layer.keys[:, :, :-2].shape for layer in layers_of(first)
            ]
            assert torch.equal(
                host(input_ids=more, **cached(output), use_cache=True).logits, expected
            )
            assert all(
                torch.equal(a.values, b.values)
                for a, b in zip(layers_of(output), layers_of(first), strict=True)
            )
        # The tokens that continue the cache pass all layers.
        assert runs == [2, 3, 0, 1, 2, 3]
        tokens = host.generate(**given, max_new_tokens=3, do_sample=False)
    assert torch.equal(tokens, host.generate(**given, max_new_tokens=3, do_sample=False))


def test_everything_that_the_states_depend_on_is_part_of_the_key(host, state_cache):
    given = inputs(((7, 8), (10, 11)))
    pixels = given["pixel_values_videos"]
    other = [
        given | {"pixel_values_videos": pixels.flip(0)},
        given | {"video_grid_thw": given["video_grid_thw"][:, [0, 2, 1]]},
        given | {"second_per_grid_ts": torch.full((2,), 3.0)},
        given | {"input_ids": torch.where(given["input_ids"] == 7, 12, given["input_ids"])},
        given
        | {
            "attention_mask": torch.cat(
                [torch.zeros(2, 1, dtype=torch.long), given["attention_mask"][:, 1:]], 1
            )
        },
        given | {"position_ids": torch.arange(given["input_ids"].shape[1]).expand(3, 2, -1)},
    ]
    expected = [host(**changed, use_cache=False).logits for changed in other]
    with state_cache.active():
        host(**given, use_cache=False)
        for changed, logits in zip(other, expected, strict=True):
            assert torch.equal(host(**changed, use_cache=False).logits, logits)
        assert (state_cache.hits, state_cache.misses) == (0, 7)
        states = host(**given, use_cache=False, output_hidden_states=True).hidden_states
        assert len(states) == 5 and state_cache.hits == 0


def test_weights_and_adapters_that_change_are_noticed(runs):
    host = qwen()
    given = inputs()
    modulation = fresh(host, lora=True)
    for value in modulation.lora.values():
        torch.nn.init.normal_(value, std=0.5)
    state_cache = HiddenStateCache(understand(host), 1, MIB, ContentKeys())
    ask = lambda: host(**given, use_cache=False).logits
    with modulation.attached(host) as attachment, state_cache.active(), torch.inference_mode():
        adapted = ask()
        with attachment.bare():
            plain = ask()
            assert torch.equal(ask(), plain)
        assert torch.equal(ask(), adapted)
        assert (state_cache.hits, state_cache.misses) == (2, 2)
        modulation.lora["0|self_attn/q_proj|B"].mul_(2.0)
        changed = ask()
    assert state_cache.misses == 3
    assert not torch.equal(adapted, plain) and not torch.equal(adapted, changed)
    with modulation.attached(host), torch.inference_mode():
        assert torch.equal(ask(), changed)


def test_while_lower_layers_are_trained_or_recomputed_it_is_off_and_warns(state_cache, host):
    given = inputs()
    modulation = fresh(host, lora=True)
    with (
        modulation.attached(host),
        state_cache.active(),
        pytest.warns(UserWarning, match="no effect while LoRA in layers 0 to 1 is trained"),
    ):
        host(**given, use_cache=False)
    host.model.language_model.layers[0].training = True
    try:
        with (
            state_cache.active(),
            pytest.warns(
                UserWarning,
                match=r"while decoder layers are recomputed \(training.gradient_checkpointing\)",
            ),
        ):
            host(**given, use_cache=False)
    finally:
        host.model.language_model.layers[0].training = False
    assert (state_cache.hits, state_cache.misses) == (0, 0)


def test_the_oldest_entries_stay_until_the_weights_change(host):
    rows = [inputs(((7, 8 + index),)) for index in range(4)]
    size = rows[0]["input_ids"].shape[1] * 32 * 4
    state_cache = HiddenStateCache(understand(host), 1, 2 * size, ContentKeys())
    with state_cache.active():
        for _ in range(2):
            for row in rows:
                host(**row, use_cache=False)
        assert (state_cache.hits, state_cache.misses) == (2, 6)
    modulation = fresh(host, lora=True).requires_grad_(False)
    with modulation.attached(host), state_cache.active():
        for _ in range(2):
            host(**rows[0], use_cache=False)
    assert (state_cache.hits, state_cache.misses) == (3, 7)


def test_entries_of_a_training_make_room_for_the_evaluation_after_it(host):
    rows = [inputs(((7, 8 + index),)) for index in range(4)]
    size = rows[0]["input_ids"].shape[1] * 32 * 4
    state_cache = HiddenStateCache(understand(host), 1, 2 * size, ContentKeys())
    with state_cache.active():
        for row in rows[:2]:
            host(**row, use_cache=False)
    with state_cache.active():
        for _ in range(2):
            for row in rows[1:]:
                host(**row, use_cache=False)
    # Row 1 was a hit and stays, row 0 made room for row 2, row 3 came too late.
    assert (state_cache.hits, state_cache.misses) == (3, 5)


def test_the_host_is_restored(host, state_cache):
    layers = host.model.language_model.layers
    keys = set(host.state_dict())
    with pytest.raises(ZeroDivisionError), state_cache.active():
        assert "forward" in layers[1].__dict__ and "forward" not in layers[2].__dict__
        assert set(host.state_dict()) == keys
        host(**inputs(), use_cache=False)
        copied = copy.deepcopy(host)
        assert (
            copied.model.language_model.layers[0].forward.__self__
            is copied.model.language_model.layers[0]
        )
        hits = state_cache.hits
        misses = state_cache.misses
        assert torch.equal(
            copied(**inputs(), use_cache=False).logits, host(**inputs(), use_cache=False).logits
        )
        assert (state_cache.hits, state_cache.misses) == (hits + 1, misses)
        1 / 0  # noqa: B018
    assert not our_hooks(host) and not any("forward" in layer.__dict__ for layer in layers)


def test_a_host_for_which_caching_would_be_wrong_is_refused(host):
    from modulate_hosts.contract.families import FAMILIES

    deep = next(family for family in FAMILIES if family.name == "qwen3_vl").build()
    with pytest.raises(
        HostError,
        match=(
            r"adds to the states after each of its first 2 layers, and layer 1 is one\. Set"
            r" features\.hidden_state_cache_gib to 0"
        ),
    ):
        HiddenStateCache(understand(deep), 1, MIB, ContentKeys())
    hooked = qwen()
    layers = hooked.model.language_model.layers
    for module, hook in (
        (layers[0], "register_forward_hook"),
        (layers[1].mlp, "register_forward_hook"),
        (layers[1], "register_forward_pre_hook"),
    ):
        handle = getattr(module, hook)(lambda *args: None)
        with pytest.raises(HostError, match=r"a hook .*which would not run on a cache hit"):
            HiddenStateCache(understand(hooked), 1, MIB, ContentKeys())
        handle.remove()
    # A hook on the output of the first injected layer still runs.
    layers[1].register_forward_hook(lambda *args: None)
    layers[3].register_forward_hook(lambda *args: None)
    HiddenStateCache(understand(hooked), 1, MIB, ContentKeys())


def test_a_tower_may_add_to_layers_below_the_first_injected_one(tmp_path):
    from modulate_hosts.contract.families import FAMILIES
    from modulate_hosts.contract.prompts import write

    family = next(family for family in FAMILIES if family.name == "qwen3_vl")
    model = family.build()
    given = write(family, [["video", (7, 8)], [(9,), "video", "video"]]).inputs
    expected = model(**given).logits
    state_cache = HiddenStateCache(understand(model), 2, MIB, ContentKeys())
    with state_cache.active():
        for _ in range(2):
            assert torch.equal(model(**given).logits, expected)
    assert state_cache.hits == 1


def test_an_interrupted_forward_does_not_answer_the_next(host, state_cache):
    """KeyboardInterrupt is no Exception, so torch calls no hook after it."""
    given = inputs(((7, 8),))
    other = inputs(((10, 11),), seed=1)
    expected = host(**other, use_cache=False).logits

    def stop(*args):
        raise KeyboardInterrupt

    with state_cache.active():
        host(**given, use_cache=False)
        handle = host.model.language_model.layers[3].mlp.register_forward_hook(stop)
        with pytest.raises(KeyboardInterrupt):
            host(**given, use_cache=False)
        handle.remove()
        assert torch.equal(host(**other, use_cache=False).logits, expected)


def test_only_the_lower_layers_of_a_cache_are_stored_and_counted(host, state_cache):
    given = inputs(((7, 8),))
    with state_cache.active():
        output = host(**given, use_cache=True)
        (states,) = state_cache._entries.values()
        lower = layers_of(output)[: state_cache.first + 1]
        assert len(states.keys_values) == len(lower) == 2
        assert (
            states.nbytes
            == states.hidden.nbytes
            + sum(layer.keys.nbytes + layer.values.nbytes for layer in lower)
            == MIB - state_cache._free_bytes
        )


def test_a_host_with_further_inputs_says_that_it_cannot_be_cached():
    from modulate_hosts.contract.families import FAMILIES
    from modulate_hosts.contract.suite import Case

    (family,) = [family for family in FAMILIES if family.name == "minicpmv4_6"]
    case = Case(family)
    batch = case.write(["video", (7, 8)])
    cache = HiddenStateCache(understand(case.host), 1, MIB, ContentKeys())
    with torch.no_grad(), cache.active(), pytest.warns(UserWarning, match="given target_sizes"):
        case.host(**batch.inputs)
    assert cache.hits == cache.misses == 0

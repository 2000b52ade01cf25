"""Hidden states below the first residual are kept, and nothing else changes."""

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
def below(host):
    return HiddenStateCache(understand(host), 1, MIB, ContentKeys())


@pytest.fixture
def ran(host, monkeypatch):
    """Which parts of the host really ran; no hooks, which would be refused."""
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


def losses(model, modulation, given):
    """Logits of a conditioned forward, and the gradients that follow."""
    modulation.zero_grad()
    with (
        modulation.attached(model) as attachment,
        attachment.condition([[CLIP]] * len(given["input_ids"])),
    ):
        logits = model(**given, logits_to_keep=1, use_cache=False).logits
    logits.square().sum().backward()
    return [
        logits.detach(),
        *(p.grad.clone() for p in modulation.parameters() if p.grad is not None),
    ]


@pytest.mark.parametrize(
    "texts", [((7, 8),), ((7, 8, 9), (10, 11))], ids=["one row", "two rows, one padded"]
)
def test_logits_and_gradients_are_the_same_to_the_bit_without_tower_and_lower_layers(
    host, modulation, below, ran, texts
):
    given = inputs(texts)
    bare = losses(host, modulation, given)
    assert ran == ["tower", 0, 1, 2, 3]
    with below.active():
        with torch.inference_mode():  # what an evaluation keeps serves a training
            plain = host(**given, use_cache=False).logits
        del ran[:]
        kept = losses(host, modulation, {k: v.clone() for k, v in given.items()})
        again = losses(host, modulation, given)
        assert ran == [2, 3, 2, 3]
        assert torch.equal(host(**given, use_cache=False).logits, plain)
    assert len(bare) > 3
    for one, two, three in zip(bare, kept, again, strict=True):
        assert torch.equal(one, two)
        assert torch.equal(one, three)
    assert (below.hits, below.misses) == (3, 1)


def layers_of(output):
    (cache,) = cached(output).values()
    return cache.layers


def test_a_cache_is_filled_as_ever_and_can_be_continued(host, below, ran):
    given = inputs(((7, 8),))
    more = torch.tensor([[9, 10]])
    first = host(**given, use_cache=True)
    expected = host(input_ids=more, **cached(first), use_cache=True).logits
    with below.active():
        for _ in range(2):
            del ran[:]
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
        assert ran == [2, 3, 0, 1, 2, 3]  # the question's own tokens go through all
        tokens = host.generate(**given, max_new_tokens=3, do_sample=False)
    assert torch.equal(tokens, host.generate(**given, max_new_tokens=3, do_sample=False))


def test_whatever_the_states_depend_on_is_looked_at(host, below):
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
    expected = [host(**x, use_cache=False).logits for x in other]
    with below.active():
        host(**given, use_cache=False)
        for changed, logits in zip(other, expected, strict=True):
            assert torch.equal(host(**changed, use_cache=False).logits, logits)
        assert (below.hits, below.misses) == (0, 7)
        states = host(**given, use_cache=False, output_hidden_states=True).hidden_states
        assert len(states) == 5 and below.hits == 0


def test_weights_and_adapters_that_change_are_noticed(ran):
    host = qwen()
    given = inputs()
    modulation = fresh(host, lora=True)
    for value in modulation.lora.values():
        torch.nn.init.normal_(value, std=0.5)
    below = HiddenStateCache(understand(host), 1, MIB, ContentKeys())
    ask = lambda: host(**given, use_cache=False).logits
    with modulation.attached(host) as attachment, below.active(), torch.inference_mode():
        adapted = ask()
        with attachment.bare():
            plain = ask()
            assert torch.equal(ask(), plain)
        assert torch.equal(ask(), adapted)
        assert (below.hits, below.misses) == (2, 2)
        modulation.lora["0|self_attn/q_proj|B"].mul_(2.0)
        changed = ask()
    assert below.misses == 3
    assert not torch.equal(adapted, plain) and not torch.equal(adapted, changed)
    with modulation.attached(host), torch.inference_mode():
        assert torch.equal(ask(), changed)


def test_while_lower_layers_are_trained_or_recomputed_it_is_off_and_says_so(below, host):
    given = inputs()
    modulation = fresh(host, lora=True)
    with (
        modulation.attached(host),
        below.active(),
        pytest.warns(UserWarning, match="no effect while LoRA in layers 0 to 1 is trained"),
    ):
        host(**given, use_cache=False)
    host.model.language_model.layers[0].training = True
    try:
        with (
            below.active(),
            pytest.warns(
                UserWarning,
                match=r"while decoder layers are recomputed \(training.gradient_checkpointing\)",
            ),
        ):
            host(**given, use_cache=False)
    finally:
        host.model.language_model.layers[0].training = False
    assert (below.hits, below.misses) == (0, 0)


def test_what_comes_first_stays_until_the_weights_are_others(host):
    rows = [inputs(((7, 8 + i),)) for i in range(4)]
    size = rows[0]["input_ids"].shape[1] * 32 * 4
    below = HiddenStateCache(understand(host), 1, 2 * size, ContentKeys())
    with below.active():
        for _ in range(2):
            for row in rows:
                host(**row, use_cache=False)
        assert (below.hits, below.misses) == (2, 6)
    modulation = fresh(host, lora=True).requires_grad_(False)
    with modulation.attached(host), below.active():
        for _ in range(2):
            host(**rows[0], use_cache=False)
    assert (below.hits, below.misses) == (3, 7)


def test_what_a_training_left_makes_room_for_the_evaluation_after_it(host):
    rows = [inputs(((7, 8 + i),)) for i in range(4)]
    size = rows[0]["input_ids"].shape[1] * 32 * 4
    below = HiddenStateCache(understand(host), 1, 2 * size, ContentKeys())
    with below.active():
        for row in rows[:2]:
            host(**row, use_cache=False)
    with below.active():
        for _ in range(2):
            for row in rows[1:]:
                host(**row, use_cache=False)
    assert (below.hits, below.misses) == (
        3,
        5,
    )  # row 1 was found and stays, row 0 made room for row 2, row 3 came too late


def test_the_host_is_put_back_as_it_was(host, below):
    layers = host.model.language_model.layers
    keys = set(host.state_dict())
    with pytest.raises(ZeroDivisionError), below.active():
        assert "forward" in layers[1].__dict__ and "forward" not in layers[2].__dict__
        assert set(host.state_dict()) == keys
        host(**inputs(), use_cache=False)
        copied = copy.deepcopy(host)
        assert (
            copied.model.language_model.layers[0].forward.__self__
            is copied.model.language_model.layers[0]
        )
        kept = below.hits, below.misses
        assert torch.equal(
            copied(**inputs(), use_cache=False).logits, host(**inputs(), use_cache=False).logits
        )
        assert (below.hits, below.misses) == (kept[0] + 1, kept[1])
        1 / 0  # noqa: B018
    assert not our_hooks(host) and not any("forward" in layer.__dict__ for layer in layers)


def test_a_host_of_which_it_cannot_be_right_is_refused(host):
    from modulate_hosts.contract.families import FAMILIES

    deep = next(f for f in FAMILIES if f.name == "qwen3_vl").build()
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
    layers[1].register_forward_hook(lambda *args: None)  # runs as ever
    layers[3].register_forward_hook(lambda *args: None)
    HiddenStateCache(understand(hooked), 1, MIB, ContentKeys())


def test_a_tower_that_gives_to_further_layers_below_the_first_injected_one(tmp_path):
    from modulate_hosts.contract.families import FAMILIES
    from modulate_hosts.contract.prompts import write

    family = next(f for f in FAMILIES if f.name == "qwen3_vl")
    model = family.build()
    given = write(family, [["video", (7, 8)], [(9,), "video", "video"]]).inputs
    expected = model(**given).logits
    below = HiddenStateCache(understand(model), 2, MIB, ContentKeys())
    with below.active():
        for _ in range(2):
            assert torch.equal(model(**given).logits, expected)
    assert below.hits == 1


def test_a_forward_that_was_interrupted_answers_for_no_other(host, below):
    """Ctrl-C: torch calls no hook for what is no Exception."""
    given = inputs(((7, 8),))
    other = inputs(((10, 11),), seed=1)
    expected = host(**other, use_cache=False).logits

    def stop(*args):
        raise KeyboardInterrupt

    with below.active():
        host(**given, use_cache=False)
        handle = host.model.language_model.layers[3].mlp.register_forward_hook(stop)
        with pytest.raises(KeyboardInterrupt):
            host(**given, use_cache=False)  # found
        handle.remove()
        assert torch.equal(host(**other, use_cache=False).logits, expected)


def test_of_a_cache_only_the_lower_layers_are_kept_and_counted(host, below):
    given = inputs(((7, 8),))
    with below.active():
        output = host(**given, use_cache=True)
        (states,) = below._entries.values()
        lower = layers_of(output)[: below.first + 1]
        assert len(states.keys_values) == len(lower) == 2
        assert (
            states.nbytes
            == states.hidden.nbytes
            + sum(layer.keys.nbytes + layer.values.nbytes for layer in lower)
            == MIB - below._free_bytes
        )

"""What the vision tower makes of clips is kept, and nothing else changes."""

import copy
import dataclasses
import inspect

import pytest
import torch

from modulate.errors import HostError
from modulate.hosts.host import understand
from modulate.hosts.vision_tower_cache import METHOD, VisionTowerCache
from tests.tiny import CLIP, inputs, qwen

GIB = 2**30


@pytest.fixture
def tower(host, tmp_path):
    return VisionTowerCache(understand(host), tmp_path / "tower", GIB)


@pytest.fixture
def runs(host, monkeypatch):
    """Grows whenever the vision tower really runs; not a hook, which a tower that is kept would
    refuse.
    """
    seen = []
    block = type(host.model.visual.blocks[0])
    forward = block.forward
    monkeypatch.setattr(
        block,
        "forward",
        lambda self, *args, **kwargs: (seen.append(1), forward(self, *args, **kwargs))[1],
    )
    return seen


def losses(model, modulation, given):
    """Logits of a conditioned forward, and the gradients that follow."""
    modulation.zero_grad()
    with (
        modulation.attached(model) as attachment,
        attachment.condition([[CLIP]] * len(given["input_ids"])),
    ):
        logits = model(**given, logits_to_keep=1).logits
    logits.square().sum().backward()
    return [
        logits.detach(),
        *(p.grad.clone() for p in modulation.parameters() if p.grad is not None),
    ]


@pytest.mark.parametrize("texts", [((7, 8),), ((7, 8, 9), (10, 11))], ids=["one clip", "two clips"])
def test_logits_and_gradients_are_the_same_to_the_bit(host, modulation, tower, runs, texts):
    given = inputs(texts)
    bare = losses(host, modulation, given)
    assert len(runs) == 1
    with tower.active():
        with torch.inference_mode():  # what an evaluation keeps serves a training
            host(**given)
        kept = losses(host, modulation, given)
        again = losses(host, modulation, {k: v.clone() for k, v in given.items()})
    assert len(runs) == 2
    assert len(bare) > 3
    for one, two, three in zip(bare, kept, again, strict=True):
        assert torch.equal(one, two)
        assert torch.equal(one, three)
    assert (tower.store.misses, tower.store.hits) == (1, 2)


def test_another_process_finds_it_on_disk_and_another_host_does_not(host, tower, runs, tmp_path):
    given = inputs()
    with tower.active():
        first = host(**given).logits
    with VisionTowerCache(understand(host), tmp_path / "tower", GIB).active():
        assert torch.equal(host(**given).logits, first)
    assert len(runs) == 1
    other = qwen(seed=1)
    with VisionTowerCache(understand(other), tmp_path / "tower", GIB).active():
        assert torch.equal(other(**given).logits, qwen(seed=1)(**given).logits)
    assert len(runs) == 3


def test_another_clip_or_another_cut_of_the_same_patches_is_not_taken_for_it(host, tower, runs):
    given = inputs(texts=((7, 8),))
    other = given | {"pixel_values_videos": given["pixel_values_videos"].flip(0)}
    swapped = given | {"video_grid_thw": given["video_grid_thw"][:, [0, 2, 1]]}
    for changed in (other, swapped):
        expected = host(**changed).logits
        with tower.active():
            host(**given)
            assert torch.equal(host(**changed).logits, expected)
    assert tower.store.misses == 3


def test_kept_by_clip_a_clip_is_found_in_any_batch(host, runs, tmp_path):
    tower = VisionTowerCache(understand(host), tmp_path, GIB, by="clip")
    pair = inputs(((7, 8), (10, 11)))
    rows = len(pair["pixel_values_videos"]) // 2
    swapped = pair | {
        "pixel_values_videos": torch.cat(
            [pair["pixel_values_videos"][rows:], pair["pixel_values_videos"][:rows]]
        )
    }
    plain = host(**swapped).logits
    del runs[:]
    with tower.active():
        host(**pair)
        assert len(runs) == 2
        torch.testing.assert_close(host(**swapped).logits, plain, atol=1e-5, rtol=1e-5)
    assert len(runs) == 2
    with VisionTowerCache(understand(host), tmp_path / "call", GIB).active():
        host(**pair)
        host(**swapped)
    assert len(runs) == 4


def test_what_the_pipeline_knows_of_a_batch_is_not_hashed_again(host, tower, monkeypatch):
    import modulate.hosts.vision_tower_cache

    rows = [inputs(((7, 8),), seed=0), inputs(((7, 8),), seed=1)]
    batch = {k: torch.cat([row[k] for row in rows]) for k in rows[0]}
    hashed = []
    content = modulate.hosts.vision_tower_cache.tensor_digest
    monkeypatch.setattr(
        modulate.hosts.vision_tower_cache,
        "tensor_digest",
        lambda *args: (hashed.append(1), content(*args))[1],
    )
    with tower.active():
        plain = host(**{k: v.clone() for k, v in batch.items()}).logits
        assert len(hashed) == 2
        for _ in range(3):
            again = {k: v.clone() for k, v in batch.items()}
            tower.content_keys.recognize(again, rows)
            assert torch.equal(host(**again).logits, plain)
    assert len(hashed) == 4
    assert tower.store.misses == 1


def test_the_host_is_put_back_as_it_was(host, tower):
    entry = host.model
    keys = set(host.state_dict())
    before = dict(entry.__dict__)
    with pytest.raises(ZeroDivisionError), tower.active():
        assert METHOD in entry.__dict__
        assert set(host.state_dict()) == keys
        copied = copy.deepcopy(host)
        assert getattr(copied.model, METHOD).__self__ is copied.model
        1 / 0  # noqa: B018
    assert entry.__dict__.keys() == before.keys()
    own = lambda pixel_values_videos, video_grid_thw: None
    entry.__dict__[METHOD] = own
    try:
        with tower.active():
            assert entry.__dict__[METHOD] is not own
        assert entry.__dict__[METHOD] is own
    finally:
        del entry.__dict__[METHOD]


def test_a_tower_that_is_no_constant_is_refused(host, tower, tmp_path):
    model = qwen()
    make = lambda: VisionTowerCache(understand(model), tmp_path, GIB)
    weight = model.model.visual.merger.mlp[0].weight.requires_grad_()
    with pytest.raises(
        HostError,
        match=(
            r"visual\.merger\.mlp\.0\.weight is trainable\. Set features\.vision_tower_cache_gib"
            r" to 0"
        ),
    ):
        make()
    weight.requires_grad_(False)
    handle = model.model.visual.blocks[0].register_forward_hook(lambda *args: None)
    with pytest.raises(
        HostError,
        match=(
            r"a hook of tests\.hosts\.test_vision_tower_cache is on visual\.blocks\.0, which would"
            r" not run on a cache hit"
        ),
    ):
        make()
    handle.remove()
    late = make()
    from peft import LoraConfig, inject_adapter_in_model

    inject_adapter_in_model(
        LoraConfig(r=2, target_modules=["visual.blocks.0.attn.proj"]), model.model
    )
    model.requires_grad_(False)
    with (
        pytest.raises(HostError, match=r"an adapter is on visual\.blocks\.0\.attn\.proj"),
        late.active(),
    ):
        pass
    VisionTowerCache(
        understand(model), tmp_path, 0
    )  # nothing is asked of a tower that is left alone


def test_attentions_that_are_asked_for_are_the_tower_s_own(host, tower, runs):
    given = inputs()
    with tower.active():
        host(**given)
        host(**given, output_attentions=True)
    assert len(runs) == 2


def field_by_field(output):
    """Names and values of an output, tuples and tensors down to bytes."""
    plain = lambda v: [plain(x) for x in v] if isinstance(v, tuple | list) else v.tolist()
    return {name: plain(value) for name, value in output.items()}


@pytest.mark.parametrize("by", ["call", "clip"])
@pytest.mark.parametrize(
    "annotated", [True, False], ids=["the class says what it returns", "it does not"]
)
@pytest.mark.parametrize("name", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def test_what_the_host_is_given_is_of_the_library_s_own_class(
    name, annotated, by, tmp_path, monkeypatch
):
    """Whatever a host, generation or a user then does with it: dictionary, tuple, copies of it."""
    from modulate_hosts.contract.families import FAMILIES
    from modulate_hosts.contract.prompts import write

    family = next(f for f in FAMILIES if f.name == name)
    model = family.build()
    given = write(family, [["video", "video"]]).inputs
    if not annotated:
        monkeypatch.delitem(
            inspect.unwrap(getattr(type(model.model), METHOD)).__annotations__, "return"
        )
    ask = lambda **more: getattr(model.model, METHOD)(
        given["pixel_values_videos"], given["video_grid_thw"], **more
    )
    made = ask(return_dict=True)
    kept = {"pooler_output", "deepstack_features"} & made.keys()
    for _ in range(2):  # the second is another process: nothing in memory
        tower = VisionTowerCache(understand(model), tmp_path, GIB, by)
        with tower.active():
            for found in (ask(return_dict=True), ask()):
                assert type(found) is type(made)
                assert found.keys() == kept and len(found.to_tuple()) == len(kept)
                if by == "call":
                    assert field_by_field(found) == {
                        k: v for k, v in field_by_field(made).items() if k in kept
                    }
                assert type(copy.copy(found)) is type(dataclasses.replace(found)) is type(made)
            assert isinstance(ask(return_dict=False), tuple)
            whole = model(**given, return_dict=True)
            assert isinstance(whole.to_tuple(), tuple)


@pytest.mark.parametrize("name", ["qwen2_vl", "qwen3_vl"])
def test_other_families_and_what_they_give_to_further_layers(name, tmp_path):
    from modulate_hosts.contract.families import FAMILIES
    from modulate_hosts.contract.prompts import write

    family = next(f for f in FAMILIES if f.name == name)
    model = family.build()
    given = write(family, [["video", (7, 8)], [(9,), "video", "video"]]).inputs
    expected = model(**given).logits
    for by in ("call", "clip"):
        tower = VisionTowerCache(understand(model), tmp_path / by, GIB, by)
        for _ in range(2):
            with tower.active():
                torch.testing.assert_close(
                    model(**given).logits, expected, atol=0 if by == "call" else 1e-6, rtol=0
                )
    assert tower.store.hits == 3


def test_a_host_whose_clips_cannot_be_told_apart_is_refused(tmp_path):
    from modulate_hosts.contract.families import FAMILIES

    model = next(f for f in FAMILIES if f.name == "smolvlm").build()
    with pytest.raises(HostError, match="SmolVLMModel has no get_video_features"):
        VisionTowerCache(understand(model), tmp_path, GIB)


def test_what_lacks_pixels_grids_or_a_constant_input_is_the_towers_own_business(host, tower, runs):
    given = inputs()
    pixels = given["pixel_values_videos"]
    grids = given["video_grid_thw"]
    with tower.active():
        see = getattr(host.model, METHOD)
        for _ in range(2):
            with pytest.raises((TypeError, AttributeError)):
                see(pixels, None)  # the host's own error
            see(pixels.clone().requires_grad_(True), grids)
        assert len(runs) == 2 and tower.store.misses == 0

"""Caching the output of the vision tower changes no result."""

import copy
import dataclasses
import inspect

import pytest
import torch

from modulate.errors import HostError
from modulate.hosts.host import understand
from modulate.hosts.vision_tower_cache import METHOD, ContentKeys, VisionTowerCache
from tests.tiny import CLIP, inputs, qwen

GIB = 2**30


@pytest.fixture
def tower(host, tmp_path):
    return VisionTowerCache(understand(host), tmp_path / "tower", GIB)


@pytest.fixture
def runs(host, monkeypatch):
    """A list that grows when the tower runs; not by a hook, which the cache would refuse."""
    seen = []
    block = type(host.model.visual.blocks[0])
    forward = block.forward
    monkeypatch.setattr(
        block,
        "forward",
        lambda self, *args, **kwargs: (seen.append(1), forward(self, *args, **kwargs))[1],
    )
    return seen


def logits_and_gradients(model, modulation, given):
    """Return the logits of a conditioned forward, and its gradients."""
    modulation.zero_grad()
    with (
        modulation.attached(model) as attachment,
        attachment.condition([[CLIP]] * len(given["input_ids"])),
    ):
        logits = model(**given, logits_to_keep=1).logits
    logits.square().sum().backward()
    return [
        logits.detach(),
        *(
            parameter.grad.clone()
            for parameter in modulation.parameters()
            if parameter.grad is not None
        ),
    ]


@pytest.mark.parametrize("texts", [((7, 8),), ((7, 8, 9), (10, 11))], ids=["one clip", "two clips"])
def test_logits_and_gradients_are_the_same_to_the_bit(host, modulation, tower, runs, texts):
    given = inputs(texts)
    uncached = logits_and_gradients(host, modulation, given)
    assert len(runs) == 1
    with tower.active():
        # Entries stored by an evaluation serve a training.
        with torch.inference_mode():
            host(**given)
        first_hit = logits_and_gradients(host, modulation, given)
        copied = {name: value.clone() for name, value in given.items()}
        second_hit = logits_and_gradients(host, modulation, copied)
    assert len(runs) == 2
    assert len(uncached) > 3
    for expected, first, second in zip(uncached, first_hit, second_hit, strict=True):
        assert torch.equal(expected, first)
        assert torch.equal(expected, second)
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


def test_an_entry_for_one_clip_is_found_in_any_batch(host, runs, tmp_path):
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


def test_patches_that_the_pipeline_knows_are_not_hashed_again(host, tower, monkeypatch):
    import modulate.hosts.vision_tower_cache

    rows = [inputs(((7, 8),), seed=0), inputs(((7, 8),), seed=1)]
    batch = {name: torch.cat([row[name] for row in rows]) for name in rows[0]}
    hashed = []
    content = modulate.hosts.vision_tower_cache.tensor_digest
    monkeypatch.setattr(
        modulate.hosts.vision_tower_cache,
        "tensor_digest",
        lambda *args: (hashed.append(1), content(*args))[1],
    )
    with tower.active():
        plain = host(**{name: value.clone() for name, value in batch.items()}).logits
        assert len(hashed) == 2
        for _ in range(3):
            again = {name: value.clone() for name, value in batch.items()}
            tower.content_keys.recognize(again, rows)
            assert torch.equal(host(**again).logits, plain)
    assert len(hashed) == 4
    assert tower.store.misses == 1


def test_clips_of_a_processor_that_gives_no_grids_are_not_noted_ahead():
    row = {"pixel_values_videos": torch.ones(1, 2, 3, 8, 8)}
    keys = ContentKeys()
    keys.recognize({"pixel_values_videos": torch.ones(2, 2, 3, 8, 8)}, [row, row])
    assert len(keys._known) == 0


def test_the_host_is_restored(host, tower):
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


def test_a_tower_for_which_caching_would_be_wrong_is_refused(host, tower, tmp_path):
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
    # A tower that is left alone is not checked.
    VisionTowerCache(understand(model), tmp_path, 0)


def test_requested_attentions_are_the_tower_s_own(host, tower, runs):
    given = inputs()
    with tower.active():
        host(**given)
        host(**given, output_attentions=True)
    assert len(runs) == 2


def plain_values(output):
    """Return the fields of an output as nested lists of numbers."""

    def plain(value):
        if isinstance(value, tuple | list):
            return [plain(item) for item in value]
        return value.tolist()

    return {name: plain(value) for name, value in output.items()}


@pytest.mark.parametrize("by", ["call", "clip"])
@pytest.mark.parametrize(
    "annotated", [True, False], ids=["the class says what it returns", "it does not"]
)
@pytest.mark.parametrize("name", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def test_the_host_receives_the_library_s_own_output_class(
    name, annotated, by, tmp_path, monkeypatch
):
    """So that hosts, generation and users can use it as a dictionary or tuple, and copy it."""
    from modulate_hosts.contract.families import FAMILIES
    from modulate_hosts.contract.prompts import write

    family = next(family for family in FAMILIES if family.name == name)
    model = family.build()
    given = write(family, [["video", "video"]]).inputs
    if not annotated:
        monkeypatch.delitem(
            inspect.unwrap(getattr(type(model.model), METHOD)).__annotations__, "return"
        )
    ask = lambda **more: getattr(model.model, METHOD)(
        given["pixel_values_videos"], given["video_grid_thw"], **more
    )
    expected = ask(return_dict=True)
    cached_fields = {"pooler_output", "deepstack_features"} & expected.keys()
    # The second cache starts like another process, with nothing in memory.
    for _ in range(2):
        tower = VisionTowerCache(understand(model), tmp_path, GIB, by)
        with tower.active():
            for output in (ask(return_dict=True), ask()):
                assert type(output) is type(expected)
                assert output.keys() == cached_fields
                assert len(output.to_tuple()) == len(cached_fields)
                if by == "call":
                    values = plain_values(expected)
                    assert plain_values(output) == {name: values[name] for name in cached_fields}
                assert type(copy.copy(output)) is type(expected)
                assert type(dataclasses.replace(output)) is type(expected)
            assert isinstance(ask(return_dict=False), tuple)
            whole = model(**given, return_dict=True)
            assert isinstance(whole.to_tuple(), tuple)


@pytest.mark.parametrize("name", ["qwen2_vl", "qwen3_vl"])
def test_embeddings_for_further_layers_are_cached_too(name, tmp_path):
    from modulate_hosts.contract.families import FAMILIES
    from modulate_hosts.contract.prompts import write

    family = next(family for family in FAMILIES if family.name == name)
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

    model = next(family for family in FAMILIES if family.name == "smolvlm").build()
    with pytest.raises(HostError, match="SmolVLMModel has no get_video_features"):
        VisionTowerCache(understand(model), tmp_path, GIB)


def test_calls_without_pixels_or_grids_or_with_gradients_of_pixels_go_to_the_tower(
    host, tower, runs
):
    given = inputs()
    pixels = given["pixel_values_videos"]
    grids = given["video_grid_thw"]
    with tower.active():
        see = getattr(host.model, METHOD)
        for _ in range(2):
            with pytest.raises((TypeError, AttributeError)):
                # The host's own error.
                see(pixels, None)
            see(pixels.clone().requires_grad_(True), grids)
        assert len(runs) == 2 and tower.store.misses == 0

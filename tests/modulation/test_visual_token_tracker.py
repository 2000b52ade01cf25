"""Counting visual tokens over many forwards, beyond what every host must do.

For that see tests/contract/test_cache_branches.py.
"""

import copy
import gc
import inspect

import pytest
import torch
from transformers import DynamicCache

from modulate import ClipInput
from modulate.errors import ConditioningError, HostError
from modulate.modulation.cache_notes import NOTES
from modulate.modulation.token_positions import TokenLocator
from modulate.modulation.visual_token_tracker import VisualTokenTracker
from tests.tiny import CLIP, GRID, VIDEO, cached, features, fresh, inputs, qwen, scanpath, selecting

OTHER = ClipInput(scanpath(0.9, 0.1), GRID, features(seed=5))


@pytest.fixture(autouse=True)
def without_gradients():
    with torch.no_grad():
        yield


def merged_inputs(host, batch):
    """Embeddings with the pictures merged in, and their positions, to be fed in any chunks."""
    calls = []
    handle = host.model.language_model.register_forward_pre_hook(
        lambda module, args, kwargs: calls.append(kwargs), with_kwargs=True
    )
    host(**batch)
    handle.remove()
    return calls[0]["inputs_embeds"], calls[0]["position_ids"]


def named(host, cache):
    """`cache` under the name that this transformers gives it."""
    return {
        next(
            name
            for name in ("cache", "past_key_values")
            if name in inspect.signature(host.forward).parameters
        ): cache
    }


def chunked(host, batch, sizes, cache=None):
    """Feed a prompt as embeddings, in chunks; return the last logits and the cache."""
    embeds, positions = cached_merged_inputs(host, batch)
    cache = cache or DynamicCache()
    start = 0
    logits = None
    for size in sizes:
        stop = min(start + size, embeds.shape[1])
        if start < stop:
            logits = host(
                inputs_embeds=embeds[:, start:stop],
                position_ids=positions[..., start:stop],
                **named(host, cache),
                use_cache=True,
            ).logits
        start = stop
    return logits[:, -1], cache


def cached_merged_inputs(host, batch):
    if not hasattr(host, "_merged"):
        host._merged = merged_inputs(host, batch)
    return host._merged


@pytest.fixture
def host_and_modulation():
    host = qwen()
    modulation = fresh(host)
    for writer in modulation.out:
        torch.nn.init.normal_(writer.weight, std=0.5)
    return host, modulation.eval()


@pytest.mark.parametrize(
    "sizes",
    [
        [1] * 30,
        [2] * 20,
        [3, 1, 5, 1, 30],
        [1, 30],
        [2, 1, 30],
        [13, 1, 1, 1, 30],
        [1, 5, 1, 1, 1, 30],
    ],
)
def test_a_prompt_in_chunks_of_any_sizes_gives_the_same_as_in_one(host_and_modulation, sizes):
    host, modulation = host_and_modulation
    batch = inputs(texts=((7, 8, 9),))
    cached_merged_inputs(host, batch)
    positions = batch["input_ids"] == VIDEO
    with modulation.attached(host) as attachment:
        with attachment.condition([[CLIP]]):
            whole = host(**batch).logits[:, -1]
        with attachment.condition([[CLIP]], positions=positions):
            logits, _ = chunked(host, batch, sizes)
        assert attachment.report().tokens == GRID.tokens
    torch.testing.assert_close(logits, whole, atol=1e-4, rtol=1e-4)


def test_a_prompt_short_of_visual_tokens_is_refused_after_two_decode_steps_or_at_the_end(
    host, modulation
):
    batch = inputs(texts=((7, 8, 9),))
    forwards = []
    handle = host.model.register_forward_pre_hook(lambda module, args: forwards.append(1))
    with modulation.attached(host) as attachment:
        for options in ({}, {"use_cache": False}):
            forwards.clear()
            message = "Row 0: the inputs hold 12 visual tokens, the conditioning 24"
            with (
                pytest.raises(ConditioningError, match=message),
                attachment.condition([[CLIP, CLIP]]),
            ):
                host.generate(**batch, max_new_tokens=40, **options)
            assert len(forwards) < 5
        text = dict(
            input_ids=torch.tensor([[1, 7, 8, 9]]),
            attention_mask=torch.ones(1, 4, dtype=torch.long),
        )
        forwards.clear()
        with (
            pytest.raises(ConditioningError, match="hold 0 visual tokens, the conditioning 12"),
            attachment.condition([[CLIP]]),
        ):
            host.generate(**text, max_new_tokens=40)
        assert len(forwards) < 5
    handle.remove()


def test_a_wrong_forward_is_refused_whether_a_right_one_came_before_or_after(host, modulation):
    right = inputs(texts=((7,),))
    wrong = inputs(texts=((7,),), videos=2)
    with modulation.attached(host) as attachment:
        for batches in ((right, wrong), (wrong, right)):
            with (
                pytest.raises(
                    ConditioningError,
                    match=(
                        r"hold 24 visual tokens, the conditioning 12|hold 12 visual tokens, the"
                        r" conditioning 24"
                    ),
                ),
                attachment.condition([[CLIP]]),
            ):
                for batch in batches:
                    host(**batch)
            with (
                pytest.raises(
                    ConditioningError, match="hold 12 visual tokens, the conditioning 24"
                ),
                attachment.condition([[CLIP, OTHER]]),
            ):
                for batch in batches:
                    host(**batch)
            with (
                pytest.raises(
                    ConditioningError, match="hold 12 visual tokens, the conditioning 24"
                ),
                attachment.condition([[CLIP, OTHER]]),
            ):
                for batch in batches:
                    host(**batch, use_cache=False)


def test_one_copy_that_stops_halfway_is_named_though_another_went_on(host_and_modulation):
    host, modulation = host_and_modulation
    batch = inputs(texts=((7, 8, 9),))
    cached_merged_inputs(host, batch)
    positions = batch["input_ids"] == VIDEO
    embeds, rope = cached_merged_inputs(host, batch)

    def go_on(cache, start, stop):
        host(
            inputs_embeds=embeds[:, start:stop],
            position_ids=rope[..., start:stop],
            **named(host, cache),
            use_cache=True,
        )

    for order in (0, 1):
        with (
            modulation.attached(host) as attachment,
            pytest.raises(
                ConditioningError,
                match=r"Row 0: the inputs hold 8 visual tokens, the conditioning 12",
            ),
            attachment.condition([[CLIP]], positions=positions),
        ):
            cache = DynamicCache()
            go_on(cache, 0, 6)
            copied = copy.deepcopy(cache)
            steps = [(cache, 6, embeds.shape[1]), (copied, 6, 10)]
            for step in (steps, steps[::-1])[order]:
                go_on(*step)


def test_a_forward_that_failed_leaves_no_trace(host, modulation):
    batch = inputs(texts=((7, 8, 9),))
    layer = host.model.language_model.layers[3]

    def fail(module, args):
        raise MemoryError("no more")

    with modulation.attached(host) as attachment:
        with attachment.condition([[CLIP]]):
            expected = host(**batch).logits
        with attachment.condition([[CLIP]]):
            handle = layer.register_forward_pre_hook(fail)
            with pytest.raises(MemoryError):
                host(**batch)
            handle.remove()
            assert torch.equal(host(**batch).logits, expected)
        assert attachment.report().forwards == 1


def test_notes_on_a_cache_are_bounded_and_go_with_their_conditionings(host, modulation):
    batch = inputs(texts=((7, 8, 9),))
    with modulation.attached(host) as attachment:
        with attachment.condition([[CLIP]]):
            cache = cached(host(**batch, use_cache=True))
        (held,) = cache.values()
        for _ in range(5):
            gc.collect()
            with attachment.condition([[]]):
                host(input_ids=torch.tensor([[9]]), **cache)
            assert len(getattr(held, NOTES)) == 1


@pytest.mark.parametrize("kind", ["text", "last", "mask"])
def test_copies_and_repeats_of_a_cache_are_written_by_the_rules_of_every_kind(host, kind):
    modulation = selecting(host, kind)
    batch = inputs(texts=((7, 8, 9),))
    length = batch["input_ids"].shape[1]
    hints = {
        "text": {},
        "last": {"prompt": torch.ones(1, length)},
        "mask": {"mask": torch.ones(1, length + 1)},
    }[kind]
    with modulation.attached(host) as attachment, attachment.condition([[CLIP]], **hints):
        start = cached(host(**batch, use_cache=True))
        outputs = [
            host(input_ids=torch.tensor([[20]]), **copy.deepcopy(start)).logits for _ in range(2)
        ]
        for held in start.values():
            held.batch_repeat_interleave(3)
        outputs.append(host(input_ids=torch.tensor([[20]] * 3), **start).logits)
    torch.testing.assert_close(outputs[0], outputs[1])
    for row in outputs[2]:
        torch.testing.assert_close(outputs[0][0], row, atol=1e-5, rtol=1e-4)
    assert attachment.report().tokens > 3


def test_a_prompt_that_looks_like_a_branch_without_clips_is_refused_where_text_is_written(host):
    modulation = selecting(host, "text")
    batch = inputs(texts=((7, 8, 9),))
    with (
        modulation.attached(host) as attachment,
        pytest.raises(
            ConditioningError, match="4 tokens of this cache were taken for a branch without clips"
        ),
        attachment.condition([[CLIP]]),
    ):
        host(**batch)
        cache = cached(host(input_ids=torch.tensor([[1, 20, 21, 22]]), use_cache=True))
        batch.pop("attention_mask")
        host(**batch, **cache)


def test_a_cache_that_takes_no_attribute_is_refused(host, modulation):
    class Slotted:
        __slots__ = ()

        def get_seq_length(self, *args):
            return 0

    with modulation.attached(host) as attachment, attachment.condition([[CLIP]]):
        host(**inputs(texts=((7,),)))
        tracker = attachment._conditioning.tracker
        tracker.place(
            TokenLocator((VIDEO,), ()).locate(
                {"input_ids": torch.tensor([[1, 7]]), "cache": Slotted()}
            )
        )
        with pytest.raises(HostError, match="A Slotted takes no attribute"):
            tracker.remember(None)


# --- token types

IDS = torch.tensor([[1, *[VIDEO] * 4, 7, 8]])
MODALITY = ("mm_token_type_ids",)


def counted(forwards, expected=(4,), types=MODALITY):
    """How many visual tokens each forward of a conditioning is found to have."""
    tracker = VisualTokenTracker(expected)
    cache = DynamicCache()
    counts = []
    for arguments in forwards:
        ordinal = tracker.place(TokenLocator((VIDEO,), types).locate({"cache": cache, **arguments}))
        tracker.remember(cache)
        counts.append(0 if ordinal is None else int((ordinal >= 0).sum()))
        length = arguments["input_ids"].shape[1]
        cache.update(torch.zeros(1, 1, length, 1), torch.zeros(1, 1, length, 1), 0)
    tracker.finish()
    return counts


@pytest.mark.parametrize("name", ["token_type_ids", "segment_ids"])
@pytest.mark.parametrize(
    "types",
    [
        torch.zeros_like(IDS),
        torch.ones_like(IDS),
        torch.tensor([[0, 0, 0, 0, 0, 1, 1]]),
        torch.tensor([[0, 1, 1, 0, 0, 1, 1]]),
    ],
)
def test_types_that_are_not_known_to_mean_modality_take_no_placeholder_away(name, types):
    assert counted([{"input_ids": IDS, name: types}]) == [4]


def test_types_of_modality_tell_a_placeholder_that_is_text():
    ids = torch.tensor([[1, VIDEO, *[VIDEO] * 4, 7]])
    types = torch.tensor([[0, 0, 2, 2, 2, 2, 0]])
    assert counted([{"input_ids": ids, "mm_token_type_ids": types}]) == [4]
    assert counted([{"input_ids": ids, "token_type_ids": types}], types=("token_type_ids",)) == [4]


def test_types_that_call_a_whole_prompt_text_are_named_and_never_drop_it_silently():
    message = (
        "Row 0: the inputs hold 0 visual tokens, the conditioning 4.* 4 placeholders of its last"
        " forward are text by their `mm_token_type_ids`, which is 0 there"
    )
    with pytest.raises(ConditioningError, match=message):
        counted([{"input_ids": IDS, "mm_token_type_ids": torch.zeros_like(IDS)}])


@pytest.mark.parametrize("types", [None, 0, 1])
@pytest.mark.parametrize("name", ["mm_token_type_ids", "token_type_ids"])
def test_a_placeholder_that_is_generated_is_never_visual(types, name):
    if (name, types) == ("mm_token_type_ids", 1):
        pytest.skip("no host says that a generated token is vision")
    types_of_step = {} if types is None else {name: torch.tensor([[types]])}
    step = {"input_ids": torch.tensor([[VIDEO]]), **types_of_step}
    assert counted(
        [
            {"input_ids": IDS, "pixel_values": IDS},
            step,
            step,
            {"input_ids": torch.tensor([[9]])},
            step,
        ]
    ) == [4, 0, 0, 0, 0]


@pytest.mark.parametrize(
    "name", ["pixel_values", "pixel_values_videos", "mm_encoder_outputs", "image_features"]
)
def test_placeholders_beside_pictures_are_a_clip_and_not_generated(name):
    second = {"input_ids": torch.tensor([[9, *[VIDEO] * 4]]), name: torch.zeros(1)}
    with pytest.raises(
        ConditioningError,
        match=(
            r"Row 0: the inputs hold 8 visual tokens, the conditioning 4.* a clip that comes later"
            r" has a conditioning of its own"
        ),
    ):
        counted([{"input_ids": IDS, name: torch.zeros(1)}, second])

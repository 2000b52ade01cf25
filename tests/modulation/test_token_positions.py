"""Locating the visual tokens of a forward by ids, token types and the position in the cache."""

from types import SimpleNamespace

import pytest
import torch
from transformers import DynamicCache

from modulate.errors import ConditioningError, HostError
from modulate.modulation.token_positions import TokenLocator, begins_with, check_repeats
from modulate.modulation.visual_token_tracker import VisualTokenTracker

VIDEO = 5
IMAGE = 6
TEXT = 9
TYPES = ("mm_token_type_ids", "token_type_ids")


def filled(length, rows=1):
    """A cache that holds ``length`` positions."""
    cache = DynamicCache()
    if length:
        grow(cache, length, rows)
    return cache


def grow(cache, length, rows=1):
    cache.update(torch.zeros(rows, 1, length, 2), torch.zeros(rows, 1, length, 2), 0)


def forward(ids, cache=None, **arguments):
    """The arguments of a forward; the cache under its names in older and newer transformers."""
    caches = {} if cache is None else {"past_key_values": cache, "cache": cache}
    return {"input_ids": torch.tensor(ids), **caches, **arguments}


def locate(ids, cache=None, **arguments):
    return TokenLocator((VIDEO, IMAGE), TYPES).locate(forward(ids, cache, **arguments))


# --- one forward


def test_any_of_the_placeholders_is_visual():
    tokens = locate([[TEXT, VIDEO, IMAGE, TEXT]])
    assert (
        tokens.visual.tolist() == [[False, True, True, False]]
        and tokens.has_placeholders
        and not tokens.trusted
        and tokens.past_length == 0
    )
    assert not locate([[TEXT, TEXT]]).has_placeholders


def test_token_types_tell_placeholders_from_tokens_that_only_look_so():
    tokens = locate([[VIDEO, TEXT, VIDEO]], mm_token_type_ids=torch.tensor([[2, 0, 0]]))
    assert tokens.visual.tolist() == [[True, False, False]] and tokens.trusted


@pytest.mark.parametrize("name", ["mm_token_type_ids", "token_type_ids"])
def test_types_of_the_whole_prompt_are_read_at_the_chunk_s_own_positions(name):
    types = torch.tensor([[2, 2, 0, 0, 2]])
    tokens = locate([[VIDEO, VIDEO]], filled(3), **{name: types})
    assert tokens.past_length == 3 and tokens.trusted and tokens.visual.tolist() == [[False, True]]


def test_types_of_the_chunk_alone_are_read_as_they_are():
    tokens = locate([[VIDEO, VIDEO]], filled(3), mm_token_type_ids=torch.tensor([[2, 0]]))
    assert tokens.trusted and tokens.visual.tolist() == [[True, False]]


@pytest.mark.parametrize("shape", [(1, 4), (1, 1), (2, 2), (2, 5), (1,), (5,), (1, 5, 2)])
def test_types_of_other_positions_or_rows_say_nothing(shape):
    tokens = locate(
        [[VIDEO, TEXT]], filled(3), mm_token_type_ids=torch.zeros(shape, dtype=torch.long)
    )
    assert not tokens.trusted and tokens.visual.tolist() == [[True, False]]


def test_positions_of_the_caller_are_read_from_where_the_cache_ends_and_tokens_beyond_are_text():
    positions = torch.tensor([[False, True, True], [True, False, False]])
    locator = TokenLocator((VIDEO,), TYPES, positions)
    tokens = locator.locate(forward([[VIDEO] * 3] * 2, filled(1, 2)))
    assert (
        tokens.visual.tolist() == [[True, True, False], [False, False, False]]
        and tokens.trusted
        and tokens.past_length == 1
    )
    beams = locator.locate(forward([[TEXT] * 3] * 4))
    assert beams.visual.tolist() == [[False, True, True]] * 2 + [[True, False, False]] * 2


def test_embeddings_without_ids_need_positions():
    arguments = {"inputs_embeds": torch.zeros(1, 3, 8)}
    with pytest.raises(HostError, match="visual tokens cannot be located"):
        TokenLocator((VIDEO,), TYPES).locate(arguments)
    positions = torch.tensor([[False, True, False]])
    tokens = TokenLocator((VIDEO,), TYPES, positions).locate(arguments)
    assert torch.equal(tokens.visual, positions)


def test_an_attention_mask_of_positions_that_no_cache_explains_is_refused():
    mask = torch.ones(1, 5)
    with pytest.raises(HostError, match="spans 5 positions, but it got 2 tokens"):
        locate([[TEXT, VIDEO]], attention_mask=mask)
    assert locate([[TEXT, VIDEO]], filled(3), attention_mask=mask).past_length == 3
    assert locate([[TEXT, VIDEO]], attention_mask=mask[:, :2]).past_length == 0


def test_padding_is_read_off_an_attention_mask_of_all_positions():
    mask = torch.tensor([[0, 0, 1, 0, 1]])
    assert locate([[TEXT, TEXT]], filled(3), attention_mask=mask).attended.tolist() == [
        [False, True]
    ]
    assert locate([[TEXT, TEXT]], filled(3), attention_mask=mask[:, 3:]).attended.tolist() == [
        [True, True]
    ]
    assert locate([[TEXT, TEXT]]).attended.tolist() == [[True, True]]


# --- the same prompt again

PROMPT = torch.tensor([[1, 2], [3, 4]])


def test_rows_that_are_multiplied_begin_with_their_own_row_of_the_prompt():
    assert begins_with(torch.tensor([[1, 2, 9], [1, 2, 8], [3, 4, 9], [3, 4, 7]]), PROMPT)
    assert not begins_with(torch.tensor([[1, 2, 9], [3, 4, 9], [1, 2, 8], [3, 4, 7]]), PROMPT)
    assert begins_with(PROMPT, PROMPT)


@pytest.mark.parametrize(
    "ids", [[[1, 2, 9], [3, 5, 9]], [[1], [3]], [[1, 2], [1, 2], [3, 4]], [[1, 2]]]
)
def test_other_rows_are_not_the_prompt(ids):
    assert not begins_with(torch.tensor(ids), PROMPT)


def test_nothing_begins_with_nothing():
    assert not begins_with(None, PROMPT) and not begins_with(PROMPT, None)


# --- rows that share clips

ROW = [TEXT, VIDEO, VIDEO, TEXT]


def repeats(ids, has_clips=(True,), end=0, cache=None, **arguments):
    check_repeats(locate(ids, cache, **arguments), has_clips, end)


def test_copies_of_a_row_may_share_its_clips_and_other_rows_may_not():
    repeats([ROW] * 3)
    repeats([ROW, ROW, [TEXT, VIDEO, VIDEO, 8]] * 2, has_clips=[True] * 6)
    message = "has 1 row, the forward a batch of 2 that differ in their token ids"
    with pytest.raises(ConditioningError, match=message):
        repeats([ROW, [TEXT, VIDEO, VIDEO, 8]])
    with pytest.raises(ConditioningError, match="has 2 rows, the forward a batch of 4"):
        repeats([ROW, ROW, ROW, [8, VIDEO, VIDEO, 8]], has_clips=[True, True])
    # Rows without clips may be anything.
    repeats([ROW, ROW, ROW, [8, 8, 8, 8]], has_clips=[True, False])
    repeats([ROW, [8, 8, 8, 8]], has_clips=[False])


def test_tokens_behind_the_prompt_may_differ():
    generated = [[*ROW, 7], [*ROW, 8]]
    repeats(generated, end=4)
    repeats([[7], [8]], end=4, cache=filled(4, 2))
    with pytest.raises(ConditioningError, match="token ids"):
        repeats(generated)
    with pytest.raises(ConditioningError, match="token ids"):
        repeats(generated, end=5)


def test_embeddings_without_ids_must_be_copies_too():
    embeddings = torch.randn(1, 4, 8).repeat(2, 1, 1)
    locator = TokenLocator((VIDEO,), TYPES, torch.tensor([[False, True, True, False]]))
    check_repeats(locator.locate({"inputs_embeds": embeddings}), [True], 0)
    embeddings[1, 0, 0] += 1
    with pytest.raises(ConditioningError, match="differ in their embeddings"):
        check_repeats(locator.locate({"inputs_embeds": embeddings}), [True], 0)


SAME = torch.randn(4, 6)
ENCODED = {
    "tensor": lambda first, second: torch.stack([first, second]),
    "list": lambda first, second: [first, second],
    "one piece": lambda first, second: torch.cat([first, second])[None],
}


@pytest.mark.parametrize("form", ENCODED)
def test_pictures_of_rows_that_share_clips_must_be_copies(form):
    vision = lambda second: {
        "mm_encoder_outputs": {
            "video": SimpleNamespace(pooler_output=ENCODED[form](SAME, second)),
            "image": None,
        }
    }
    repeats([ROW] * 2, **vision(SAME))
    repeats([ROW] * 2, pixel_values_videos=torch.cat([SAME, SAME]), pixel_values=None)
    for wrong in (vision(SAME + 1), {"pixel_values_videos": torch.cat([SAME, SAME + 1])}):
        with pytest.raises(ConditioningError, match="differ in their pixels"):
            repeats([ROW] * 2, **wrong)


def test_pictures_that_no_row_can_be_given_are_left_alone():
    repeats([ROW] * 2, pixel_values=torch.randn(1, 3, 4, 8))  # side by side in one picture
    repeats([ROW] * 2, pixel_values=torch.randn(3, 6))
    repeats([ROW] * 2, pixel_values=[torch.randn(2, 6), torch.randn(2, 5)])
    other = [TEXT, VIDEO, TEXT, VIDEO]
    repeats([ROW, ROW, other, other], has_clips=[True, True], pixel_values=torch.randn(4, 6))


# --- many forwards


def feed(tracker, cache, chunk):
    """Give the tracker one more chunk of a row; return its tokens' ordinals."""
    ordinal = tracker.place(locate([chunk], cache))
    grow(cache, len(chunk))
    tracker.remember(cache)
    return None if ordinal is None else ordinal[0].tolist()


@pytest.mark.parametrize(
    "chunks",
    [
        [[TEXT, VIDEO, VIDEO, TEXT, VIDEO]],
        [[TEXT], [VIDEO], [VIDEO], [TEXT, VIDEO]],
        [[TEXT, VIDEO], [VIDEO], [TEXT, VIDEO]],
    ],
)
def test_tokens_are_counted_on_over_chunks_of_any_length(chunks):
    tracker = VisualTokenTracker([3])
    cache = DynamicCache()
    ordinals = []
    for chunk in chunks:
        ordinals += feed(tracker, cache, chunk) or [-1] * len(chunk)
    assert ordinals == [-1, 0, 1, -1, 2]
    tracker.finish()
    assert feed(tracker, cache, [TEXT]) is None and tracker.forwards == len(chunks) + 1


def test_two_single_tokens_of_text_end_a_prompt_and_one_short_of_visual_tokens_is_refused():
    tracker = VisualTokenTracker([3])
    cache = DynamicCache()
    feed(tracker, cache, [TEXT, VIDEO, VIDEO])
    feed(tracker, cache, [TEXT])
    with pytest.raises(
        ConditioningError, match="Row 0: the inputs hold 2 visual tokens, the conditioning 3"
    ):
        feed(tracker, cache, [TEXT])


def test_a_single_visual_token_or_several_of_text_do_not_end_a_prompt():
    tracker = VisualTokenTracker([3])
    cache = DynamicCache()
    feed(tracker, cache, [TEXT, VIDEO])
    assert feed(tracker, cache, [VIDEO]) == [1]
    assert feed(tracker, cache, [TEXT, TEXT]) is None
    assert feed(tracker, cache, [VIDEO]) == [2]


def test_a_prompt_may_begin_with_a_single_token_of_text():
    tracker = VisualTokenTracker([1])
    cache = DynamicCache()
    assert feed(tracker, cache, [TEXT]) is None
    assert feed(tracker, cache, [VIDEO]) == [0]


def test_more_visual_tokens_than_the_conditioning_holds_are_an_error_in_the_prompt_alone():
    with pytest.raises(
        ConditioningError, match="Row 0: the inputs hold 3 visual tokens, the conditioning 2"
    ):
        feed(VisualTokenTracker([2]), DynamicCache(), [VIDEO] * 3)
    tracker = VisualTokenTracker([2])
    cache = DynamicCache()
    feed(tracker, cache, [VIDEO, VIDEO, TEXT])
    assert feed(tracker, cache, [VIDEO]) == [-1]  # generated by the host


def test_rows_without_conditioning_are_left_alone_whatever_they_hold():
    ordinal = VisualTokenTracker([1, None]).place(locate([[VIDEO, TEXT], [VIDEO, VIDEO]]))
    assert ordinal.tolist() == [[0, -1], [-1, -1]]


def test_a_batch_that_is_not_a_multiple_of_the_rows_is_refused():
    assert VisualTokenTracker([1, 2]).rows_of(6) == [0, 0, 0, 1, 1, 1]
    with pytest.raises(ConditioningError, match="has 2 rows, the forward a batch of 3"):
        VisualTokenTracker([1, 2]).rows_of(3)


def test_what_a_cache_held_before_the_conditioning_is_not_counted_and_an_error_says_so():
    tracker = VisualTokenTracker([2])
    cache = filled(3)
    assert feed(tracker, cache, [VIDEO]) == [0]
    with pytest.raises(
        ConditioningError,
        match=r"hold 1 visual tokens, the conditioning 2.* The cache held 3 positions before",
    ):
        tracker.finish()
    assert feed(tracker, cache, [TEXT, VIDEO]) == [-1, 1]
    tracker.finish()

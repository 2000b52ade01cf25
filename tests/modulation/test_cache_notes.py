"""What one cache has had of a conditioning: cropped, repeated, noted, and known again."""

import gc

import pytest
import torch
from transformers import DynamicCache

from modulate.modulation.cache_notes import (
    NOTES,
    CacheHistory,
    CacheSamples,
    histories_on,
    note_history,
)

SEEN = torch.tensor([[False, True, True, False, True], [True, True, False, False, True]])
IDS = torch.arange(10).view(2, 5)


def stream(begin=0, end=0, rows=2):
    seen = SEEN[:rows]
    return CacheHistory(1, begin, seen, seen.sum(1).tolist(), end=end, ids=IDS[:rows])


def filled(seed, length=8):
    keys = torch.randn(1, 2, length, 3, generator=torch.Generator().manual_seed(seed))
    cache = DynamicCache()
    cache.update(keys, keys, 0)
    return cache


def test_a_new_line_has_no_single_tokens_no_end_and_nothing_noted():
    new = CacheHistory(0, 0, SEEN, [3, 3])
    assert (
        new.end,
        new.ids,
        new.began_with_chunk,
        new.text_steps,
        new.clipless,
        new.rows_unknown,
    ) == (
        0,
        None,
        False,
        0,
        False,
        False,
    )
    assert (
        histories_on(DynamicCache()) == {}
        and not new.offset_note
        and "held 3 positions before" in stream(begin=3).offset_note
    )


@pytest.mark.parametrize("begin", [0, 10])
def test_a_cache_that_is_cropped_keeps_what_lies_before(begin):
    whole = stream(begin, end=begin + 7)
    assert whole.cropped(begin + 7) is whole
    assert whole.cropped(begin + 9) is whole
    less = whole.cropped(begin + 6)
    assert (less.end, less.counts) == (begin + 6, [3, 3])
    less = whole.cropped(begin + 4)
    assert (less.begin, less.end, less.counts) == (begin, 0, [2, 2])
    assert torch.equal(less.seen, SEEN[:, :4]) and torch.equal(less.ids, IDS[:, :4])
    none = stream(begin).cropped(begin + 5)
    assert none.counts == [3, 3] and none.seen.shape == (2, 5)


def test_a_cache_cropped_to_before_the_conditioning_has_nothing_of_it():
    less = stream(begin=10).cropped(4)
    assert (less.begin, less.counts, less.seen.shape, less.ids.shape) == (4, [0, 0], (2, 0), (2, 0))


def test_rows_that_are_multiplied_stay_beside_each_other():
    whole = stream()
    assert whole.resized(2, rows_alike=False) is whole
    more = whole.resized(4, rows_alike=False)
    assert (
        torch.equal(more.seen, SEEN[[0, 0, 1, 1]])
        and torch.equal(more.ids, IDS[[0, 0, 1, 1]])
        and more.counts == [3] * 4
        and not more.rows_unknown
    )


def test_a_batch_that_shrank_is_any_of_its_rows_only_where_all_are_alike():
    assert (
        stream().resized(1, rows_alike=True).rows_unknown
        and stream().resized(3, rows_alike=True).rows_unknown
    )
    same = CacheHistory(1, 0, SEEN[[1, 1]], [3, 3], ids=IDS)
    assert same.resized(1, rows_alike=False).rows_unknown
    for batch in (1, 3):
        fit = same.resized(batch, rows_alike=True)
        assert (
            not fit.rows_unknown
            and torch.equal(fit.seen, SEEN[[1] * batch])
            and fit.counts == [3] * batch
            and torch.equal(fit.ids, IDS[[0] * batch])
        )
    lost = stream().resized(1, rows_alike=False)
    assert lost.resized(2, rows_alike=True) is lost


def test_notes_of_conditionings_that_ended_are_dropped_and_others_stay():
    cache = DynamicCache()
    first = stream()
    second = stream(1)
    note_history(cache, 1, first, {1, 2})
    note_history(cache, 2, second, {1, 2})
    assert histories_on(cache) == getattr(cache, NOTES) == {1: first, 2: second}
    note_history(cache, 2, first, {2})
    assert histories_on(cache) == {2: first}


def test_a_rebuilt_cache_is_known_by_the_keys_of_its_last_visual_token():
    samples = CacheSamples()
    made = {seed: stream(rows=1) for seed in range(3)}
    for seed, one in made.items():
        samples.add(one, filled(seed))
    gc.collect()
    for seed, one in made.items():
        assert samples.find(filled(seed), 8) is one
        assert samples.find(filled(seed), 5) is one
        assert samples.find(filled(seed), 4) is None  # the token is not among them
    assert samples.find(filled(9), 8) is None
    assert samples.find(filled(1, length=4), 4) is None
    wider = DynamicCache()
    wider.update(torch.zeros(1, 3, 8, 3), torch.zeros(1, 3, 8, 3), 0)
    assert samples.find(wider, 8) is None


def test_the_last_of_two_equal_ones_is_found_and_only_so_many_are_remembered():
    samples = CacheSamples(limit=2)
    first = stream(rows=1)
    second = stream(rows=1)
    samples.add(first, filled(0))
    samples.add(second, filled(0))
    assert samples.find(filled(0), 8) is second
    samples.add(second, filled(1))
    samples.add(second, filled(2))
    assert samples.find(filled(0), 8) is None


def test_a_later_sample_of_other_shape_hides_no_earlier_one_and_a_part_that_is_equal_is_not_enough():
    samples = CacheSamples()
    first = stream(rows=1)
    second = stream(rows=1)
    samples.add(first, filled(0))
    wider = DynamicCache()
    wider.update(torch.zeros(1, 3, 8, 3), torch.zeros(1, 3, 8, 3), 0)
    samples.add(second, wider)
    assert samples.find(filled(0), 8) is first and samples.find(wider, 8) is second
    other = filled(0)
    other.layers[0].keys = other.layers[0].keys.clone()
    other.layers[0].keys[..., 0] += 1
    assert samples.find(other, 8) is None

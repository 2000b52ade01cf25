"""Histories of a cache: cropped, resized, noted on it, and recognized after it was rebuilt."""

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


def history(begin=0, end=0, rows=2):
    seen = SEEN[:rows]
    return CacheHistory(1, begin, seen, seen.sum(1).tolist(), end=end, ids=IDS[:rows])


def filled(seed, length=8):
    keys = torch.randn(1, 2, length, 3, generator=torch.Generator().manual_seed(seed))
    cache = DynamicCache()
    cache.update(keys, keys, 0)
    return cache


def test_a_new_history_has_no_text_steps_no_end_and_nothing_noted():
    new = CacheHistory(0, 0, SEEN, [3, 3])
    assert (new.end, new.ids, new.text_steps) == (0, None, 0)
    assert not (new.began_with_chunk or new.clipless or new.rows_unknown)
    assert histories_on(DynamicCache()) == {}


def test_errors_about_counts_name_what_the_cache_held_before():
    assert history().offset_note == ""
    assert "held 3 positions before" in history(begin=3).offset_note


@pytest.mark.parametrize("begin", [0, 10])
def test_a_cache_that_is_cropped_keeps_what_lies_before(begin):
    full = history(begin, end=begin + 7)
    assert full.cropped(begin + 7) is full
    assert full.cropped(begin + 9) is full
    cropped = full.cropped(begin + 6)
    assert (cropped.end, cropped.counts) == (begin + 6, [3, 3])
    cropped = full.cropped(begin + 4)
    assert (cropped.begin, cropped.end, cropped.counts) == (begin, 0, [2, 2])
    assert torch.equal(cropped.seen, SEEN[:, :4])
    assert torch.equal(cropped.ids, IDS[:, :4])
    uncropped = history(begin).cropped(begin + 5)
    assert uncropped.counts == [3, 3]
    assert uncropped.seen.shape == (2, 5)


def test_a_cache_cropped_to_before_the_conditioning_holds_nothing_of_it():
    cropped = history(begin=10).cropped(4)
    assert (cropped.begin, cropped.counts) == (4, [0, 0])
    assert cropped.seen.shape == cropped.ids.shape == (2, 0)


def test_rows_that_are_multiplied_stay_beside_each_other():
    full = history()
    assert full.resized(2, rows_alike=False) is full
    doubled = full.resized(4, rows_alike=False)
    assert torch.equal(doubled.seen, SEEN[[0, 0, 1, 1]])
    assert torch.equal(doubled.ids, IDS[[0, 0, 1, 1]])
    assert doubled.counts == [3] * 4
    assert not doubled.rows_unknown


def test_a_batch_that_shrank_may_be_any_of_its_rows_only_where_all_are_alike():
    assert (
        history().resized(1, rows_alike=True).rows_unknown
        and history().resized(3, rows_alike=True).rows_unknown
    )
    same = CacheHistory(1, 0, SEEN[[1, 1]], [3, 3], ids=IDS)
    assert same.resized(1, rows_alike=False).rows_unknown
    for batch in (1, 3):
        resized = same.resized(batch, rows_alike=True)
        assert not resized.rows_unknown
        assert torch.equal(resized.seen, SEEN[[1] * batch])
        assert resized.counts == [3] * batch
        assert torch.equal(resized.ids, IDS[[0] * batch])
    unknown = history().resized(1, rows_alike=False)
    assert unknown.resized(2, rows_alike=True) is unknown


def test_histories_of_conditionings_that_ended_are_dropped_and_others_stay():
    cache = DynamicCache()
    first = history()
    second = history(1)
    note_history(cache, 1, first, {1, 2})
    note_history(cache, 2, second, {1, 2})
    assert histories_on(cache) == getattr(cache, NOTES) == {1: first, 2: second}
    note_history(cache, 2, first, {2})
    assert histories_on(cache) == {2: first}


def test_a_rebuilt_cache_is_recognized_by_the_keys_of_its_last_visual_token():
    samples = CacheSamples()
    histories = {seed: history(rows=1) for seed in range(3)}
    for seed, sampled in histories.items():
        samples.add(sampled, filled(seed))
    gc.collect()
    for seed, sampled in histories.items():
        assert samples.find(filled(seed), 8) is sampled
        assert samples.find(filled(seed), 5) is sampled
        assert samples.find(filled(seed), 4) is None  # shorter than up to that token
    assert samples.find(filled(9), 8) is None
    assert samples.find(filled(1, length=4), 4) is None
    wider = DynamicCache()
    wider.update(torch.zeros(1, 3, 8, 3), torch.zeros(1, 3, 8, 3), 0)
    assert samples.find(wider, 8) is None


def test_the_later_of_two_equal_samples_is_found_and_only_so_many_are_kept():
    samples = CacheSamples(limit=2)
    first = history(rows=1)
    second = history(rows=1)
    samples.add(first, filled(0))
    samples.add(second, filled(0))
    assert samples.find(filled(0), 8) is second
    samples.add(second, filled(1))
    samples.add(second, filled(2))
    assert samples.find(filled(0), 8) is None


def test_a_later_sample_of_another_shape_hides_no_earlier_one_and_partly_equal_is_not_equal():
    samples = CacheSamples()
    first = history(rows=1)
    second = history(rows=1)
    samples.add(first, filled(0))
    wider = DynamicCache()
    wider.update(torch.zeros(1, 3, 8, 3), torch.zeros(1, 3, 8, 3), 0)
    samples.add(second, wider)
    assert samples.find(filled(0), 8) is first and samples.find(wider, 8) is second
    changed = filled(0)
    changed.layers[0].keys = changed.layers[0].keys.clone()
    changed.layers[0].keys[..., 0] += 1
    assert samples.find(changed, 8) is None

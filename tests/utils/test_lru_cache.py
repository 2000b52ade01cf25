"""The LRU cache: which values it stores, and which it evicts."""

from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor

from hypothesis import given
from hypothesis import strategies as st

from modulate.utils.lru_cache import LRUCache


def cache_of(limit):
    return LRUCache(limit, len)


def test_the_least_recently_used_value_is_evicted_first():
    cache = cache_of(6)
    cache.put("a", b"aa")
    cache.put("b", b"bb")
    cache.put("c", b"cc")
    assert cache.get("a") == b"aa"  # now b is the least recently used
    cache.put("d", b"dd")
    assert [cache.get(k) for k in "abcd"] == [b"aa", None, b"cc", b"dd"]


def test_a_new_value_of_a_key_replaces_the_old_one():
    cache = cache_of(6)
    cache.put("a", b"aaaa")
    cache.put("a", b"a")
    cache.put("b", b"bbbbb")
    assert (cache.get("a"), cache.get("b")) == (b"a", b"bbbbb")


def test_a_value_larger_than_the_cache_is_not_stored_and_evicts_nothing():
    cache = cache_of(3)
    cache.put("a", b"a")
    cache.put("big", b"bbbb")
    assert (cache.get("a"), cache.get("big")) == (b"a", None)
    cache.put("a", b"aaaa")
    assert cache.get("a") is None  # the old value would be wrong


def test_a_cache_of_zero_bytes_stores_nothing():
    cache = cache_of(0)
    cache.put("a", b"a")
    assert cache.get("a") is None


@given(
    st.integers(0, 12), st.lists(st.tuples(st.sampled_from("abcd"), st.none() | st.integers(0, 6)))
)
def test_it_stores_the_same_as_a_plain_list_of_uses(limit, calls):
    """The stored values are the longest tail of the uses that fits.

    A use with None is a get, any other a put of that many bytes.
    """
    cache = cache_of(limit)
    plain = OrderedDict()
    for key, size in calls:
        if size is None:
            value = cache.get(key)
            assert value == plain.get(key)
            if value is not None:
                plain.move_to_end(key)
            continue
        cache.put(key, bytes(size))
        plain.pop(key, None)
        if size <= limit:
            plain[key] = bytes(size)
        while sum(map(len, plain.values())) > limit:
            plain.popitem(last=False)


def test_it_stays_consistent_under_many_threads():
    cache = cache_of(50)

    def work(seed):
        for index in range(300):
            cache.put((seed + index) % 40, bytes(1 + index % 7))
            cache.get(index % 40)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    assert sum(len(v) for index in range(40) if (v := cache.get(index)) is not None) <= 50

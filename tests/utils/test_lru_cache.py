"""Values in memory: what is kept, what goes, and what was never there."""

from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor

from hypothesis import given
from hypothesis import strategies as st

from modulate.utils.lru_cache import LRUCache


def of_bytes(limit):
    return LRUCache(limit, len)


def test_the_least_recently_used_value_is_evicted_first():
    kept = of_bytes(6)
    kept.put("a", b"aa")
    kept.put("b", b"bb")
    kept.put("c", b"cc")
    assert kept.get("a") == b"aa"  # now b is the one used longest ago
    kept.put("d", b"dd")
    assert [kept.get(k) for k in "abcd"] == [b"aa", None, b"cc", b"dd"]


def test_a_new_value_of_a_key_replaces_the_old_one():
    kept = of_bytes(6)
    kept.put("a", b"aaaa")
    kept.put("a", b"a")
    kept.put("b", b"bbbbb")
    assert (kept.get("a"), kept.get("b")) == (b"a", b"bbbbb")


def test_a_value_larger_than_the_cache_is_not_stored_and_evicts_nothing():
    kept = of_bytes(3)
    kept.put("a", b"a")
    kept.put("big", b"bbbb")
    assert (kept.get("a"), kept.get("big")) == (b"a", None)
    kept.put("a", b"aaaa")
    assert kept.get("a") is None  # the old value would be wrong


def test_a_cache_of_zero_bytes_stores_nothing():
    kept = of_bytes(0)
    kept.put("a", b"a")
    assert kept.get("a") is None


@given(
    st.integers(0, 12), st.lists(st.tuples(st.sampled_from("abcd"), st.none() | st.integers(0, 6)))
)
def test_it_stores_the_same_as_a_plain_list_of_uses(limit, calls):
    """The longest tail of the uses that fits, counted from the last; a call with None asks, any
    other keeps that many bytes.
    """
    kept = of_bytes(limit)
    plain = OrderedDict()
    for key, size in calls:
        if size is None:
            found = kept.get(key)
            assert found == plain.get(key)
            if found is not None:
                plain.move_to_end(key)
            continue
        kept.put(key, bytes(size))
        plain.pop(key, None)
        if size <= limit:
            plain[key] = bytes(size)
        while sum(map(len, plain.values())) > limit:
            plain.popitem(last=False)


def test_it_stays_consistent_under_many_threads():
    kept = of_bytes(50)

    def work(seed):
        for i in range(300):
            kept.put((seed + i) % 40, bytes(1 + i % 7))
            kept.get(i % 40)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    assert sum(len(v) for k in range(40) if (v := kept.get(k)) is not None) <= 50

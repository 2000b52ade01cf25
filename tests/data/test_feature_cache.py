"""The cache of tensors on disk: identity, damage, eviction, and other processes."""

import copy
import hashlib
import mmap
import os
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from modulate.data import feature_cache as features_module
from modulate.data.feature_cache import FeatureCache, FeatureKey, check_frame_times, weights_digest
from modulate.data.feature_extractor import FrameCache
from modulate.data.feature_shards import StoredTensor
from modulate.errors import PluginError, StorageError, VideoError
from modulate.interfaces.frames import Frames

KEY = FeatureKey(video="ab" * 32, times=(0.0, 0.5), backbone="toy-1")


def toy(seed: int = 0, times: tuple[float, ...] = (0.1, 0.6)) -> StoredTensor:
    return StoredTensor(
        torch.randn(len(times), 3, 4, 5, generator=torch.Generator().manual_seed(seed)), times
    )


FRAMES = torch.zeros(2, 4, 6, 3, dtype=torch.uint8)


def test_the_checked_times_are_those_of_the_frames() -> None:
    assert check_frame_times(FRAMES, [0.0, 0.5]) == (0.0, 0.5)


@pytest.mark.parametrize("frames", [FRAMES.float(), FRAMES[0], FRAMES[..., :2], FRAMES[:0]])
def test_frames_that_are_not_uint8_rgb_are_refused(frames: torch.Tensor) -> None:
    with pytest.raises(
        VideoError,
        match=r"uint8 RGB of shape \(frame, height, width, 3\); got torch\.\w+ of shape \(",
    ):
        check_frame_times(frames, [0.0, 0.5])


@pytest.mark.parametrize("times", [[0.0], [0.5, 0.5], [1.0, 0.5], [0.0, float("nan")]])
def test_frames_without_increasing_times_are_refused(times: list[float]) -> None:
    with pytest.raises(
        VideoError,
        match=r"Every frame needs a time in seconds, increasing; got 2 frames and times \[",
    ):
        check_frame_times(FRAMES, times)


def test_the_digest_of_weights_depends_on_their_values_names_and_types() -> None:
    module = torch.nn.Linear(2, 1)
    torch.nn.init.ones_(module.weight)
    torch.nn.init.zeros_(module.bias)
    hashed = (
        b"bias torch.float32 (1,);"
        + bytes(4)
        + b"weight torch.float32 (1, 2);"
        + np.ones(2, np.float32).tobytes()
    )
    assert weights_digest(module) == hashlib.sha256(hashed).hexdigest()
    others = [torch.nn.Sequential(module), copy.deepcopy(module).bfloat16(), copy.deepcopy(module)]
    others[-1].weight.data[0, 1] += 1e-7
    assert len({weights_digest(m) for m in (module, *others)}) == 4


class Counter:
    def __init__(self, features: StoredTensor | None = None) -> None:
        self.calls = 0
        self.features = features or toy()

    def __call__(self) -> StoredTensor:
        self.calls += 1
        return self.features


def same(a: StoredTensor, b: StoredTensor) -> bool:
    return (
        a.coords == b.coords
        and a.values.dtype == b.values.dtype
        and torch.equal(a.values, b.values)
    )


@pytest.mark.parametrize("memory_bytes", [0, 2**20])
def test_features_are_computed_once_and_read_back_unchanged(
    tmp_path: Path, memory_bytes: int
) -> None:
    compute = Counter()
    cache = FeatureCache(tmp_path, memory_bytes=memory_bytes)
    first = cache.get_or_compute(KEY, compute)
    second = cache.get_or_compute(KEY, compute)
    later = FeatureCache(tmp_path).get_or_compute(KEY, compute)
    assert compute.calls == 1 and (cache.hits, cache.misses) == (1, 1)
    assert same(first, compute.features) and same(second, first) and same(later, first)


def mapped() -> list[str]:
    return [line for line in Path("/proc/self/maps").read_text().splitlines() if KEY.name() in line]


def test_cached_features_are_read_and_neither_mapped_nor_kept_in_memory(tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path)
    cache.get_or_compute(KEY, Counter())
    features = cache.find(KEY)
    assert features is not None and not mapped()
    assert cache._memory.get(KEY.name()) is None


def test_features_outlive_their_file_and_changing_them_does_not_change_it(
    tmp_path: Path,
) -> None:
    cache = FeatureCache(tmp_path)
    compute = Counter()
    cache.get_or_compute(KEY, compute)
    written = cache.path(KEY).read_bytes()
    one = cache.get_or_compute(KEY, compute)
    other = cache.get_or_compute(KEY, compute)
    one.values.zero_()
    assert cache.path(KEY).read_bytes() == written and same(other, compute.features)
    cache.path(KEY).unlink()
    assert same(other, compute.features) and compute.calls == 1 and cache.find(KEY) is None


def altered_in_place(path: Path, how: str) -> None:
    """Do as another process might to a file that is in use: its inode stays, and where ``how`` says
    so its time of writing.
    """
    before = path.stat()
    if how == "cut":
        os.truncate(path, before.st_size // 2)
    elif how == "emptied":
        os.truncate(path, 0)
    else:
        with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as content:
            content[-9:-1] = bytes(8) if content[-9:-1] != bytes(8) else b"\1" * 8
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + (how == "altered")))


@pytest.mark.parametrize("how", ["altered", "altered with its time kept", "cut", "emptied"])
def test_returned_values_stay_and_a_file_altered_in_place_is_detected(
    tmp_path: Path, how: str
) -> None:
    cache = FeatureCache(tmp_path)
    compute = Counter()
    cache.get_or_compute(KEY, compute)
    given = [cache.find(KEY), cache.find(KEY)]
    altered_in_place(cache.path(KEY), how)
    assert all(same(features, compute.features) for features in given)
    with pytest.warns(
        UserWarning, match=r"are damaged \(.*\); they are removed and computed again"
    ):
        assert same(cache.get_or_compute(KEY, compute), compute.features)
    assert compute.calls == 2 and same(cache.find(KEY), compute.features)


def test_cached_frames_do_not_change(tmp_path: Path) -> None:
    (tmp_path / "video").write_bytes(b"as good as any")
    images = np.arange(4 * 8 * 8 * 3, dtype=np.uint8).reshape(4, 8, 8, 3)
    frames = FrameCache(tmp_path / "frames", 2**20)
    times = (0.0, 1.0, 2.0, 3.0)
    frames(tmp_path / "video", times, lambda: Frames(images, times))
    given = frames.find(tmp_path / "video", times)
    altered_in_place(frames.store.path(frames.key(tmp_path / "video", times)), "cut")
    assert given is not None and np.array_equal(given.images, images)


def test_a_process_survives_a_file_that_is_truncated_while_it_is_read(
    tmp_path: Path,
) -> None:
    large = replace(KEY, video="large")
    values = torch.rand(8, 24, 24, 96)
    FeatureCache(tmp_path).get_or_compute(
        large, lambda: StoredTensor(values, tuple(map(float, range(8))))
    )
    code = (
        "import sys, threading, time, warnings, shutil, os, torch\nfrom pathlib import Path\nfrom"
        " dataclasses import replace\nfrom modulate.data.feature_cache import FeatureCache,"
        " FeatureKey\nwarnings.simplefilter('ignore')\nfolder, video, backbone, times ="
        " Path(sys.argv[1]), *sys.argv[2:4], tuple(map(float, sys.argv[4].split(',')))\nkey ="
        " FeatureKey(video, times, backbone)\ncache = FeatureCache(folder); path = cache.path(key);"
        " whole = path.read_bytes(); right = cache.find(key).values.clone()\nstop ="
        " threading.Event()\ndef cut():\n    while not stop.is_set():\n       "
        " path.write_bytes(whole); time.sleep(0.002); os.truncate(path, 5000) if path.exists() else"
        " None\nthreading.Thread(target=cut, daemon=True).start()\nend, seen = time.monotonic() +"
        " 1.5, 0\nwhile time.monotonic() < end:\n    found = cache.find(key)\n    if found is not"
        " None: time.sleep(0.003); assert torch.equal(found.values, right); seen += 1\nstop.set();"
        " print(seen)\n"
    )
    given = [str(tmp_path), large.video, large.backbone, ",".join(map(str, large.times))]
    done = subprocess.run(
        [sys.executable, "-c", code, *given], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0 and int(done.stdout) > 0, (done.returncode, done.stderr[-500:])


def test_a_shard_is_hashed_once_per_process_and_again_when_the_file_is_replaced(
    tmp_path: Path, monkeypatch
) -> None:
    checks = []
    checksum = features_module._checksum
    monkeypatch.setattr(
        features_module, "_checksum", lambda *a: (checks.append(a[0]), checksum(*a))[1]
    )
    cache = FeatureCache(tmp_path)
    compute = Counter()
    cache.get_or_compute(KEY, compute)
    for _ in range(3):
        cache.get_or_compute(KEY, compute)
    assert len(checks) == 2  # when written, and when first read
    FeatureCache(tmp_path).get_or_compute(KEY, compute)
    assert len(checks) == 3 and compute.calls == 1
    replaced = tmp_path / "copy"
    replaced.write_bytes(flip(cache.path(KEY).read_bytes()))
    replaced.replace(cache.path(KEY))
    with pytest.warns(UserWarning, match="checksum does not match"):
        cache.get_or_compute(KEY, compute)
    assert compute.calls == 2


def test_a_shard_under_the_name_of_another_is_detected(tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path)
    other = replace(KEY, backbone="toy-2")
    cache.get_or_compute(KEY, Counter())
    cache.path(KEY).rename(cache.path(other))
    with pytest.warns(UserWarning, match="checksum does not match"):
        assert cache.find(other) is None


def test_memory_holds_what_the_disk_does_not_take(tmp_path: Path) -> None:
    compute = Counter()
    cache = FeatureCache(tmp_path, max_bytes=0)
    first = cache.get_or_compute(KEY, compute)
    second = cache.get_or_compute(KEY, compute)
    assert compute.calls == 1 and second.values is first.values and not list(tmp_path.iterdir())


def test_memory_evicts_the_least_recently_used_entries(tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path, max_bytes=0, memory_bytes=2 * toy().values.nbytes)
    compute = Counter()
    a, b, c = (replace(KEY, backbone=n) for n in "abc")
    for key in (a, b, a, c, a):
        cache.get_or_compute(key, compute)
    assert compute.calls == 3
    cache.get_or_compute(b, compute)
    assert compute.calls == 4 and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "change",
    [
        {"video": "cd" * 32},
        {"times": (0.0, 0.5000001)},
        {"backbone": "toy-2"},
        {"dtype": "float16"},
        {"schema": 99},
    ],
)
def test_any_change_of_the_key_is_another_entry(tmp_path: Path, change: dict) -> None:
    compute = Counter()
    cache = FeatureCache(tmp_path)
    cache.get_or_compute(KEY, compute)
    cache.get_or_compute(replace(KEY, **change), compute)
    assert compute.calls == 2 and len(list(tmp_path.iterdir())) == 2


def test_an_equal_key_has_an_equal_name() -> None:
    assert FeatureKey("ab" * 32, (0.0, 0.5), "toy-1").name() == KEY.name() and len(KEY.name()) == 64


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
def test_values_have_the_key_s_dtype_from_the_first_call_on(tmp_path: Path, dtype: str) -> None:
    key = replace(KEY, dtype=dtype)
    compute = Counter()
    first = FeatureCache(tmp_path).get_or_compute(key, compute)
    second = FeatureCache(tmp_path).get_or_compute(key, compute)
    assert (
        first.values.dtype == getattr(torch, dtype) and same(first, second) and compute.calls == 1
    )


def test_an_unknown_dtype_is_refused() -> None:
    with pytest.raises(
        PluginError, match=r"kept as 'int8'; allowed: bfloat16, float16, float32, float64"
    ):
        replace(KEY, dtype="int8")


def tear(data: bytes) -> bytes:
    return data[: len(data) // 2]


def flip(data: bytes) -> bytes:
    return data[:-3] + bytes([data[-3] ^ 64]) + data[-2:]


def blank(data: bytes) -> bytes:
    return b""


def retime(data: bytes) -> bytes:
    assert b"[0.1, 0.6]" in data
    return data.replace(b"[0.1, 0.6]", b"[0.2, 0.6]")


@pytest.mark.parametrize("damage", [tear, flip, blank, retime])
def test_a_damaged_file_is_removed_with_a_warning_and_computed_again(
    tmp_path: Path, damage
) -> None:
    compute = Counter()
    cache = FeatureCache(tmp_path, memory_bytes=0)
    cache.get_or_compute(KEY, compute)
    path = cache.path(KEY)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.warns(
        UserWarning, match=rf"{KEY.name()}\.safetensors are damaged .* computed again"
    ):
        again = cache.get_or_compute(KEY, compute)
    assert compute.calls == 2 and same(again, compute.features)
    assert same(cache.get_or_compute(KEY, compute), compute.features) and compute.calls == 2


def test_a_file_that_cannot_be_opened_stays(tmp_path: Path) -> None:
    import resource

    compute = Counter()
    cache = FeatureCache(tmp_path, memory_bytes=0)
    cache.get_or_compute(KEY, compute)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    handles = list[int]()
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, limits[1]))
    try:
        with pytest.warns(
            UserWarning,
            match=(
                rf"{KEY.name()}\.safetensors cannot be opened \(.*Too many open files.*computed"
                r" again"
            ),
        ):
            while True:
                try:
                    handles.append(os.open(tmp_path, os.O_RDONLY))
                except OSError:
                    break
            assert cache.find(KEY) is None
    finally:
        for handle in handles:
            os.close(handle)
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert same(cache.get_or_compute(KEY, compute), compute.features) and compute.calls == 1


def test_the_disk_keeps_to_its_limit_and_evicts_the_least_recently_used_entries(
    tmp_path: Path,
) -> None:
    compute = Counter()
    keys = [replace(KEY, backbone=n) for n in "abcd"]
    cache = FeatureCache(tmp_path)
    for age, key in enumerate(keys[:3]):
        cache.get_or_compute(key, compute)
        os.utime(cache.path(key), (1000 + age, 1000 + age))
    size = cache.path(keys[0]).stat().st_size
    cache.get_or_compute(keys[0], compute)  # used: now the youngest
    assert cache.path(keys[0]).stat().st_mtime == 1000  # and still the file that was checked
    cache = FeatureCache(tmp_path, max_bytes=3 * size)
    cache.get_or_compute(keys[3], compute)
    assert [cache.path(k).exists() for k in keys] == [True, False, True, True]


def test_several_caches_on_one_folder_keep_to_its_limit_together(tmp_path: Path) -> None:
    size = toy().values.nbytes + 1000
    caches = [FeatureCache(tmp_path, max_bytes=64 * size) for _ in range(8)]
    for index in range(100):
        caches[index % 8].get_or_compute(replace(KEY, backbone=str(index)), Counter())
    assert (
        sum(path.stat().st_size for path in tmp_path.iterdir()) <= 80 * size
    )  # each writes a 64th of it, and one more, before it looks


def test_temporary_files_of_killed_processes_are_removed_but_recent_ones_stay(
    tmp_path: Path,
) -> None:
    old = tmp_path / ".tmpAb1xYz"
    fresh = tmp_path / ".b.safetensors.x2.partial"
    other = tmp_path / "notes.txt"
    for path in (old, fresh, other):
        path.write_bytes(b"half")
    for path in (old, other):
        os.utime(path, (1000, 1000))
    FeatureCache(tmp_path).get_or_compute(KEY, Counter())
    assert [p.exists() for p in (old, fresh, other)] == [False, True, True]


def test_a_disk_that_cannot_be_written_costs_a_warning_and_not_the_run(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    compute = Counter()
    with pytest.warns(UserWarning, match="cannot be cached in .*file"):
        assert same(FeatureCache(tmp_path / "file").get_or_compute(KEY, compute), compute.features)


def test_a_disk_that_cannot_be_written_is_reported_once_without_mentioning_space(
    tmp_path: Path,
) -> None:
    (tmp_path / "file").touch()
    cache = FeatureCache(tmp_path / "file", memory_bytes=0)
    with pytest.warns(UserWarning) as caught:
        for _ in range(3):
            cache.get_or_compute(KEY, Counter())
    assert (
        len(caught) == 1 and cache.misses == 3 and "Free some space" not in str(caught[0].message)
    )


def test_entries_dropped_because_of_the_limit_are_counted(tmp_path: Path) -> None:
    small = FeatureCache(tmp_path / "small", max_bytes=479)
    small.get_or_compute(KEY, Counter())
    bounded = FeatureCache(tmp_path / "bounded", max_bytes=3000)
    for index in range(5):
        bounded.get_or_compute(replace(KEY, video=f"v{index}"), Counter())
    assert (
        small.dropped == 1
        and bounded.dropped == 5 - len(list((tmp_path / "bounded").glob("*.safetensors"))) > 0
    )


def test_an_entry_that_the_disk_does_not_take_is_an_error_if_the_disk_is_required(
    tmp_path: Path,
) -> None:
    with pytest.raises(
        StorageError, match=r"480 bytes are not kept in .*, which may hold 479\. Raise the bound"
    ):
        FeatureCache(tmp_path, max_bytes=479, require_disk=True).get_or_compute(KEY, Counter())
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="cannot be written"):
        FeatureCache(tmp_path / "file", require_disk=True).get_or_compute(KEY, Counter())


@pytest.mark.parametrize(
    ("values", "coords"),
    [(torch.ones(2, 3), (0.0,)), (torch.ones(0, 3), ()), (torch.ones(1, 0), (0.0,))],
)
def test_a_tensor_without_values_or_of_other_coordinates_cannot_be_stored(values, coords) -> None:
    with pytest.raises(ValueError, match="one coordinate for each entry of its first axis"):
        StoredTensor(values, coords)


def test_a_file_written_for_an_earlier_release_is_still_read(tmp_path: Path) -> None:
    """Name and bytes of a shard are fixed: a change of either loses every cache in use."""
    values = torch.arange(4.0).reshape(2, 1, 1, 2)
    cache = FeatureCache(tmp_path)
    cache.get_or_compute(KEY, lambda: StoredTensor(values, (0.25, 1.5)))
    assert KEY.name() == "998cc63fd6fce946909e7762ae1acf41e56733620458f4b384b966dd6c470ae3"
    assert (
        hashlib.sha256(cache.path(KEY).read_bytes()).hexdigest()
        == "27bbc20a60e8f61b3e18b235fa7044268d84c118b4d2103ed99c1bbd747448f8"
    )


def test_many_caches_that_evict_each_other_s_files_always_return_the_right_values(
    tmp_path: Path,
) -> None:
    features = {n: toy(seed=index) for index, n in enumerate("abcdef")}

    def work(seed: int) -> bool:
        cache = FeatureCache(tmp_path, max_bytes=1500, memory_bytes=0)
        order = np.random.default_rng(seed).permutation(list("abcdef") * 4)
        return all(
            same(
                cache.get_or_compute(replace(KEY, backbone=str(n)), Counter(features[str(n)])),
                features[str(n)],
            )
            for n in order
        )

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with ThreadPoolExecutor(4) as pool:
            assert all(pool.map(work, range(4)))

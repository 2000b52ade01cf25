"""Frame features of a backbone: what backbones share in making them, alignment to a host's visual
grid by true time, and a cache on disk.

The cache holds raw features, on the backbone's own grid, under a name made from everything that
they depend on: one entry serves hosts with different grids, and nothing but a change of content
makes an entry unusable.

An entry is a safetensors shard of its own, written whole and never changed. It is read, not mapped
(:mod:`modulate.data.feature_shards`), and every read is checked: by SHA-256 when a process first
meets a file, by CRC-32 after. Why not many clips in a shard: dropping one clip would rewrite the
others, processes would have to agree on who appends, and a kill would cost all that a shard had so
far. Measured on ext4: a clip of 13.5 MiB is read in 1 to 2 ms and checked in 4 to 8 ms, at first in
8 to 20 ms; one of 0.04 MiB takes 0.1 ms together; 60 ms to look through 8,521 shards (StreamGaze's
questions).
"""

import hashlib
import itertools
import json
import os
import time
import warnings
import zlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatch
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from modulate.data import feature_shards as shards
from modulate.data.feature_shards import StoredTensor
from modulate.errors import PluginError, StorageError, VideoError
from modulate.utils.atomic_files import LEFT_BEHIND, write_atomically
from modulate.utils.lru_cache import LRUCache

SCHEMA_VERSION = 2
DTYPES = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float64": torch.float64,
    "uint8": torch.uint8,
}
_ABANDONED = (
    24 * 3600.0
)  # seconds after which a temporary file is taken to be left over from a killed process


def check_frame_times(frames: Tensor, frame_times: Sequence[float]) -> tuple[float, ...]:
    """Return the frames' times (s), having checked them and ``frames`` against each other: the
    first line of a backbone's ``forward``.

    Raises :class:`VideoError` unless ``frames`` are (frame, height, width, 3) uint8 RGB, at least
    one, with one increasing time for each.
    """
    if (
        frames.ndim != 4
        or frames.shape[-1] != 3
        or frames.dtype != torch.uint8
        or 0 in frames.shape
    ):
        raise VideoError(
            f"Frames must be uint8 RGB of shape (frame, height, width, 3); got {frames.dtype} of"
            f" shape {tuple(frames.shape)}."
        )
    times = tuple(float(t) for t in frame_times)
    if len(times) != len(frames) or any(not a < b for a, b in itertools.pairwise(times)):
        raise VideoError(
            f"Every frame needs a time in seconds, increasing; got {len(frames)} frames and times"
            f" {list(times)}."
        )
    return times


def bytes_of(value: Tensor) -> memoryview:
    """Return a tensor's bytes, for a hash."""
    return value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data


def weights_digest(module: nn.Module) -> str:
    """Return the SHA-256 (hex) of names, types, shapes and bytes of all of ``module``'s weights,
    for a backbone's ``fingerprint``.
    """
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)};".encode())
        digest.update(bytes_of(value))
    return digest.hexdigest()


@dataclass(frozen=True)
class FeatureKey:
    """Everything that raw features depend on.

    ``video``: hash of the file's content; ``times``: PTS (s) of the frames encoded; ``backbone``:
    its ``fingerprint()`` (weights, layer, preprocessing); ``dtype``: of the values kept, one of
    float32, float16, bfloat16, float64, uint8; ``schema``: layout of the cache files.
    """

    video: str
    times: tuple[float, ...]
    backbone: str
    dtype: str = "float32"
    schema: int = SCHEMA_VERSION

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise PluginError(
                f"Features cannot be kept as {self.dtype!r}; allowed: {', '.join(sorted(DTYPES))}."
            )

    def name(self) -> str:
        """Return the sha256 (hex) of the key, the name of its file."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()


class FeatureCache:
    """Raw features on disk, least recently used out first; in memory only what the disk does not
    keep. Safe for several threads and processes.

    Shards are whole or absent, the same to the byte whoever writes them, and checked whenever they
    are read; two processes that miss at the same moment both compute. ``hits`` and ``misses`` count
    this object's calls of :meth:`get_or_compute`, ``dropped`` what it left off the disk, or removed
    from it, because of ``max_bytes``.
    """

    def __init__(
        self,
        folder: str | Path,
        max_bytes: int = 50 * 2**30,
        memory_bytes: int = 2 * 2**30,
        require_disk: bool = False,
    ) -> None:
        """Keep shards in ``folder`` (made when needed), at most ``max_bytes`` there and
        ``memory_bytes`` of values in memory; 0 turns off.

        ``require_disk``: what the disk does not take is a :class:`StorageError` instead of a warning
        and a place in memory.
        """
        self.folder = Path(folder)
        self.max_bytes = max_bytes
        self.require_disk = require_disk
        self.hits = 0
        self.misses = 0
        self.dropped = 0
        self._said = False  # that the disk cannot be written
        self._until_look = 0  # bytes that may still be written before the folder is looked through
        self._memory: LRUCache[str, StoredTensor] = LRUCache(
            memory_bytes, lambda stored: stored.values.nbytes
        )
        self._checked: dict[
            str, tuple[tuple[int, int, int], int]
        ] = {}  # shard → the file found to be what was written, and its CRC-32

    def get_or_compute(self, key: FeatureKey, compute: Callable[[], StoredTensor]) -> StoredTensor:
        """Return the tensor of ``key``: those kept, or from ``compute`` and then kept.

        Values are on the CPU in ``key.dtype``, the same whether computed or kept; they may be
        shared, so never write into them. A disk that cannot be written costs a warning, once, not
        the run, unless ``require_disk``.
        """
        found = self.find(key)
        if found is not None:
            self.hits += 1
            return found
        self.misses += 1
        fresh = compute()
        values = fresh.values.detach().to("cpu", DTYPES[key.dtype]).contiguous()
        made = StoredTensor(values, tuple(float(coord) for coord in fresh.coords))
        if not self._written(key, made):
            self._memory.put(key.name(), made)
        return made

    def find(self, key: FeatureKey) -> StoredTensor | None:
        """Return the tensor of ``key`` if they are kept, now used last; None otherwise.

        Those on disk are read into memory of their own: whatever becomes of the file, and whoever
        writes into it, they stay as they are. A shard that is torn or altered is removed with a
        warning.
        """
        name = key.name()
        path = self.path(key)
        file_now = _identity(path)
        if file_now is None:
            return self._memory.get(name)
        try:
            data = shards.content(path)
            note, values = shards.parsed(data)
            times = tuple(float(t) for t in note["times"])
            crc = zlib.crc32(data)
            if self._checked.get(name) != (file_now, crc):
                if note["checksum"] != _checksum(name, values, times):
                    raise ValueError("its checksum does not match")
                self._checked[name] = file_now, crc
        except (OSError, RuntimeError, ValueError, TypeError, KeyError) as error:
            if _identity(path) == file_now:  # else another process dropped or replaced it meanwhile
                _discard(path, error)
            return self._memory.get(name)
        _touch(path, file_now[-1])
        return StoredTensor(values, times)

    def path(self, key: FeatureKey) -> Path:
        """Return where the features of ``key`` are, or would be, on disk."""
        return self.folder / f"{key.name()}.safetensors"

    def _written(self, key: FeatureKey, stored: StoredTensor) -> bool:
        """Write a shard, and make room for it; return whether the disk took it."""
        path = self.path(key)
        size = stored.values.nbytes
        # One entry: safetensors writes several in an order that differs from process to process.
        note = {
            "key": asdict(key),
            "times": stored.coords,
            "checksum": _checksum(key.name(), stored.values, stored.coords),
        }
        notes = {"modulate": json.dumps(note, sort_keys=True)}
        try:
            if size > self.max_bytes:
                if self.require_disk:
                    raise StorageError(
                        f"Features of {size} bytes are not kept in {self.folder}, which may hold"
                        f" {self.max_bytes}. Raise the bound in the recipe's `features`."
                    )
                self.dropped += 1
                return False
            write_atomically(
                path, lambda temporary: save_file({"values": stored.values}, temporary, notes)
            )
            self._until_look -= size + len(notes["modulate"])
            if (
                self._until_look <= 0
            ):  # looking through the folder costs more than a write, so not after every one
                room = self.max_bytes - self._evict()
                self._until_look = min(
                    room // 4, self.max_bytes // 64
                )  # others write there as well
        except (OSError, SafetensorError) as error:
            if self.require_disk:
                raise
            if not self._said:
                self._said = True
                why = str(error.__cause__ or error).rstrip(".")
                warnings.warn(
                    f"Features cannot be cached in {self.folder} ({why}); they will be computed"
                    " again next time.",
                    stacklevel=3,
                )
            return False
        return True

    def _evict(self) -> int:
        """Remove the files used longest ago until ``max_bytes`` is kept, and temporary files that a
        killed process left; return what is kept.
        """
        files: list[tuple[float, int, Path]] = []
        for entry in os.scandir(self.folder):
            try:
                stat = entry.stat()
            except FileNotFoundError:  # another process dropped or renamed it meanwhile
                continue
            if entry.name.endswith(".safetensors"):
                files.append((stat.st_atime, stat.st_size, Path(entry.path)))
            elif (
                any(fnmatch(entry.name, pattern) for pattern in LEFT_BEHIND)
                and time.time() - stat.st_mtime > _ABANDONED
            ):
                Path(entry.path).unlink(missing_ok=True)
        total = sum(size for _, size, _ in files)
        for _, size, path in sorted(files):
            if total <= self.max_bytes:
                break
            path.unlink(missing_ok=True)
            self.dropped += 1
            total -= size
        return total


def _identity(path: Path) -> tuple[int, int, int] | None:
    """Return what tells a file from one that was written in its place: inode, size, time of writing
    (ns); None when there is none.
    """
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_ino, stat.st_size, stat.st_mtime_ns


def _discard(path: Path, error: Exception) -> None:
    """Remove a shard that is not what was written; one that cannot be opened, for want of handles
    or rights, may be whole, and stays.
    """
    try:
        path.open("rb").close()
    except OSError as refusal:
        warnings.warn(
            f"The cached features in {path} cannot be opened ({refusal}); they are computed again.",
            stacklevel=4,
        )
    else:
        warnings.warn(
            f"The cached features in {path} are damaged ({error}); they are removed and computed"
            " again.",
            stacklevel=4,
        )
        path.unlink(missing_ok=True)


def _touch(path: Path, written: int) -> None:
    """Mark ``path``, ``written`` then (ns), as used now; a file that is gone, or a folder that is
    read-only, is no error.

    By the time of access: the time of writing tells whether it is still the file that was checked.
    """
    try:
        os.utime(path, ns=(time.time_ns(), written))
    except OSError:
        return


def _checksum(name: str, values: Tensor, times: tuple[float, ...]) -> str:
    """Return the sha256 (hex) of the shard's name, the values' dtype, shape and bytes, and the
    times.
    """
    digest = hashlib.sha256(
        json.dumps([name, str(values.dtype), list(values.shape), list(times)]).encode()
    )
    digest.update(bytes_of(values))
    return digest.hexdigest()

"""A cache of tensors on disk: raw features, decoded frames, vision-tower outputs.

An entry's file name is the hash of everything that its content depends on, so that entries never
become stale. Features are cached on the backbone's own grid: one entry serves hosts with different
visual grids.

Each entry is a safetensors file of its own (a shard), written whole and never changed. Every read
is checked: by SHA-256 when a process first reads a file, by CRC-32 later. With many clips in one
shard, evicting a clip would rewrite the others, processes would have to agree on who appends, and a
kill would lose all that a shard had so far.

Measured on ext4: a clip of 13.5 MiB is read in 1 to 2 ms and checked in 4 to 8 ms (8 to 20 ms the
first time); one of 0.04 MiB takes 0.1 ms together; scanning a folder of 8,521 shards (the questions
of StreamGaze) takes 60 ms.
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
"""Data types of cached values, by name."""

# Seconds after which a temporary file counts as left behind by a killed process.
_ABANDONED = 24 * 3600.0

FileIdentity = tuple[int, int, int]
"""Inode, size in bytes, and modification time (ns) of a file."""


def check_frame_times(frames: Tensor, frame_times: Sequence[float]) -> tuple[float, ...]:
    """Return the frames' times (s); a backbone's ``forward`` should begin with this check.

    Raises :class:`VideoError` unless ``frames`` is (frame, height, width, 3) uint8 RGB with at
    least one frame, and every frame has a time, in increasing order.
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
    times = tuple(float(time) for time in frame_times)
    increasing = all(earlier < later for earlier, later in itertools.pairwise(times))
    if len(times) != len(frames) or not increasing:
        raise VideoError(
            f"Every frame needs a time in seconds, increasing; got {len(frames)} frames and times"
            f" {list(times)}."
        )
    return times


def bytes_of(value: Tensor) -> memoryview:
    """Return a tensor's bytes, for hashing."""
    return value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data


def weights_digest(module: nn.Module) -> str:
    """Return the SHA-256 (hex) of the names, types, shapes and bytes of a module's weights.

    For a backbone's ``fingerprint``.
    """
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)};".encode())
        digest.update(bytes_of(value))
    return digest.hexdigest()


@dataclass(frozen=True)
class FeatureKey:
    """Everything that a cached tensor depends on.

    Attributes:
        video: hash of the file's content.
        times: presentation times (s) of the encoded frames.
        backbone: the backbone's ``fingerprint()``: weights, layer, preprocessing.
        dtype: data type of the cached values, one of :data:`DTYPES`.
        schema: version of the cache's files.
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
        """Return the SHA-256 (hex) of the key, which is the name of its file."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()


class FeatureCache:
    """Tensors on disk, with the least recently used evicted first.

    Safe for several threads and processes: shards are whole or absent, equal to the byte whoever
    writes them, and checked whenever they are read. Two processes that miss an entry at the same
    time both compute it. Memory holds only entries that the disk does not take.

    Attributes:
        hits: calls of :meth:`get_or_compute` that found an entry.
        misses: calls that computed one.
        dropped: entries not written, or evicted, because of ``max_bytes``.
    """

    def __init__(
        self,
        folder: str | Path,
        max_bytes: int = 50 * 2**30,
        memory_bytes: int = 2 * 2**30,
        require_disk: bool = False,
    ) -> None:
        """Open the cache in ``folder``, which is created when needed.

        Args:
            folder: holds the shards.
            max_bytes: size limit of the shards; 0 keeps none on disk.
            memory_bytes: size limit of entries in memory; 0 keeps none.
            require_disk: raise :class:`StorageError` if the disk does not take an entry, instead of
                warning and keeping it in memory.
        """
        self.folder = Path(folder)
        self.max_bytes = max_bytes
        self.require_disk = require_disk
        self.hits = 0
        self.misses = 0
        self.dropped = 0
        self._has_warned = False
        # Scanning the folder costs more than writing a shard, and other processes write there too.
        # So it is scanned only after this many more bytes.
        self._bytes_until_scan = 0
        self._memory: LRUCache[str, StoredTensor] = LRUCache(
            memory_bytes, lambda stored: stored.values.nbytes
        )
        # Files whose SHA-256 matched, with their CRC-32, by name of the shard.
        self._verified: dict[str, tuple[FileIdentity, int]] = {}

    def get_or_compute(self, key: FeatureKey, compute: Callable[[], StoredTensor]) -> StoredTensor:
        """Return the entry of ``key``, from the cache or from ``compute``.

        Values are on the CPU in ``key.dtype``, whether cached or computed. They may be shared, so
        never modify them. If the disk cannot be written, one warning is issued, unless
        ``require_disk``.
        """
        cached = self.find(key)
        if cached is not None:
            self.hits += 1
            return cached
        self.misses += 1
        computed = compute()
        values = computed.values.detach().to("cpu", DTYPES[key.dtype]).contiguous()
        entry = StoredTensor(values, tuple(float(coord) for coord in computed.coords))
        if not self._write(key, entry):
            self._memory.put(key.name(), entry)
        return entry

    def find(self, key: FeatureKey) -> StoredTensor | None:
        """Return the entry of ``key``, marked as used most recently, or None if there is none.

        Values are in private memory: later changes to the file do not affect them. A truncated or
        altered shard is removed with a warning.
        """
        name = key.name()
        path = self.path(key)
        identity = _identity(path)
        if identity is None:
            return self._memory.get(name)
        try:
            entry = self._read(name, path, identity)
        except (OSError, RuntimeError, ValueError, TypeError, KeyError) as error:
            # If the identity has changed, another process has evicted or replaced the file while it
            # was read, and nothing is wrong with it.
            if _identity(path) == identity:
                _discard(path, error)
            return self._memory.get(name)
        _touch(path, identity[-1])
        return entry

    def _read(self, name: str, path: Path, identity: FileIdentity) -> StoredTensor:
        """Return the content of a shard; raise ValueError if its checksum does not match."""
        data = shards.read_bytes(path)
        note, values = shards.parse_shard(data)
        coords = tuple(float(coord) for coord in note["times"])
        crc = zlib.crc32(data)
        # CRC-32 is several times faster, but only tells that a file is still the one whose SHA-256
        # was checked.
        if self._verified.get(name) != (identity, crc):
            if note["checksum"] != _checksum(name, values, coords):
                raise ValueError("its checksum does not match")
            self._verified[name] = identity, crc
        return StoredTensor(values, coords)

    def remove(self, key: FeatureKey) -> None:
        """Remove the entry of ``key``, if there is one, from disk and memory."""
        self.path(key).unlink(missing_ok=True)
        self._memory.discard(key.name())

    def path(self, key: FeatureKey) -> Path:
        """Return the file of the entry of ``key``, which need not exist."""
        return self.folder / f"{key.name()}.safetensors"

    def _write(self, key: FeatureKey, entry: StoredTensor) -> bool:
        """Write a shard, and evict others if needed; return whether it is on disk."""
        size = entry.values.nbytes
        if size > self.max_bytes:
            if self.require_disk:
                raise StorageError(
                    f"Features of {size} bytes are not kept in {self.folder}, which may hold"
                    f" {self.max_bytes}. Raise the bound in the recipe's `features`."
                )
            self.dropped += 1
            return False
        metadata = _metadata(key, entry)
        try:
            write_atomically(
                self.path(key),
                lambda temporary: save_file({"values": entry.values}, temporary, metadata),
            )
            self._bytes_until_scan -= size + len(metadata["modulate"])
            if self._bytes_until_scan <= 0:
                room = self.max_bytes - self._evict()
                self._bytes_until_scan = min(room // 4, self.max_bytes // 64)
        except (OSError, SafetensorError) as error:
            if self.require_disk:
                raise
            self._warn_once(error)
            return False
        return True

    def _warn_once(self, error: Exception) -> None:
        if self._has_warned:
            return
        self._has_warned = True
        reason = str(error.__cause__ or error).rstrip(".")
        warnings.warn(
            f"Features cannot be cached in {self.folder} ({reason}); they will be computed again"
            " next time.",
            stacklevel=4,
        )

    def _evict(self) -> int:
        """Remove the least recently used shards until ``max_bytes`` remain; return what remains.

        Temporary files left behind by killed processes are removed too.
        """
        files: list[tuple[float, int, Path]] = []
        for entry in os.scandir(self.folder):
            try:
                stat = entry.stat()
            except FileNotFoundError:  # another process has removed or renamed it meanwhile
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


def _metadata(key: FeatureKey, entry: StoredTensor) -> dict[str, str]:
    # A single value: safetensors writes several in an order that differs between processes, and
    # shards must be equal to the byte.
    note = {
        "key": asdict(key),
        "times": entry.coords,
        "checksum": _checksum(key.name(), entry.values, entry.coords),
    }
    return {"modulate": json.dumps(note, sort_keys=True)}


def _identity(path: Path) -> FileIdentity | None:
    """Return inode, size and modification time (ns) of a file, or None if there is no file.

    A file written in its place differs in at least one of them.
    """
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_ino, stat.st_size, stat.st_mtime_ns


def _discard(path: Path, error: Exception) -> None:
    """Remove a damaged shard.

    A shard that cannot be opened, for lack of file handles or permissions, may be intact, and
    stays.
    """
    try:
        path.open("rb").close()
    except OSError as open_error:
        warnings.warn(
            f"The cached features in {path} cannot be opened ({open_error}); they are computed"
            " again.",
            stacklevel=4,
        )
    else:
        warnings.warn(
            f"The cached features in {path} are damaged ({error}); they are removed and computed"
            " again.",
            stacklevel=4,
        )
        path.unlink(missing_ok=True)


def _touch(path: Path, modified: int) -> None:
    """Set the access time of ``path`` to now, for eviction, and keep its modification time (ns).

    The modification time is part of the file's identity. A file that is gone, or a read-only
    folder, is no error.
    """
    try:
        os.utime(path, ns=(time.time_ns(), modified))
    except OSError:
        return


def _checksum(name: str, values: Tensor, coords: tuple[float, ...]) -> str:
    """Return the SHA-256 (hex) of a shard's name, data type, shape, coordinates and bytes."""
    header = json.dumps([name, str(values.dtype), list(values.shape), list(coords)])
    digest = hashlib.sha256(header.encode())
    digest.update(bytes_of(values))
    return digest.hexdigest()

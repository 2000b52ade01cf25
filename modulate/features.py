"""Frame features of a backbone: what backbones share in making them, alignment to a host's visual grid by true time, and a cache on disk.

The cache holds raw features, on the backbone's own grid, under a name made from everything that they depend on: one entry serves hosts
with different grids, and nothing but a change of content makes an entry unusable.
"""

import hashlib
import itertools
import json
import os
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.functional import interpolate

from modulate.clips import FrameStore
from modulate.components import FrameFeatures
from modulate.errors import PluginError, VideoError
from modulate.files import LEFT_BEHIND, content_hash, write_atomically
from modulate.grid import VisualGrid
from modulate.recent import Recent
from modulate.video import Frames

SCHEMA_VERSION = 1
_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16, "float64": torch.float64, "uint8": torch.uint8}
_ABANDONED = 24 * 3600.0  # seconds after which a temporary file is taken to be left over from a killed process


def checked_times(frames: Tensor, frame_times: Sequence[float]) -> tuple[float, ...]:
    """Return the frames' times (s), having checked them and ``frames`` against each other: the first line of a backbone's ``forward``.

    Raises :class:`VideoError` unless ``frames`` are (frame, height, width, 3) uint8 RGB, at least one, with one increasing time for each.
    """
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != torch.uint8 or 0 in frames.shape:
        raise VideoError(f"Frames must be uint8 RGB of shape (frame, height, width, 3); got {frames.dtype} of shape {tuple(frames.shape)}.")
    times = tuple(float(t) for t in frame_times)
    if len(times) != len(frames) or any(not a < b for a, b in itertools.pairwise(times)):
        raise VideoError(f"Every frame needs a time in seconds, increasing; got {len(frames)} frames and times {list(times)}.")
    return times


def weights_digest(module: nn.Module) -> str:
    """Return the SHA-256 (hex) of names, types, shapes and bytes of all of ``module``'s weights, for a backbone's ``fingerprint``."""
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)};".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def align(features: FrameFeatures, grid: VisualGrid, by: Literal["time", "index"] = "time") -> Float[Tensor, "step token d_features"]:
    """Bring features onto the host's grid; float32, on the features' device.

    Linear in time between the features' times, read at ``grid.times`` and held before the first and after the last; bilinear in space,
    pixel centres matched (align_corners=False), smoothed where the grid is coarser. Tokens run row by row. ``by`` "index": the features' time
    axis is stretched over the steps as space is, whatever their times (only to compare with code that does so).

    Raises :class:`PluginError` when the features' shape and times contradict each other.
    """
    _check(features)
    values = features.values
    times = torch.tensor(features.times, dtype=torch.float64)
    asked = torch.tensor(grid.times, dtype=torch.float64)
    if by == "index":
        asked = (torch.arange(grid.steps, dtype=torch.float64) + 0.5) * len(times) / grid.steps - 0.5
        times = torch.arange(len(times), dtype=torch.float64)
    asked = asked.clamp(times[0], times[-1])
    after = torch.searchsorted(times, asked).clamp(max=len(times) - 1)
    before = (after - 1).clamp(min=0)
    length = times[after] - times[before]
    weight = torch.where(length > 0, (asked - times[before]) / length.clamp(min=torch.finfo(torch.float64).tiny), 0.0)
    fraction = weight.to(values.device, torch.float32)[:, None, None, None]
    before, after = before.to(values.device), after.to(values.device)
    mixed = values[before].float() * (1 - fraction) + values[after].float() * fraction
    rows, cols = values.shape[1:3]
    if (rows, cols) != (grid.rows, grid.cols):
        shrinking = grid.rows < rows or grid.cols < cols
        planes = mixed.permute(0, 3, 1, 2)
        planes = interpolate(planes, (grid.rows, grid.cols), mode="bilinear", align_corners=False, antialias=shrinking)
        mixed = planes.permute(0, 2, 3, 1)
    return mixed.reshape(grid.steps, grid.tokens_per_step, -1)


def _check(features: FrameFeatures) -> None:
    """Raise :class:`PluginError` unless values are (time, row, col, d) with one increasing time for each time index."""
    shape, times = tuple(features.values.shape), features.times
    if len(shape) != 4 or 0 in shape or len(times) != shape[0]:
        raise PluginError(f"A backbone's features must be (time, row, col, d_features) with a time each; got shape {shape} and {len(times)} times.")
    if any(not b > a for a, b in itertools.pairwise(times)):
        raise PluginError(f"A backbone's feature times must increase; got {list(times)}.")


@dataclass(frozen=True)
class FeatureKey:
    """Everything that raw features depend on.

    ``video``: hash of the file's content; ``times``: PTS (s) of the frames encoded; ``backbone``: its ``fingerprint()`` (weights, layer,
    preprocessing); ``dtype``: of the values kept, one of float32, float16, bfloat16, float64, uint8; ``schema``: layout of the cache files.
    """

    video: str
    times: tuple[float, ...]
    backbone: str
    dtype: str = "float32"
    schema: int = SCHEMA_VERSION

    def __post_init__(self) -> None:
        if self.dtype not in _DTYPES:
            raise PluginError(f"Features cannot be kept as {self.dtype!r}; allowed: {', '.join(sorted(_DTYPES))}.")

    def name(self) -> str:
        """Return the sha256 (hex) of the key, the name of its file."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()


class FeatureCache:
    """Raw features on disk, least recently used out first, with the latest also in memory. Safe for several threads and processes.

    Files are whole or absent, and checked by a checksum when read; two processes that miss at the same moment both compute. ``hits`` and
    ``misses`` count this object's calls.
    """

    def __init__(self, folder: str | Path, max_bytes: int = 50 * 2**30, memory_bytes: int = 2 * 2**30) -> None:
        """Keep files in ``folder`` (made when needed), at most ``max_bytes`` there and ``memory_bytes`` of values in memory; 0 turns off."""
        self.folder, self.max_bytes = Path(folder), max_bytes
        self.hits = 0
        self.misses = 0
        self._until_look = 0  # bytes that may still be written before the folder is looked through
        self._memory: Recent[str, FrameFeatures] = Recent(memory_bytes, lambda features: features.values.nbytes)

    def get_or_compute(self, key: FeatureKey, compute: Callable[[], FrameFeatures]) -> FrameFeatures:
        """Return the features of ``key``: from memory, from disk, or from ``compute`` and then kept.

        Values are on the CPU in ``key.dtype``, the same whether computed or kept; they are shared, so never write into them. A file that
        is torn or altered is removed with a warning and computed again; a disk that cannot be written costs a warning, not the run.
        """
        name = key.name()
        found = self._recall(name) or self._read(name)
        if found is not None:
            self.hits += 1
            self._memory.put(name, found)
            return found
        self.misses += 1
        fresh = compute()
        _check(fresh)
        values = fresh.values.detach().to("cpu", _DTYPES[key.dtype]).contiguous()
        kept = FrameFeatures(values, tuple(float(t) for t in fresh.times))
        self._write(name, kept, key)
        self._memory.put(name, kept)
        return kept

    def path(self, key: FeatureKey) -> Path:
        """Return where the features of ``key`` are, or would be, on disk."""
        return self._path(key.name())

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.safetensors"

    def _recall(self, name: str) -> FrameFeatures | None:
        """Return what memory holds, and mark its file as used so that the disk does not drop what is in daily use."""
        found = self._memory.get(name)
        if found is not None:
            _touch(self._path(name))
        return found

    def _read(self, name: str) -> FrameFeatures | None:
        path = self._path(name)
        if not path.is_file():
            return None
        try:
            with safe_open(path, framework="pt") as file:
                notes = file.metadata() or {}
                values = file.get_tensor("values").clone()
            times = tuple(float(t) for t in json.loads(notes["times"]))
            if notes["checksum"] != _checksum(values, times):
                raise ValueError("its checksum does not match")
        except (OSError, RuntimeError, SafetensorError, ValueError, TypeError, KeyError) as error:
            if not path.exists():  # another process dropped it meanwhile, which safetensors may call a RuntimeError
                return None
            warnings.warn(f"The cached features in {path} are damaged ({error}); they are removed and computed again.", stacklevel=3)
            path.unlink(missing_ok=True)
            return None
        _touch(path)
        return FrameFeatures(values, times)

    def _write(self, name: str, features: FrameFeatures, key: FeatureKey) -> None:
        if features.values.nbytes > self.max_bytes:
            return
        notes = {"times": json.dumps(features.times), "checksum": _checksum(features.values, features.times), "key": json.dumps(asdict(key))}
        try:
            write_atomically(self._path(name), lambda path: save_file({"values": features.values}, path, notes))
            self._until_look -= features.values.nbytes
            if self._until_look <= 0:  # looking through the folder costs more than a write, so not after every one
                self._until_look = (self.max_bytes - self._evict()) // 4
        except (OSError, SafetensorError) as error:
            warnings.warn(f"Features cannot be cached in {self.folder} ({error}); they will be computed again next time.", stacklevel=3)

    def _evict(self) -> int:
        """Remove the files used longest ago until ``max_bytes`` is kept, and temporary files that a killed process left; return what is kept."""
        files: list[tuple[float, int, Path]] = []
        for entry in os.scandir(self.folder):
            try:
                stat = entry.stat()
            except FileNotFoundError:  # another process dropped or renamed it meanwhile
                continue
            if entry.name.endswith(".safetensors"):
                files.append((stat.st_mtime, stat.st_size, Path(entry.path)))
            elif any(fnmatch(entry.name, pattern) for pattern in LEFT_BEHIND) and time.time() - stat.st_mtime > _ABANDONED:
                Path(entry.path).unlink(missing_ok=True)
        total = sum(size for _, size, _ in files)
        for _, size, path in sorted(files):
            if total <= self.max_bytes:
                break
            path.unlink(missing_ok=True)
            total -= size
        return total


def frame_store(folder: Path, max_bytes: int) -> FrameStore:
    """Return a store of decoded frames in ``folder``, at most ``max_bytes``: (video, times, decode) → the frames, decoded only when they are not there.

    They are kept as features are, under the content of the video and the times asked for, and checked when read.
    """
    cache = FeatureCache(folder, max_bytes, memory_bytes=0)

    def frames(video: Path, times: Sequence[float], decode: Callable[[], Frames]) -> Frames:
        def compute() -> FrameFeatures:
            found = decode()
            return FrameFeatures(torch.from_numpy(found.images), found.times)

        found = cache.get_or_compute(FeatureKey(content_hash(video), tuple(times), "frames", "uint8"), compute)
        return Frames(found.values.numpy(), found.times)

    return frames


def _touch(path: Path) -> None:
    """Mark ``path`` as used now; a file that is gone, or a folder that is read-only, is no error."""
    try:
        os.utime(path)
    except OSError:
        return


def _checksum(values: Tensor, times: tuple[float, ...]) -> str:
    """Return the sha256 (hex) of the values' bytes, dtype and shape, and the times."""
    digest = hashlib.sha256(json.dumps([str(values.dtype), list(values.shape), list(times)]).encode())
    digest.update(values.contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()

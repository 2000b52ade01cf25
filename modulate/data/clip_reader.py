"""Reading of clips' frames, with each video decoded once for all its clips."""

import json
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from modulate.data.video import probe, read_frames, read_frames_at
from modulate.errors import MissingFileError, VideoError
from modulate.interfaces.frames import Frames
from modulate.utils.atomic_files import content_hash, write_json
from modulate.utils.lru_cache import LRUCache
from modulate.utils.safe_load import read_json

FrameStore = Callable[[Path, Sequence[float], Callable[[], Frames]], Frames]
"""(video, times, decode) → the frames at these times: stored ones, or those of ``decode()``."""


class ClipReader:
    """Reads clips' frames. The expected frames of a video are decoded together.

    The most recently used videos stay in memory.

    Args:
        memory_bytes: size limit of all videos in memory.
        store: keeps clips' frames on disk, so that later epochs and runs decode nothing
            (:class:`modulate.data.feature_extractor.FrameCache`).
        video_bytes: size limit of the frames of one video; larger videos are decoded clip by clip.
            By default an eighth of ``memory_bytes``, since a long video would evict all others.
    """

    def __init__(
        self,
        memory_bytes: int = 512 << 20,
        store: FrameStore | None = None,
        video_bytes: int | None = None,
    ) -> None:
        self._store = store
        self._video_bytes = memory_bytes // 8 if video_bytes is None else video_bytes
        self._expected: dict[Path, set[float]] = {}
        # Frames of a video, and the index of the frame shown at each time.
        self._decoded: LRUCache[Path, tuple[Frames, dict[float, int]]] = LRUCache(
            memory_bytes, lambda decoded: decoded[0].images.nbytes
        )

    def expect(self, video: Path, times: Sequence[float]) -> None:
        """Announce times (s) at which frames of ``video`` will be read."""
        self._expected.setdefault(video, set()).update(times)

    def read(self, video: Path, times: Sequence[float]) -> Frames:
        """Return the frames shown at ``times`` (s).

        Frames and errors are those of :func:`modulate.data.video.read_frames`.
        """
        if self._store is None or not video.is_file():
            return self._decode(video, times)
        return self._store(video, times, lambda: self._decode(video, times))

    def _decode(self, video: Path, times: Sequence[float]) -> Frames:
        decoded = self._decoded.get(video)
        if decoded is None or not decoded[1].keys() >= set(times):
            wanted = self._expected.get(video, set()) | set(times)
            info = probe(video)
            if len(wanted) * info.width * info.height * 3 > self._video_bytes:
                return read_frames(video, times)
            try:
                decoded = read_frames_at(video, sorted(wanted))
            # One of the other clips may lie beyond the end. That clip fails when it is read itself.
            except VideoError:
                return read_frames(video, times)
            self._decoded.put(video, decoded)
        frames, index_at = decoded
        chosen = sorted({index_at[time] for time in times})
        return Frames(frames.images[chosen], tuple(frames.times[index] for index in chosen))


class ShownTimes:
    """Notes of the presentation times of clips' frames.

    With them the cache key of a clip's features is known without decoding the clip again. A wrong
    note does no harm: it leads to a key without an entry.

    ``folder``: holds a JSON file for each video, named by the hash of its content.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def find(self, video: Path, times: Sequence[float]) -> tuple[float, ...] | None:
        """Return the presentation times (s) of the frames shown at ``times``, if noted.

        Raises :class:`MissingFileError`.
        """
        shown = self._read(self._path(video)).get(json.dumps(list(times)))
        return None if shown is None else tuple(shown)

    def note(self, video: Path, times: Sequence[float], shown: Sequence[float]) -> None:
        """Note that ``video`` shows frames with presentation times ``shown`` at ``times``.

        A note that another process writes at the same time may be lost. Raises
        :class:`StorageError`.
        """
        path = self._path(video)
        notes = self._read(path) | {json.dumps(list(times)): list(shown)}
        write_json(path, dict(sorted(notes.items())))

    def _path(self, video: Path) -> Path:
        return self.folder / f"{content_hash(video)}.json"

    def _read(self, path: Path) -> dict[str, list[float]]:
        try:
            notes = read_json(path)
            if not (isinstance(notes, dict) and all(map(_are_times, notes.values()))):
                raise ValueError("it holds something other than times")
        except MissingFileError:
            return {}
        except ValueError as error:  # includes DataError
            warnings.warn(
                f"The notes in {path} are damaged ({error}); these clips are decoded again.",
                stacklevel=4,
            )
            return {}
        return notes


def _are_times(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(time, float) for time in value)

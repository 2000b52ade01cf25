"""Frames of clips, read so that a video with many questions is decoded once."""

import json
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

from modulate.data.video import probe, read_frames, read_frames_at
from modulate.errors import MissingFileError, VideoError
from modulate.interfaces.frames import Frames
from modulate.utils.atomic_files import content_hash, write_json
from modulate.utils.lru_cache import LRUCache
from modulate.utils.safe_load import read_json

FrameStore = Callable[[Path, Sequence[float], Callable[[], Frames]], Frames]
"""(video, times, decode) → the frames shown at these times: kept ones, or what ``decode()``
returns.
"""


class ClipReader:
    """Reads clips' frames, all that are expected of a video in one go while they fit into
    ``video_bytes``; videos used last are kept, in ``memory_bytes``.

    ``store``: keeps clips' frames on disk (:class:`modulate.data.feature_extractor.FrameCache`), so
    that a later epoch, or run, decodes nothing. ``video_bytes``: by default an eighth of
    ``memory_bytes``, since a long or large video would push all others out.
    """

    def __init__(
        self,
        memory_bytes: int = 512 << 20,
        store: FrameStore | None = None,
        video_bytes: int | None = None,
    ) -> None:
        self._store = store
        self._most = memory_bytes // 8 if video_bytes is None else video_bytes
        self._expected: dict[Path, set[float]] = {}
        self._kept: LRUCache[Path, tuple[Frames, dict[float, int]]] = LRUCache(
            memory_bytes, lambda found: found[0].images.nbytes
        )

    def expect(self, video: Path, times: Sequence[float]) -> None:
        """Note that these frames will be asked for."""
        self._expected.setdefault(video, set()).update(times)

    def read(self, video: Path, times: Sequence[float]) -> Frames:
        """Return the frames shown at ``times``; exactly what
        :func:`modulate.data.video.read_frames` returns. Errors likewise.
        """
        if self._store is None or not video.is_file():
            return self._decode(video, times)
        return self._store(video, times, lambda: self._decode(video, times))

    def _decode(self, video: Path, times: Sequence[float]) -> Frames:
        found = self._kept.get(video)
        if found is None or not found[1].keys() >= set(times):
            wanted = self._expected.get(video, set()) | set(times)
            info = probe(video)
            if len(wanted) * info.width * info.height * 3 > self._most:
                return read_frames(video, times)
            try:
                found = read_frames_at(video, sorted(wanted))
            except (
                VideoError
            ):  # another question asks beyond the end: that is its own failure, not this one's
                return read_frames(video, times)
            self._kept.put(video, found)
        frames, which = found
        chosen = sorted({which[t] for t in times})
        return Frames(frames.images[chosen], tuple(frames.times[i] for i in chosen))


class ShownTimes:
    """Notes of which frames clips show, by presentation time: all that it takes to know the key of
    a clip's features without decoding it again.

    A JSON file in ``folder`` for the content of each video. Believed only as far as that: a note
    that is wrong leads to a key under which nothing is kept.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def find(self, video: Path, times: Sequence[float]) -> tuple[float, ...] | None:
        """Return the times (s) of the frames that ``video`` shows at ``times``, if histories_on.

        Raises :class:`MissingFileError`.
        """
        found = self._read(self._path(video)).get(json.dumps(list(times)))
        return None if found is None else tuple(found)

    def note(self, video: Path, times: Sequence[float], shown: Sequence[float]) -> None:
        """Note that ``video`` shows the frames ``shown`` at ``times``.

        Raises :class:`StorageError`. A note of another process at that moment may get lost.
        """
        path = self._path(video)
        notes = self._read(path) | {json.dumps(list(times)): list(shown)}
        write_json(path, dict(sorted(notes.items())))

    def _path(self, video: Path) -> Path:
        return self.folder / f"{content_hash(video)}.json"

    def _read(self, path: Path) -> dict[str, list[float]]:
        try:
            found = read_json(path)
            if not (
                isinstance(found, dict)
                and all(
                    isinstance(t, list) and all(isinstance(x, float) for x in t)
                    for t in found.values()
                )
            ):
                raise ValueError("other things than times are in it")
        except MissingFileError:
            return {}
        except ValueError as error:  # DataError, too
            warnings.warn(
                f"The notes in {path} are damaged ({error}); these clips are decoded again.",
                stacklevel=4,
            )
            return {}
        return found

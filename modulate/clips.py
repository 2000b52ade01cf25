"""Frames of clips, read so that a video with many questions is decoded once."""

from collections.abc import Callable, Sequence
from pathlib import Path

from modulate.errors import VideoError
from modulate.recent import Recent
from modulate.video import Frames, probe, read_frames, read_shown

FrameStore = Callable[[Path, Sequence[float], Callable[[], Frames]], Frames]
"""(video, times, decode) → the frames shown at these times: kept ones, or what ``decode()`` returns."""


class ClipReader:
    """Reads clips' frames, all that are expected of a video in one go while they fit into ``memory_bytes``; videos used last are kept.

    ``store``: keeps clips' frames on disk (:func:`modulate.features.frame_store`), so that a later epoch, or run, decodes nothing.
    """

    def __init__(self, memory_bytes: int = 512 << 20, store: FrameStore | None = None) -> None:
        self._store = store
        self._expected: dict[Path, set[float]] = {}
        self._kept: Recent[Path, tuple[Frames, dict[float, int]]] = Recent(memory_bytes, lambda found: found[0].images.nbytes)

    def expect(self, video: Path, times: Sequence[float]) -> None:
        """Note that these frames will be asked for."""
        self._expected.setdefault(video, set()).update(times)

    def read(self, video: Path, times: Sequence[float]) -> Frames:
        """Return the frames shown at ``times``; exactly what :func:`modulate.video.read_frames` returns. Errors likewise."""
        if self._store is None or not video.is_file():
            return self._decode(video, times)
        return self._store(video, times, lambda: self._decode(video, times))

    def _decode(self, video: Path, times: Sequence[float]) -> Frames:
        found = self._kept.get(video)
        if found is None or not found[1].keys() >= set(times):
            wanted = self._expected.get(video, set()) | set(times)
            info = probe(video)
            if len(wanted) * info.width * info.height * 3 * 8 > self._kept.max_bytes:  # long or large: such a video would push all others out
                return read_frames(video, times)
            try:
                found = read_shown(video, sorted(wanted))
            except VideoError:  # another question asks beyond the end: that is its own failure, not this one's
                return read_frames(video, times)
            self._kept.put(video, found)
        frames, which = found
        chosen = sorted({which[t] for t in times})
        return Frames(frames.images[chosen], tuple(frames.times[i] for i in chosen))

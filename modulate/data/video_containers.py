"""Files that may be opened as a video: by the format that FFmpeg finds in them, never by name.

The only place that opens one to read it.

FFmpeg has demuxers that follow what a file says to other files and addresses (playlists, manifests,
session descriptions, sequences of images), and finds them by content. A file of a data set must not
have other files played as if they were it, so only containers that hold their pictures are let in.
"""

import threading
from contextlib import suppress
from pathlib import Path

import av
from av.container import InputContainer

from modulate.errors import VideoError

CONTAINERS = {
    "mov": "MP4, MOV, M4V and 3GP",
    "matroska": "Matroska and WebM",
    "avi": "AVI",
    "mpegts": "MPEG transport stream",
    "mpeg": "MPEG program stream",
    "asf": "ASF and WMV",
    "flv": "FLV",
    "ogg": "Ogg",
}
"""FFmpeg's names of the demuxers that are let in, and what people call what they read."""

MAX_PIXELS = 2**25
"""Pixels of the largest pictures that are read: 8K (7680×4320) and little more.

A damaged header would take all memory otherwise.
"""

_OPTIONS = {
    "format_whitelist": ",".join(CONTAINERS),
    "protocol_whitelist": "file",
    "enable_drefs": "0",  # a track of a MOV may lie in another file
    "use_absolute_path": "0",
    "max_pixels": str(MAX_PIXELS),  # already what is looked at in opening is decoded
}
_naming = threading.Lock()


def open_container(path: Path) -> InputContainer:
    """Open ``path`` to read.

    Raises :class:`VideoError`, which names the format where that is none of :data:`CONTAINERS`.
    """
    try:
        return _open(path)
    except (av.FFmpegError, OSError) as error:
        found = _refused_format(path) if isinstance(error, av.ArgumentError) else ""
        if not found:
            raise VideoError(
                f"{path} cannot be opened as a video: {reason(error)}. It is no video, or was cut"
                " off before its index."
            ) from error
        raise VideoError(
            f"{path} cannot be opened as a video: FFmpeg takes it for {found!r}, which is none of"
            f" the containers that are read ({'; '.join(CONTAINERS.values())}). It is no video, or"
            " was cut off before its index, or names other files, as playlists do, which are not"
            " opened. Re-encode it, for example to mp4."
        ) from error


def reason(error: Exception) -> str:
    """Return what FFmpeg says of an error."""
    if isinstance(error, av.ArgumentError):  # all that FFmpeg says of too many pixels
        return f"{error.strerror}: pictures may have at most {MAX_PIXELS:,} pixels"
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def _open(path: Path) -> InputContainer:
    # As an absolute `file:` address, whatever the name looks like: `concat:a|b` and `http:…` are
    # names of files as well.
    return av.open(f"file:{path.absolute()}", metadata_errors="ignore", options=dict(_OPTIONS))


def _refused_format(path: Path) -> str:
    """Return FFmpeg's name of the format of ``path`` if that is why FFmpeg refuses the file, else
    "". Only FFmpeg's log says so.
    """
    with _naming:
        level = av.logging.get_level()
        skipping = av.logging.get_skip_repeated()
        av.logging.set_level(av.logging.ERROR)
        av.logging.set_skip_repeated(
            False
        )  # the second playlist in a row would be named by nothing
        try:
            with av.logging.Capture(local=True) as logged, suppress(av.FFmpegError, OSError):
                _open(path).close()
        finally:
            av.logging.set_skip_repeated(skipping)
            av.logging.set_level(level)
    return next(
        (name for _, name, text in reversed(logged) if text.startswith("Format not on whitelist")),
        "",
    )

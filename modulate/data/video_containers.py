"""Opening of video files, restricted to container formats that hold their own pictures.

FFmpeg detects a file's format by its content, never by its name. Some of its demuxers follow
references in a file to other files and addresses (playlists, manifests, session descriptions, image
sequences). A file of a data set must not make other files play in its place, so only the formats in
:data:`CONTAINERS` are accepted, and no other module opens a video to read it.
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
"""The accepted demuxers by FFmpeg's names, and the formats that they read."""

MAX_PIXELS = 2**25
"""Most pixels of a picture: a little more than 8K (7680×4320).

Otherwise a damaged header could take all memory.
"""

_OPTIONS = {
    "format_whitelist": ",".join(CONTAINERS),
    "protocol_whitelist": "file",
    "enable_drefs": "0",  # a track of a MOV may refer to another file
    "use_absolute_path": "0",
    "max_pixels": str(MAX_PIXELS),  # opening a file decodes its first pictures
}
# FFmpeg's log settings are global to the process.
_log_lock = threading.Lock()


def open_container(path: Path) -> InputContainer:
    """Open a video file for reading.

    Raises :class:`VideoError`, which names the format if it is not one of :data:`CONTAINERS`.
    """
    try:
        return _open(path)
    except (av.FFmpegError, OSError) as error:
        refused = _refused_format(path) if isinstance(error, av.ArgumentError) else ""
        if not refused:
            raise VideoError(
                f"{path} cannot be opened as a video: {reason(error)}. It is not a video, or was"
                " cut off before its index."
            ) from error
        raise VideoError(
            f"{path} cannot be opened as a video: FFmpeg takes it for {refused!r}, which is not one"
            f" of the accepted containers ({'; '.join(CONTAINERS.values())}). It is not a video,"
            " or was cut off before its index, or refers to other files, as playlists do, which"
            " are not opened. Re-encode it, for example to mp4."
        ) from error


def reason(error: Exception) -> str:
    """Return FFmpeg's description of an error."""
    # FFmpeg reports too many pixels as an invalid argument, and says no more.
    if isinstance(error, av.ArgumentError):
        return f"{error.strerror}: pictures may have at most {MAX_PIXELS:,} pixels"
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def _open(path: Path) -> InputContainer:
    # An absolute `file:` address: FFmpeg would take a file named `concat:a|b` or `http:…` for an
    # address.
    return av.open(f"file:{path.absolute()}", metadata_errors="ignore", options=dict(_OPTIONS))


def _refused_format(path: Path) -> str:
    """Return FFmpeg's name of the format of ``path`` if FFmpeg refuses that format, else "".

    Only FFmpeg's log has the name.
    """
    with _log_lock:
        level = av.logging.get_level()
        skipping = av.logging.get_skip_repeated()
        av.logging.set_level(av.logging.ERROR)
        # Otherwise the second file of a format in a row would not be logged.
        av.logging.set_skip_repeated(False)
        try:
            with av.logging.Capture(local=True) as logged, suppress(av.FFmpegError, OSError):
                _open(path).close()
        finally:
            av.logging.set_skip_repeated(skipping)
            av.logging.set_level(level)
    refusals = [name for _, name, text in logged if text.startswith("Format not on whitelist")]
    return refusals[-1] if refusals else ""

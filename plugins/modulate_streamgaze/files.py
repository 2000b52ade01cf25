"""Find the videos and fixation files of the questions; imports no torch."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePath

from modulate.errors import DataError, MissingFileError
from modulate_streamgaze.questions import VIDEO_SUFFIXES, video_stem

FIXATIONS = "_fixation_filtered.csv"


def find_videos(folder: Path) -> dict[str, Path]:
    """Return {stem: file} of all videos in ``folder`` and its sub-folders.

    Raises :class:`MissingFileError` if there are none, and :class:`DataError` if two share a stem,
    because fixation files are found by stem.
    """
    files = [path for path in _walk(folder, "Video") if path.suffix.lower() in VIDEO_SUFFIXES]
    if not files:
        raise MissingFileError(
            f"No videos found in {folder}; expected files ending in"
            f" {', '.join(sorted(VIDEO_SUFFIXES))}."
        )
    return _by_name(((video_stem(path.name), path) for path in files), "videos")


def find_fixations(folders: Sequence[Path]) -> dict[str, Path]:
    """Return {video stem: file} of all ``<stem>_fixation_filtered.csv`` below ``folders``.

    Raises :class:`MissingFileError` if a folder is missing, and :class:`DataError` if two files
    have the same stem.
    """
    files = {
        path.resolve(): path
        for folder in folders
        for path in _walk(folder, "Fixation")
        if path.name.endswith(FIXATIONS)
    }
    return _by_name(
        ((path.name.removesuffix(FIXATIONS), path) for path in files.values()), "fixation files"
    )


def require(stems: Iterable[str], found: Mapping[str, Path], what: str, where: str) -> None:
    """Raise :class:`MissingFileError` if any of ``stems`` has no file; names the first three."""
    wanted = sorted(set(stems))
    missing = [stem for stem in wanted if stem not in found]
    if missing:
        raise MissingFileError(
            f"{len(missing)} of {len(wanted)} {what} are missing in {where}:"
            f" {', '.join(missing[:3])}{' …' if len(missing) > 3 else ''}. Add them, or list those"
            ' videos as "unused" in a split file.'
        )


def _walk(folder: Path, what: str) -> list[Path]:
    if not folder.is_dir():
        raise MissingFileError(f"{what} folder {folder} does not exist.")
    paths = (path for path in folder.rglob("*") if path.is_file())
    # Archives created on macOS contain files such as "._x.mp4".
    return sorted(path for path in paths if not PurePath(path).name.startswith("."))


def _by_name(pairs: Iterable[tuple[str, Path]], what: str) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for stem, path in pairs:
        if stem in found:
            raise DataError(f"Two {what} for {stem!r}: {found[stem]} and {path}; keep one of them.")
        found[stem] = path
    return found

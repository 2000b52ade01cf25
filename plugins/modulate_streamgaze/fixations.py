"""Compute the benchmark's fixation files from the gaze files of the original data sets."""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from pydantic import Field

from modulate.data.video import probe
from modulate.errors import DataError, MissingFileError, ModulateError
from modulate.interfaces.components import Params
from modulate.utils.atomic_files import write_atomically, write_json
from modulate.utils.safe_load import read_json
from modulate_gaze.extraction import (
    RADII,
    Extraction,
    clamped,
    extract,
    n_in_corner,
    radius_of,
    write_fixations,
)
from modulate_gaze.raw_gaze import SUFFIXES, Source, read_gaze
from modulate_streamgaze.files import FIXATIONS

SETTINGS = "extraction.json"
"""File beside the fixation files with the settings of their extraction."""

CLAMPED = "clamped.json"
"""File beside the fixation files that counts the effect of clamping gaze to the frame.

It holds {stem: [fixations that exist only with clamping, fixations that exist only without]}.
"""


class GazeFiles(Params):
    """Gaze files from which missing fixation files are computed before anything is read."""

    folders: dict[Source, Path] = Field(
        description=(
            "{egtea, egoexolearn, ego4d, holoassist: folder of its gaze files, which have the"
            " stems of the videos}; sub-folders are searched, too"
        )
    )
    extraction: Extraction = Field(
        Extraction(), description="extraction of fixations; the defaults are StreamGaze's"
    )


@dataclass
class ExtractionCounts:
    """Counts of an extraction: files written, files that existed before, fixations, frames.

    ``corner``: fixations at (0, 0), from frames without gaze. ``clamped``: {stem: (fixations that
    exist only because gaze outside the frame was clamped, fixations that would exist only without
    clamping)}, where not zero. ``failed``: {stem: reason}. ``lacking``: stems without a gaze file.
    """

    files: int = 0
    kept: int = 0
    fixations: int = 0
    frames: int = 0
    untracked: int = 0
    outside: int = 0
    corner: int = 0
    clamped: dict[str, tuple[int, int]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    lacking: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, object]:
        """Return everything as plain values."""
        return asdict(self)


def find_gaze(folders: Mapping[Source, Path]) -> dict[str, tuple[Source, Path]]:
    """Return {stem: (source, file)} of all gaze files.

    Raises :class:`MissingFileError` for a missing folder, :class:`DataError` for two files of one
    stem.
    """
    found: dict[str, tuple[Source, Path]] = {}
    for source, folder in folders.items():
        if not folder.is_dir():
            raise MissingFileError(f"Folder {folder} of the gaze files of {source} does not exist.")
        for path in sorted(
            path
            for path in folder.rglob(f"*{SUFFIXES[source]}")
            if path.is_file() and not path.name.startswith(".")
        ):
            stem = path.name.removesuffix(SUFFIXES[source])
            if stem in found:
                raise DataError(
                    f"Two gaze files for {stem!r}: {found[stem][1]} and {path}; keep one of them."
                )
            found[stem] = source, path
    return found


def make_fixations(
    stems: Iterable[str],
    gaze: Mapping[str, tuple[Source, Path]],
    out: Path,
    extraction: Extraction,
    size: Callable[[str], tuple[int, int] | None],
    advance: Callable[[], object] = lambda: None,
) -> ExtractionCounts:
    """Write ``<stem>_fixation_filtered.csv`` into ``out`` for each stem with a gaze file.

    Existing fixation files stay. ``size(stem)`` returns the video's (width, height) in pixels, or
    None; it is only called if the source needs it. An unreadable file is counted with its reason,
    and the others are still processed. Raises :class:`DataError` if ``out`` holds fixations with
    other settings.
    """
    counts = ExtractionCounts()
    _claim(out, extraction)
    for stem in stems:
        advance()
        path = out / f"{stem}{FIXATIONS}"
        if path.exists():
            counts.kept += 1
        elif stem not in gaze:
            counts.lacking.append(stem)
        else:
            try:
                _make(counts, stem, path, *gaze[stem], extraction, lambda stem=stem: size(stem))  # type: ignore[misc]
            except ModulateError as error:
                counts.failed[stem] = str(error)
    if counts.clamped:
        known = {**read_clamped([out]), **counts.clamped}
        write_json(out / CLAMPED, dict(sorted(known.items())))
    return counts


def read_clamped(folders: Iterable[Path]) -> dict[str, tuple[int, int]]:
    """Return the counts in the files :data:`CLAMPED` of ``folders``, by stem.

    Raises :class:`DataError` for a file with any other content.
    """
    known: dict[str, tuple[int, int]] = {}
    for path in (folder / CLAMPED for folder in folders):
        if not path.is_file():
            continue
        found = read_json(path, "Counts of fixations")
        pairs = found.values() if isinstance(found, dict) else [None]
        if not all(
            isinstance(pair, list)
            and len(pair) == 2
            and all(type(number) is int and number >= 0 for number in pair)
            for pair in pairs
        ):
            raise DataError(
                f"{path} must map videos to two counts of fixations each; remove it, nothing but a"
                " finding of `modulate data check` depends on it."
            )
        known |= {stem: (moved, left) for stem, (moved, left) in found.items()}
    return known


def _make(
    counts: ExtractionCounts,
    stem: str,
    path: Path,
    source: Source,
    file: Path,
    extraction: Extraction,
    size: Callable[[], tuple[int, int] | None],
) -> None:
    pixels = (
        size()
        if source == "holoassist" or (source not in RADII and extraction.radius is None)
        else None
    )
    recording = read_gaze(file, source, extraction.untracked, pixels)
    radius = radius_of(source, extraction, pixels[0] if pixels else None)
    scanpath = extract(recording, extraction, radius)
    write_fixations(path, scanpath)
    counts.files += 1
    counts.fixations += len(scanpath)
    counts.frames += len(recording)
    counts.untracked += recording.untracked
    counts.outside += recording.outside
    counts.corner += n_in_corner(scanpath)
    difference = clamped(recording, extraction, radius)
    if any(difference):
        counts.clamped[stem] = difference


def _claim(out: Path, extraction: Extraction) -> None:
    """Write the settings of extraction into ``out``, or check that they are the same."""
    settings = extraction.model_dump(mode="json")
    path = out / SETTINGS
    if path.exists():
        before = read_json(path, "Extraction settings")
        if before != settings:
            raise DataError(
                f"{out} holds fixations made with other settings ({SETTINGS}: {before}, asked for:"
                f" {settings}). Name another folder, or empty it."
            )
        return
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(
        path,
        lambda temporary: temporary.write_text(
            json.dumps(settings, indent=1) + "\n", encoding="utf-8"
        ),
    )


def size_of(videos: Mapping[str, Path]) -> Callable[[str], tuple[int, int] | None]:
    """Return a function that reads a video's (width, height) by its stem; None if it is missing."""

    def size(stem: str) -> tuple[int, int] | None:
        if stem not in videos:
            return None
        info = probe(videos[stem])
        return info.width, info.height

    return size

"""Makes the benchmark's fixation files from the gaze files of the data sets that its videos come
from.
"""

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
"""File beside the fixation files that says how they were made."""

CLAMPED = "clamped.json"
"""File beside them that says of which videos fixations exist, or are missing, because gaze outside
the frame was moved to its edge:
{stem: [only because of that, only without it]}.
"""


class GazeFiles(Params):
    """Gaze files of which missing fixation files are made, before anything is read."""

    folders: dict[Source, Path] = Field(
        description=(
            "{egtea, egoexolearn, ego4d, holoassist: folder of its gaze files, called by the"
            " videos' stems}; searched with sub-folders"
        )
    )
    extraction: Extraction = Field(
        Extraction(), description="how fixations are made; the defaults are StreamGaze's"
    )


@dataclass
class Made:
    """What came of it: fixation files written, files that were there before, and of those written:
    ``fixations``, frames without gaze, and more.

    ``corner``: fixations at (0, 0), made of frames without gaze. ``clamped``: {stem: (fixations
    that exist only because gaze outside the frame was moved to its edge, fixations that would exist
    only otherwise)}, where any. ``failed``: {stem: reason}. ``lacking``: stems for which there is
    no gaze file.
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

    Raises :class:`MissingFileError` for a folder that is not there, :class:`DataError` for two of a
    stem.
    """
    found: dict[str, tuple[Source, Path]] = {}
    for source, folder in folders.items():
        if not folder.is_dir():
            raise MissingFileError(f"Folder {folder} of the gaze files of {source} does not exist.")
        for path in sorted(
            p
            for p in folder.rglob(f"*{SUFFIXES[source]}")
            if p.is_file() and not p.name.startswith(".")
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
) -> Made:
    """Write ``<stem>_fixation_filtered.csv`` into ``out`` for each of ``stems`` that has a gaze
    file and no fixation file there yet.

    ``size(stem)``: the video's (width, height) in pixels or None; only asked where the source needs
    it. A file that cannot be read is counted with its reason, and the others are made. Raises
    :class:`DataError` when ``out`` holds files that were made otherwise.
    """
    made = Made()
    _claim(out, extraction)
    for stem in stems:
        advance()
        path = out / f"{stem}{FIXATIONS}"
        if path.exists():
            made.kept += 1
        elif stem not in gaze:
            made.lacking.append(stem)
        else:
            try:
                _make(made, stem, path, *gaze[stem], extraction, lambda stem=stem: size(stem))  # type: ignore[misc]
            except ModulateError as error:
                made.failed[stem] = str(error)
    if made.clamped:
        known = {**read_clamped([out]), **made.clamped}
        write_json(out / CLAMPED, dict(sorted(known.items())))
    return made


def read_clamped(folders: Iterable[Path]) -> dict[str, tuple[int, int]]:
    """Return what the files :data:`CLAMPED` in ``folders`` say.

    Raises :class:`DataError` for one that says something else.
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
            and all(type(n) is int and n >= 0 for n in pair)
            for pair in pairs
        ):
            raise DataError(
                f"{path} must map videos to two counts of fixations each; remove it, nothing but a"
                " finding of `modulate data check` depends on it."
            )
        known |= {stem: (moved, left) for stem, (moved, left) in found.items()}
    return known


def _make(
    made: Made,
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
    made.files += 1
    made.fixations += len(scanpath)
    made.frames += len(recording)
    made.untracked += recording.untracked
    made.outside += recording.outside
    made.corner += n_in_corner(scanpath)
    if any(counts := clamped(recording, extraction, radius)):
        made.clamped[stem] = counts


def _claim(out: Path, extraction: Extraction) -> None:
    """Note in ``out`` how its files are made, or check that they were made so."""
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
    """Return a function from stem to the video's (width, height), read from the file; None where
    there is none.
    """

    def size(stem: str) -> tuple[int, int] | None:
        if stem not in videos:
            return None
        info = probe(videos[stem])
        return info.width, info.height

    return size

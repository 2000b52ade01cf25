"""``modulate data fixations`` and ``export``: compute fixation files, export results.

Heavy modules are imported when a command runs.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from modulate.errors import DataError, near_matches

if TYPE_CHECKING:
    from modulate_gaze.extraction import Extraction
    from modulate_streamgaze.fixations import ExtractionCounts

data = typer.Typer(
    name="data",
    help="StreamGaze's files: compute fixations from gaze, export results.",
    no_args_is_help=True,
)


@data.command()
def fixations(
    source: Annotated[
        str,
        typer.Argument(help="Data set of the gaze files: egtea, egoexolearn, ego4d or holoassist."),
    ],
    gaze: Annotated[
        Path, typer.Argument(help="Folder of the gaze files; sub-folders are searched, too.")
    ],
    out: Annotated[
        Path,
        typer.Argument(help="Folder for <stem>_fixation_filtered.csv; existing files stay."),
    ],
    videos: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the videos: limits the output to them and gives the frame sizes."
        ),
    ] = None,
    width: Annotated[
        int | None,
        typer.Option(min=1, help="Width of the videos in pixels, if no videos are given."),
    ] = None,
    height: Annotated[
        int | None,
        typer.Option(
            min=1,
            help=(
                "Height of the videos in pixels, if no videos are given; only holoassist needs it."
            ),
        ),
    ] = None,
    preset: Annotated[
        str,
        typer.Option(
            help=(
                "Rules of extraction. streamgaze: fixations of 2.5 s or more, as in the benchmark's"
                " code; gazeqwen: of 2 s or more, as in GazeQwen's file."
            )
        ),
    ] = "streamgaze",
    radius: Annotated[
        float | None,
        typer.Option(help="Radius of a fixation, fraction of the frame, instead of the preset's."),
    ] = None,
    min_seconds: Annotated[
        float | None, typer.Option(help="Shortest fixation, s, instead of the preset's.")
    ] = None,
    untracked: Annotated[
        str | None, typer.Option(help="Samples without gaze: keep (as the benchmark) or drop.")
    ] = None,
) -> None:
    """Compute fixation files from a data set's gaze files. Exits with 1 if one fails."""
    from modulate.cli.progress import display
    from modulate_gaze.raw_gaze import SOURCES
    from modulate_streamgaze.files import find_videos
    from modulate_streamgaze.fixations import find_gaze, make_fixations, size_of

    if source not in SOURCES:
        raise DataError(f"Unknown source of gaze {source!r}. {near_matches(source, SOURCES)}")
    changes = {"radius": radius, "min_seconds": min_seconds, "untracked": untracked}
    extraction = _extraction(preset, changes)
    gaze_files = find_gaze({source: gaze})  # type: ignore[dict-item]
    video_files = find_videos(videos) if videos is not None else {}

    def given_size(stem: str) -> tuple[int, int] | None:
        # Only HoloAssist's gaze files need the height.
        if width and (height or source != "holoassist"):
            return width, height or 1
        return None

    size = size_of(video_files) if videos is not None else given_size
    stems = sorted(video_files or gaze_files)
    if not stems:
        raise DataError(f"{gaze} holds no gaze file of {source}.")
    with display() as shown:
        advance = lambda: shown.advance("recordings", 1, len(stems))  # noqa: E731
        counts = make_fixations(stems, gaze_files, out, extraction, size, advance)
    _print_counts(counts, out, source, len(stems))
    if counts.failed or counts.lacking:
        raise typer.Exit(1)


def _extraction(preset: str, changes: dict[str, Any]) -> "Extraction":
    """Return the settings of a preset with the changes from the command line."""
    from pydantic import ValidationError

    from modulate_gaze.extraction import PRESETS, Extraction

    if preset not in PRESETS:
        raise DataError(f"Unknown preset {preset!r}. {near_matches(preset, PRESETS)}")
    given = {name: value for name, value in changes.items() if value is not None}
    try:
        return Extraction.model_validate({**PRESETS[preset].model_dump(), **given})
    except ValidationError as error:
        texts = [
            f"--{str(e['loc'][0]).replace('_', '-')}: {e['msg']}, got {e['input']!r}"
            for e in error.errors()
        ]
        raise DataError(f"{'; '.join(texts)}.") from error


def _print_counts(counts: "ExtractionCounts", out: Path, source: str, n_stems: int) -> None:
    typer.echo(
        f"Wrote {counts.files} files with {counts.fixations} fixations to {out}; {counts.kept} were"
        " there before."
    )
    typer.echo(
        f"Of {counts.frames:,} frames {counts.untracked:,} have no gaze and {counts.outside:,} have"
        " it outside the frame."
    )
    if counts.corner:
        typer.echo(
            f"Note: {counts.corner} fixations lie at (0, 0): frames without gaze, which the"
            " benchmark keeps. --untracked drop leaves them out."
        )
    if counts.clamped:
        only_clamped, only_unclamped = (sum(n) for n in zip(*counts.clamped.values(), strict=True))
        typer.echo(
            "Note: gaze outside the frame was moved to its edge, which changes which fixations"
            f" there are: {only_clamped} of the {counts.fixations} exist only because of that,"
            f" {only_unclamped} would exist only without it ({len(counts.clamped)} of"
            f" {counts.files} videos)."
            + (" The benchmark leaves HoloAssist's where it is." if source == "holoassist" else "")
        )
    if counts.lacking:
        names = f"{', '.join(counts.lacking[:3])}{' …' if len(counts.lacking) > 3 else ''}"
        typer.echo(f"{len(counts.lacking)} of {n_stems} videos have no gaze file: {names}.")
    for stem, reason in counts.failed.items():
        typer.echo(f"Failed: {stem}: {reason}", err=True)


@data.command()
def export(
    run: Annotated[Path, typer.Argument(help="Folder of a finished run.")],
    out: Annotated[Path, typer.Argument(help="Folder for <task>_output.json.")],
    condition: Annotated[
        str | None,
        typer.Option(help="Condition to export; by default the trained one."),
    ] = None,
    split: Annotated[
        str, typer.Option(help="Split that was evaluated: test, train, val or all.")
    ] = "test",
    qa: Annotated[
        Path | None,
        typer.Option(help="Folder of the question files; by default that of the run's data."),
    ] = None,
    allow_failed: Annotated[
        bool,
        typer.Option(
            "--allow-failed",
            help=(
                "Export failed answers as empty replies, which the benchmark's scorer counts as"
                " wrong; without this option they are an error."
            ),
        ),
    ] = False,
) -> None:
    """Export a run's answers in the benchmark's result format.

    Failed answers are refused, unless --allow-failed is given.
    """
    from collections import Counter

    from modulate.runs.run import Run
    from modulate_streamgaze import export as exporting

    opened = Run.open(run)
    if qa is None:
        if "root" not in opened.recipe.data.params:
            raise DataError(
                f"The run's data set {opened.recipe.data.name!r} names no root; name the folder of"
                " the question files with --qa."
            )
        qa = Path(str(opened.recipe.data.params["root"])).expanduser() / "qa"
    name = condition or opened.recipe.training.condition
    rule = opened.recipe.evaluation.failed
    answers = exporting.answers_of(opened.predictions(split), name)
    failed = [p for p in answers if p.error]
    if not allow_failed:
        exporting.refuse_failed(failed, len(answers), rule)
    counts = exporting.export(answers, qa, out, name)
    by_task = Counter(p.task for p in failed)
    for task, n in counts.items():
        typer.echo(
            f"{out / f'{task}_output.json'}: {n} answers"
            + (f", of which {by_task[task]} failed" if by_task[task] else "")
        )
    if failed:
        typer.echo(f"Warning: {exporting.failures(failed, len(answers), rule)}", err=True)

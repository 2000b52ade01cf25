"""``modulate data …``: check a StreamGaze tree, compute fixation files, export results.

Heavy modules are imported when a command runs.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from modulate.cli.output import echo_json
from modulate.errors import DataError, RecipeError, near_matches

if TYPE_CHECKING:
    from pydantic import BaseModel
    from rich.table import Table

    from modulate.config.sections import Sampling
    from modulate_gaze.extraction import Extraction
    from modulate_streamgaze.data_report import DataReport
    from modulate_streamgaze.dataset import StreamGaze
    from modulate_streamgaze.fixations import ExtractionCounts

Model = TypeVar("Model", bound="BaseModel")

data = typer.Typer(
    name="data",
    help="StreamGaze's files: check them, compute fixations from gaze, export results.",
    no_args_is_help=True,
)

RECIPE = "gazeqwen"


@data.command()
def check(
    root: Annotated[
        Path, typer.Argument(help="Folder that holds qa/*.json, the videos and the fixations.")
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=VALUE]...",
            help="Changes to the recipe: sampling.max_frames=3, data.params.present_seconds=30 …",
        ),
    ] = None,
    recipe: Annotated[
        str,
        typer.Option(
            help=(
                "Recipe with the sampling and the parameters of the data set; a shipped name or a"
                " file."
            )
        ),
    ] = RECIPE,
    frames_per_step: Annotated[
        int, typer.Option(min=1, help="Frames that the host merges into one time step; Qwen-VL: 2.")
    ] = 2,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Check a data tree, task by task: files, durations, fixations, questions with active gaze.

    Exits with 1 if something would fail in training.
    """
    from modulate.cli.progress import display
    from modulate_streamgaze.data_check import check_data

    dataset, sampling, note = _settings(root, recipe, overrides or [])
    with display() as shown:
        report = check_data(
            dataset, sampling, frames_per_step, lambda: shown.advance("videos", 1, None)
        )
    if note:
        report.add("info", note)
    if as_json:
        echo_json(report.as_json())
    else:
        _print(report)
    if not report.ok:
        raise typer.Exit(1)


def _settings(root: Path, recipe: str, overrides: list[str]) -> "tuple[StreamGaze, Sampling, str]":
    """Return the data set in ``root`` and the recipe's sampling; a note says what differs."""
    import json

    from modulate.config.recipe import load_recipe, override, recipe_paths
    from modulate.config.sections import Sampling
    from modulate_streamgaze.dataset import StreamGaze, StreamGazeParams

    if recipe == RECIPE and not Path(recipe).is_file() and recipe not in recipe_paths():
        tree: dict[str, Any] = {}
        for text in overrides:
            override(tree, text)
        sampling = _valid(Sampling, "sampling", tree.get("sampling", {}))
        params = _valid(
            StreamGazeParams,
            "data.params",
            {**tree.get("data", {}).get("params", {}), "root": root},
        )
        return (
            StreamGaze(params),
            sampling,
            f"There is no recipe {recipe!r} here: default parameters, and the sampling given.",
        )
    found = load_recipe(recipe, [*overrides, f"data.params.root={json.dumps(str(root))}"])
    cls, params = found.data.resolved("dataset")
    if isinstance(cls, type) and issubclass(cls, StreamGaze):
        return cls(params), found.sampling, ""
    note = (
        f"The recipe {recipe!r} is of the data set {found.data.name!r}: its sampling is used, and"
        " StreamGaze's default parameters."
    )
    return StreamGaze(StreamGazeParams(root=root)), found.sampling, note


def _valid(model: "type[Model]", where: str, given: dict[str, Any]) -> "Model":
    from pydantic import ValidationError

    from modulate.config.recipe import explain

    try:
        return model.model_validate(given)
    except ValidationError as error:
        raise RecipeError(explain(error, where, model)) from error


def _task_table(report: "DataReport") -> "Table":
    from rich import box
    from rich.table import Table

    table = Table(title=f"{report.root}: {report.sampling}", title_justify="left", box=box.SIMPLE)
    for name in (
        "task",
        "questions",
        "videos",
        "missing",
        "seconds",
        "beyond",
        "fixations",
        "none",
        "midpoint",
        "overlap",
    ):
        table.add_column(name, justify="left" if name == "task" else "right", no_wrap=True)
    for name, t in report.tasks.items():
        lengths = " / ".join(f"{s:.0f}" for s in t.seconds) if t.seconds else "–"
        gaze = [
            "–" if t.fixations is None else f"{t.fixations:g}",
            _percent(t.without),
            *(_percent(t.active.get(mode)) for mode in ("midpoint", "overlap")),
        ]
        table.add_row(
            name, f"{t.questions:,}", str(t.videos), str(t.missing), lengths, str(t.beyond), *gaze
        )
    return table


def _print(report: "DataReport") -> None:
    from rich.console import Console

    console = Console()
    console.width = max(console.width, 144)
    console.print(_task_table(report))
    console.print(
        "seconds: shortest, median and longest video; beyond: questions after their video's end;"
        " fixations: median number in a question's clip; none: questions without any; midpoint,"
        " overlap: questions whose gaze is active at some sampled step.",
        highlight=False,
    )
    for title, counts in (
        ("Videos by split", report.splits),
        ("Key conventions", report.conventions),
    ):
        if counts:
            console.print(
                f"{title}: {', '.join(f'{name} {n}' for name, n in counts.items())}.",
                highlight=False,
                markup=False,
                soft_wrap=True,
            )
    style = {"error": "bold red", "warning": "yellow", "info": ""}
    for finding in report.findings:
        console.print(
            f"{finding.level}: {finding.text}",
            style=style[finding.level],
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
    errors = sum(f.level == "error" for f in report.findings)
    console.print(
        (
            "Nothing here would fail in training."
            if report.ok
            else f"{errors} error{'s' if errors > 1 else ''}."
        ),
        highlight=False,
    )


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f} %"


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

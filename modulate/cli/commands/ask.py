"""``modulate ask``: answer one question about one video or picture, with and without the signal."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from modulate.cli.arguments import AsJson, Trust
from modulate.cli.output import echo_json
from modulate.errors import MissingFileError, RecipeError

if TYPE_CHECKING:
    from modulate.inference.answer import Answer
    from modulate.inference.assistant import Assistant


def ask(
    media: Annotated[Path, typer.Argument(metavar="FILE", help="Video or picture.")],
    question: Annotated[str, typer.Option(help="The question, without its options.")],
    signal: Annotated[
        list[str],
        typer.Option(
            metavar="KIND=FILE",
            help="A side signal, such as gaze=fixations.csv; repeat for several.",
        ),
    ],
    option: Annotated[
        list[str] | None,
        typer.Option(
            help="A possible answer; repeat for each. Without options, the answer is free text."
        ),
    ] = None,
    at: Annotated[
        float | None,
        typer.Option(
            help=(
                "Time of the question in the video, s; later frames are not shown. By default its"
                " end."
            )
        ),
    ] = None,
    run: Annotated[Path | None, typer.Option(help="Folder of a trained run.")] = None,
    modulation: Annotated[
        str | None, typer.Option(help="Folder or Hub id of a modulation, instead of --run.")
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            help="Recipe for a --modulation that does not say how it is used, as those of 0.1."
        ),
    ] = None,
    host: Annotated[
        str | None,
        typer.Option(help="Folder or Hub id of the host, by default that of the training."),
    ] = None,
    seconds: Annotated[
        float | None,
        typer.Option(
            help=(
                "Length of the video shown before the question, s; by default what the recipe's"
                " sampling covers."
            )
        ),
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Limit of a free-text answer.")] = 128,
    trust: Trust = False,
    as_json: AsJson = False,
) -> None:
    """Ask about a video or picture with and without the signal.

    Prints the answers, or the probabilities of all options, side by side.
    """
    signals: dict[str, Any] = dict(parse_signals(signal))
    assistant = _assistant(run, modulation, recipe, host, trust)
    window = None
    if seconds is not None:
        window = _window(at, seconds)
    answer = assistant.ask(
        media,
        question,
        options=option or None,
        at=at if window is None else None,
        window=window,
        compare=("none",) if assistant.modulation.lora is None else ("none", "host"),
        max_new_tokens=max_new_tokens,
        **signals,
    )
    if as_json:
        echo_json([_as_json(each) for each in (answer, *answer.without.values())])
        return
    _show(answer)


def parse_signals(texts: Sequence[str]) -> dict[str, Path]:
    """Return the file of each signal kind, from texts of the form ``kind=file``.

    Raises :class:`RecipeError` for another form and for a kind given twice,
    :class:`MissingFileError` for a file that does not exist.
    """
    signals: dict[str, Path] = {}
    for text in texts:
        kind, separator, file = text.partition("=")
        if not separator or not kind or not file:
            raise RecipeError(
                f"Signal {text!r} is not of the form kind=file, for example gaze=fixations.csv."
            )
        if kind in signals:
            raise RecipeError(
                f"The signal {kind!r} is given twice: {signals[kind]} and {file}. Give one file for"
                " each kind."
            )
        if not Path(file).is_file():
            raise MissingFileError(f"The signal file {file} does not exist.")
        signals[kind] = Path(file)
    return signals


def _window(at: float | None, seconds: float) -> tuple[float, float]:
    if at is None:
        raise RecipeError("--seconds is the length before the question: give its time with --at.")
    if seconds <= 0:
        raise RecipeError(
            f"The clip before the question must have some length; got {seconds} seconds."
        )
    return (max(0.0, at - seconds), at)


def _assistant(
    run: Path | None, modulation: str | None, recipe: str | None, host: str | None, trust: bool
) -> "Assistant":
    """Return the assistant that the options name."""
    from modulate.runs.load_assistant import load
    from modulate.runs.run import Run

    if run is not None and modulation is None and recipe is None:
        return load(Run.open(run).folder, host=host, trust_remote_code=trust)
    if run is None and modulation is not None:
        return load(modulation, recipe=recipe, host=host, trust_remote_code=trust)
    raise RecipeError(
        "No model is named. Give either --run RUN, or --modulation DIR, with --recipe RECIPE where"
        " the modulation does not say how it is used."
    )


def _as_json(answer: "Answer") -> dict[str, object]:
    report = answer.report
    return {
        "condition": answer.condition,
        "text": answer.text,
        "probabilities": answer.probabilities,
        "is_complete": answer.is_complete,
        "tokens": report.tokens if report else 0,
        "steps": sum(report.steps) if report else 0,
        "active_steps": sum(report.active_steps) if report else 0,
        "ratio": report.ratio if report else {},
    }


def _show(answer: "Answer") -> None:
    """Print the answers side by side, the one with the signal first."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console()
    answers = [answer, *answer.without.values()]
    if answer.probabilities is None:
        table = Table("Condition", "Answer")
        for each in answers:
            table.add_row(each.condition, escape(each.text) + ("" if each.is_complete else " …"))
    else:
        table = Table("Option", *(each.condition for each in answers))
        for option in answer.probabilities:
            table.add_row(escape(option), *(_chance(each, option) for each in answers))
    console.print(table)
    report = answer.report
    assert report is not None  # every signal is a file here
    console.print(
        f"The signal reached {sum(report.active_steps)} of {sum(report.steps)} steps;"
        f" {report.tokens} visual tokens got a residual."
    )
    if not any(report.active_steps):
        console.print(
            "Warning: the signal is active at no step, so it acts like an empty one.",
            style="yellow",
        )
    ratios = ", ".join(f"layer {layer}: {ratio:.3f}" for layer, ratio in report.ratio.items())
    console.print(f"‖Δh‖/‖h‖ on those tokens: {ratios}", highlight=False)


def _chance(answer: "Answer", option: str) -> str:
    assert answer.probabilities is not None
    mark = " ←" if answer.text == option else ""
    return f"{100 * answer.probabilities[option]:.1f} %{mark}"

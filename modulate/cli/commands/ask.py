"""``modulate ask``: answer one question about one video, with and without the signal."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from modulate.cli.arguments import DEFAULT_CACHE, AsJson, Cache, Trust
from modulate.cli.output import echo_json
from modulate.errors import RecipeError

if TYPE_CHECKING:
    from modulate.config.recipe import Recipe
    from modulate.inference.ask import Answer
    from modulate.modulation.module import Modulation


def ask(
    video: Annotated[Path, typer.Argument(help="Video file.")],
    question: Annotated[str, typer.Option(help="The question, without its options.")],
    option: Annotated[
        list[str], typer.Option(help="A possible answer; repeat for each of 2 to 8.")
    ],
    at: Annotated[
        float,
        typer.Option(help="Time of the question in the video, s; later frames are not shown."),
    ],
    signal: Annotated[
        list[str],
        typer.Option(
            metavar="KIND=FILE",
            help="A side signal, such as gaze=fixations.csv; repeat for several.",
        ),
    ],
    run: Annotated[Path | None, typer.Option(help="Folder of a trained run.")] = None,
    modulation: Annotated[
        str | None,
        typer.Option(help="Folder or Hub id of a modulation, instead of --run; needs --recipe."),
    ] = None,
    recipe: Annotated[
        str | None, typer.Option(help="Recipe for --modulation: host, backbone and sampling.")
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
    cache: Cache = DEFAULT_CACHE,
    trust: Trust = False,
    as_json: AsJson = False,
) -> None:
    """Ask about a video with and without the signal.

    Prints the probabilities of all options side by side.
    """
    from dataclasses import asdict

    from modulate.inference import ask as asking
    from modulate.inference.pipeline import Pipeline

    signals = asking.parse_signals(signal)
    loaded, weights = _source(run, modulation, recipe)
    sample = asking.sample_of(video, signals, at, question, option, loaded, seconds)
    answers = asking.ask(Pipeline(loaded, cache, trust_remote_code=trust), weights, sample)
    if as_json:
        echo_json([asdict(answer) for answer in answers])
        return
    _show(option, answers)


def _source(
    run: Path | None, modulation: str | None, recipe: str | None
) -> "tuple[Recipe, Modulation]":
    """Return the recipe and the modulation that the options name."""
    from modulate.config.recipe import load_recipe
    from modulate.modulation.module import Modulation
    from modulate.runs.run import Run

    if run is not None and modulation is None and recipe is None:
        opened = Run.open(run)
        return opened.recipe, Modulation.from_pretrained(opened.weights)
    if run is None and modulation is not None and recipe is not None:
        return load_recipe(recipe), Modulation.from_pretrained(modulation)
    raise RecipeError(
        "No model is named. Give either --run RUN, or --modulation DIR together with --recipe"
        " RECIPE."
    )


def _show(options: list[str], answers: "list[Answer]") -> None:
    """Print the answers side by side, the one with the signal first."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console()
    table = Table("Option", *(answer.condition for answer in answers))
    for index, text in enumerate(options):
        cells = []
        for answer in answers:
            mark = " ←" if answer.choice == index else ""
            cells.append(f"{100 * answer.probabilities[index]:.1f} %{mark}")
        table.add_row(escape(text), *cells)
    console.print(table)
    own = answers[0]
    console.print(
        f"The signal reached {own.active_steps} of {own.steps} steps; {own.tokens} visual tokens"
        " got a residual."
    )
    if own.active_steps == 0:
        console.print(
            "Warning: the signal is active at no step, so it acts like an empty one.",
            style="yellow",
        )
    ratios = ", ".join(f"layer {layer}: {ratio:.3f}" for layer, ratio in own.ratio.items())
    console.print(f"‖Δh‖/‖h‖ on those tokens: {ratios}", highlight=False)

"""``modulate bench``: measure how long a recipe takes and how much memory it needs."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from modulate.cli.arguments import Overrides, Recipe, Trust

if TYPE_CHECKING:
    from rich.table import Table

    from modulate.checks.benchmark import Bench


def bench(
    recipe: Recipe,
    overrides: Overrides = None,
    steps: Annotated[
        int,
        typer.Option(
            min=2,
            help=("Optimizer steps to measure in every stage, and batches in the evaluation."),
        ),
    ] = 24,
    json: Annotated[
        Path | None, typer.Option(help="Also write the measurements to this file.")
    ] = None,
    trust: Trust = False,
) -> None:
    """Measure time and memory over a few dozen steps.

    Prints the time of a step, the memory beside the estimate of `modulate check`, and how long the
    full run will take. Leaves no run behind. host.params.weights=random does without the host's
    weights. Without data, clips of noise of the recipe's shape are used.
    """
    from modulate.checks import benchmark as benches
    from modulate.cli.progress import display
    from modulate.config.recipe import load_recipe
    from modulate.utils.atomic_files import write_json

    with display() as progress:
        loaded = load_recipe(recipe, overrides or ())
        measured = benches.bench(loaded, steps, trust, progress.set_status)
    _show(measured)
    if json is not None:
        write_json(json, measured.as_json())


def _show(measured: "Bench") -> None:
    from rich.console import Console

    console = Console()
    console.width = max(console.width, 110)
    console.print(_table(measured))
    console.print(
        f"A sample is prepared in {measured.first.median:.3g} s, with its features in the cache in"
        f" {measured.again.median:.3g} s."
    )
    if measured.without:
        names = " and ".join(f"`features.{name}`" for name in measured.without)
        console.print(
            f"Measured without {names}: every step is as slow as in the first epoch; later epochs"
            " will be faster.",
            soft_wrap=True,
        )
    if measured.hours:
        parts = ", ".join(f"{name} {hours:.2g} h" for name, hours in measured.hours.items())
        total = sum(measured.hours.values())
        console.print(
            f"The full run: {total:.2g} h, no stage stopped early ({parts}).", soft_wrap=True
        )
    else:
        console.print("There are no data, so the length of the full run is not known.")


def _table(measured: "Bench") -> "Table":
    from rich import box
    from rich.table import Table

    noise = ", clips of noise" if measured.made_up else ""
    table = Table(
        title=f"{measured.recipe} on {measured.device}{noise}",
        title_justify="left",
        box=box.SIMPLE_HEAD,
    )
    for name in ("", "s, median", "80 % of them", "samples/s", "memory, MiB", "estimated", "ratio"):
        table.add_column(name, justify="left" if not name else "right")
    for phase in measured.phases:
        seconds = phase.seconds
        table.add_row(
            f"{phase.name}, {phase.samples} samples",
            f"{seconds.median:.3g}",
            f"{seconds.low:.3g} to {seconds.high:.3g}",
            f"{phase.samples / seconds.median:.3g}",
            f"{phase.peak / 2**20:,.0f}",
            f"{phase.estimated / 2**20:,.0f}",
            f"{phase.ratio:.2f}",
        )
    return table

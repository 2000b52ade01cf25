"""``modulate bench``: measure how long a recipe takes and how much memory it needs."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from modulate.cli.arguments import Overrides, Recipe, Trust

if TYPE_CHECKING:
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
    import json as text

    from modulate.checks import benchmark as benches
    from modulate.cli.progress import display
    from modulate.config.recipe import load_recipe
    from modulate.utils.atomic_files import write_atomically

    with display() as progress:
        measured = benches.bench(
            load_recipe(recipe, overrides or ()), steps, trust, progress.status
        )
    _show(measured)
    if json is not None:
        write_atomically(
            json,
            lambda path: path.write_text(
                text.dumps(measured.as_json(), indent=2) + "\n", encoding="utf-8"
            ),
        )


def _show(found: "Bench") -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console()
    console.width = max(console.width, 110)
    table = Table(
        title=f"{found.recipe} on {found.device}{', clips of noise' if found.made_up else ''}",
        title_justify="left",
        box=box.SIMPLE_HEAD,
    )
    for name in ("", "s, median", "80 % of them", "samples/s", "memory, MiB", "estimated", "ratio"):
        table.add_column(name, justify="left" if not name else "right")
    for phase in found.phases:
        s = phase.seconds
        memory = (
            f"{phase.peak / 2**20:,.0f}",
            f"{phase.estimated / 2**20:,.0f}",
            f"{phase.ratio:.2f}",
        )
        table.add_row(
            f"{phase.name}, {phase.samples} samples",
            f"{s.median:.3g}",
            f"{s.low:.3g} to {s.high:.3g}",
            f"{phase.samples / s.median:.3g}",
            *memory,
        )
    console.print(table)
    console.print(
        f"A sample is prepared in {found.first.median:.3g} s, with its features in the cache in"
        f" {found.again.median:.3g} s."
    )
    if found.without:
        names = " and ".join(f"`features.{name}`" for name in found.without)
        console.print(
            f"Measured without {names}: every step is one of a first epoch, and later ones will be"
            " faster.",
            soft_wrap=True,
        )
    if found.hours:
        parts = ", ".join(f"{name} {hours:.2g} h" for name, hours in found.hours.items())
        console.print(
            f"The full run: {sum(found.hours.values()):.2g} h, no stage stopped early ({parts}).",
            soft_wrap=True,
        )
    else:
        console.print("There are no data, so the length of the full run is not known.")

"""Commands of the tabletop world.

Heavy modules are imported when a command runs, so that ``--help`` stays instant.
"""

from pathlib import Path
from typing import Annotated

import typer

tabletop = typer.Typer(
    name="tabletop",
    help="The tabletop world: generated clips, gaze and questions.",
    no_args_is_help=True,
)


@tabletop.callback()
def _group() -> None:
    """Keep ``make`` a sub-command: typer would promote a single command."""


@tabletop.command()
def make(
    root: Annotated[
        Path, typer.Argument(help="Folder of the world; reused if it already holds the same world.")
    ],
    train: Annotated[int, typer.Option(min=0, help="Number of training videos.")] = 200,
    val: Annotated[int, typer.Option(min=0, help="Number of validation videos.")] = 20,
    test: Annotated[int, typer.Option(min=0, help="Number of test videos.")] = 80,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the world.")] = 0,
    objects: Annotated[
        int,
        typer.Option(
            min=10,
            max=15,
            help="Largest number of objects on a table; tables have up to two fewer.",
        ),
    ] = 13,
    drift: Annotated[
        float,
        typer.Option(
            min=0, max=16, help="Largest shift of the camera from its center, pixels of 128."
        ),
    ] = 4.0,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Number of processes; by default one for each core.")
    ] = None,
) -> None:
    """Generate a world: H.264 videos, fixations, raw gaze, hand, ten question files, splits."""
    from rich.console import Console
    from rich.table import Table

    from modulate.cli.progress import display
    from modulate_tabletop.make import make_world

    sizes = {"train": train, "val": val, "test": test}
    with display() as shown:
        report = lambda done, total: shown.update("videos", done, total)  # noqa: E731
        made = make_world(
            root, **sizes, seed=seed, objects=objects, drift=drift, workers=workers, progress=report
        )
    table = Table(
        "Task", "train", "val", "test", title="Questions (test points for proactive tasks)"
    )
    for name, counts in made["questions"].items():
        table.add_row(name, *(str(counts[split]) for split in ("train", "val", "test")))
    console = Console()
    console.print(table)
    console.print(
        f"{'Reused' if made['reused'] else 'Generated'} {made['root']} in {made['seconds']} s.",
        highlight=False,
        soft_wrap=True,
    )

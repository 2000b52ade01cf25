"""``modulate check``: find mistakes and costs of a recipe before training."""

from typing import TYPE_CHECKING, Annotated

import typer

from modulate.cli.arguments import DEFAULT_CACHE, Cache, Overrides, Recipe, Trust

if TYPE_CHECKING:
    from modulate.checks.findings import CheckReport


def check(
    recipe: Recipe,
    overrides: Overrides = None,
    prepare: Annotated[
        bool, typer.Option(help="First generate or download the data, if the dataset can.")
    ] = False,
    meta: Annotated[
        bool,
        typer.Option(
            "--meta",
            help=(
                "Build host and backbone on meta tensors: no weights are loaded, so a laptop can"
                " check a host of any size."
            ),
        ),
    ] = False,
    cache: Cache = DEFAULT_CACHE,
    trust: Trust = False,
) -> None:
    """Check a recipe before training.

    Checks data, signal coverage, dead layers and settings without effect, and estimates memory,
    operations and disk space. Exit code 1 if there are errors.
    """
    from modulate.checks import check as checks
    from modulate.config.recipe import load_recipe

    report = checks.check(
        load_recipe(recipe, overrides or ()),
        cache,
        prepare=prepare,
        trust_remote_code=trust,
        meta=meta,
    )
    _show(report)
    if not report.ok:
        raise typer.Exit(1)


def _show(report: "CheckReport") -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console()
    console.width = max(console.width, 110)
    table = Table(
        "", "", title=report.recipe, title_justify="left", show_header=False, box=box.SIMPLE
    )
    for name, value in report.figures.items():
        table.add_row(name, value)
    console.print(table)
    style = {"error": "bold red", "warning": "yellow", "info": ""}
    for finding in report.findings:
        console.print(
            f"{finding.level}: {finding.text}",
            style=style[finding.level],
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
    errors = sum(finding.level == "error" for finding in report.findings)
    console.print("No errors." if report.ok else f"{errors} error{'s' if errors > 1 else ''}.")

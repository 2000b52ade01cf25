"""``modulate hosts``: list families of hosts with their contract results, or verify them here.

Only ``--verify`` imports torch: it runs the quick rows of the contract on this machine.
"""

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from typing import Annotated, Any

import typer

from modulate import plugins
from modulate.cli.arguments import AsJson
from modulate.cli.hosts_page import served_by, summary, summary_of_cells
from modulate.cli.output import echo_json
from modulate.errors import PluginError, StorageError, near_matches
from modulate.hosts.verified_versions import (
    LibraryVersions,
    RowResult,
    add_locally_verified,
    contract_of,
    contract_results,
)

Results = dict[str, dict[str, RowResult]]
"""Results by family and title of the contract row."""


def hosts(
    family: Annotated[
        str | None,
        typer.Argument(
            metavar="FAMILY", help="Show every contract row of this family; by default, summaries."
        ),
    ] = None,
    verify: Annotated[
        bool,
        typer.Option(
            "--verify",
            help=(
                "Run the quick contract rows with the installed releases, on a tiny random host of"
                " FAMILY or of every family."
            ),
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """List families of hosts and their contract results.

    Shows which host class serves each family, and which rows of the contract pass with which
    release of transformers.

    --verify runs the contract with the installed releases. Exit code 1 if a row fails. Otherwise
    the result is remembered, and attaching no longer warns about unverified releases.
    """
    results = contract_results(plugins.registry())
    families = results["families"]
    if family is not None and family not in families:
        raise PluginError(f"Unknown family {family!r}. {near_matches(family, families)}")
    chosen = {family: families[family]} if family else families
    if verify:
        verify_here(chosen, LibraryVersions.installed(), as_json)
    elif as_json:
        echo_json({"rows": results["rows"], "families": chosen})
    else:
        _show(chosen, results["rows"] if family else None)


def _show(families: Mapping[str, Any], rows: Mapping[str, str] | None) -> None:
    """Print one line per family and release; with ``rows``, also every cell."""
    width = max((len(name) for name in families), default=0)
    for name, releases in families.items():
        for release, result in releases.items():
            typer.echo(
                f"{name:<{width}}  transformers {release}  {summary_of_cells(result['cells'])} "
                f" {served_by(result)}"
            )
            if rows is None:
                continue
            for row, cell in result["cells"].items():
                typer.echo(_line(cell["outcome"], rows[row], cell.get("reason")))


def _line(outcome: str, title: str, reason: str | None) -> str:
    return f"  {outcome:<14}  {title}{f': {reason}' if reason else ''}"


def verify_here(families: Iterable[str], installed: LibraryVersions, as_json: bool = False) -> None:
    """Run and print the quick contract rows of ``families``; remember those without a failure.

    Raises :class:`PluginError` for a family whose plugin ships no contract, and ``typer.Exit`` (1)
    after a failure.
    """
    if not __debug__:
        raise PluginError(
            "The contract is made of assertions, which python -O leaves out; run without -O and"
            " PYTHONOPTIMIZE."
        )
    start = time.monotonic()
    echo: Callable[[str], None] = (lambda text: None) if as_json else typer.echo
    echo(str(installed))
    results = _run_contract(families, echo)
    failed = [
        family
        for family, rows in results.items()
        if any(result.outcome == "failed" for result in rows.values())
    ]
    passed = [family for family in results if family not in failed]
    note = _remember(installed, passed) if passed else ""
    if as_json:
        cells = {
            family: {title: asdict(result) for title, result in rows.items()}
            for family, rows in results.items()
        }
        echo_json({"versions": asdict(installed), "families": cells})
    counts = summary([result.outcome for rows in results.values() for result in rows.values()])
    echo(f"{counts} in {time.monotonic() - start:.0f} s.{note}")
    if failed:
        echo(
            f"Failed with {installed}: {', '.join(failed)}. Install the releases of the lock, or"
            " report the rows above."
        )
        raise typer.Exit(1)


def _run_contract(families: Iterable[str], echo: Callable[[str], None]) -> Results:
    results: Results = {}
    for family in families:
        contract = contract_of(plugins.registry(), family)
        if contract is None:
            raise PluginError(
                f"The plugin that knows {family!r} ships no contract, so nothing can be run for it."
            )
        echo(family)
        results[family] = {}
        for title, result in contract.verify(family):
            results[family][title] = result
            echo(_line(result.outcome, title, result.reason))
    return results


def _remember(installed: LibraryVersions, passed: list[str]) -> str:
    """Record the families that passed; return a note saying where, or why not."""
    try:
        return f" Remembered in {add_locally_verified(installed, passed)}: {', '.join(passed)}."
    # The rows did pass, even if the record cannot be written.
    except StorageError as error:
        return f" Not remembered: {error}"

"""``modulate hosts``: families of hosts, and what the contract suite saw of each under which
version of transformers.

Nothing here imports torch, except ``--verify``, which runs the contract's quick rows on this
machine.
"""

import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict
from typing import Annotated, Any

import typer

from modulate import plugins
from modulate.cli.arguments import AsJson
from modulate.cli.output import echo_json
from modulate.errors import PluginError, StorageError, near_matches
from modulate.hosts.verified_versions import (
    SUITE,
    LibraryVersions,
    RowResult,
    add_locally_verified,
    contract_of,
    contract_results,
)


def hosts(
    family: Annotated[
        str | None,
        typer.Argument(
            metavar="FAMILY", help="a family, to see every row; without it all families, summed up"
        ),
    ] = None,
    verify: Annotated[
        bool,
        typer.Option(
            "--verify",
            help=(
                "run the contract's quick rows on a tiny random host of FAMILY, or of each family,"
                " here and now"
            ),
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """List families of hosts: what serves them, and which rows of the contract pass under which
    version of transformers.

    With --verify: prove the versions that are installed, row by row. Exit code 1 when a row fails;
    else the result is remembered for these versions, and attaching no longer warns that nobody
    verified them.
    """
    data = contract_results(plugins.registry())
    rows = data["rows"]
    families = data["families"]
    if family is not None and family not in families:
        raise PluginError(f"Unknown family {family!r}. {near_matches(family, families)}")
    chosen = {family: families[family]} if family else families
    if verify:
        prove(chosen, LibraryVersions.installed(), as_json)
        return
    if as_json:
        echo_json({"rows": rows, "families": chosen})
        return
    width = max((len(name) for name in chosen), default=0)
    for name, versions in chosen.items():
        for version, seen in versions.items():
            typer.echo(
                f"{name:<{width}}  transformers {version}  {summary(seen['cells'])}  {served(seen)}"
            )
            if family:
                for row, cell in seen["cells"].items():
                    typer.echo(
                        f"  {cell['outcome']:<14} "
                        f" {rows[row]}{f': {reason}' if (reason := cell.get('reason')) else ''}"
                    )


def prove(families: Iterable[str], here: LibraryVersions, as_json: bool = False) -> None:
    """Run the quick rows of ``families``, print them as they come, and remember the families when
    none of their rows failed.

    Raises :class:`PluginError` for a family whose plugin ships no contract, and ``typer.Exit`` (1)
    after a failure.
    """
    if not __debug__:
        raise PluginError(
            "The contract is made of assertions, which python -O leaves out; run without -O and"
            " PYTHONOPTIMIZE."
        )
    start = time.monotonic()
    found = dict[str, dict[str, RowResult]]()
    say = (lambda text: None) if as_json else typer.echo
    say(str(here))
    for family in families:
        contract = contract_of(plugins.registry(), family)
        if contract is None:
            raise PluginError(
                f"The plugin that knows {family!r} ships no contract, so nothing can be run for it."
            )
        say(family)
        found[family] = {}
        for title, cell in contract.verify(family):
            found[family][title] = cell
            say(f"  {cell.outcome:<14}  {title}{f': {cell.reason}' if cell.reason else ''}")
    failed = {
        family: [title for title, cell in cells.items() if cell.outcome == "failed"]
        for family, cells in found.items()
    }
    passed = [family for family, titles in failed.items() if not titles]
    kept = _kept(here, passed) if passed else ""
    if as_json:
        cells = {
            family: {title: asdict(cell) for title, cell in by_title.items()}
            for family, by_title in found.items()
        }
        echo_json({"versions": asdict(here), "families": cells})
    counted = summary(
        {
            title: asdict(cell)
            for family, cells in found.items()
            for title, cell in ((f"{family} {t}", c) for t, c in cells.items())
        }
    )
    say(f"{counted} in {time.monotonic() - start:.0f} s." + kept)
    if len(passed) < len(found):
        say(
            f"Failed with {here}:"
            f" {', '.join(family for family, titles in failed.items() if titles)}. Install the"
            " releases of the lock, or report the rows above."
        )
        raise typer.Exit(1)


def _kept(here: LibraryVersions, passed: list[str]) -> str:
    """Remember the families that passed; return what there is to say of it."""
    try:
        return f" Remembered in {add_locally_verified(here, passed)}: {', '.join(passed)}."
    except StorageError as error:  # what was proved stays proved
        return f" Not remembered: {error}"


def summary(cells: dict[str, dict[str, str]]) -> str:
    """Return how many rows pass, are refused, are not applicable, were not run."""
    counted = Counter(cell["outcome"] for cell in cells.values())
    return ", ".join(
        f"{counted[outcome]} {outcome}"
        for outcome in ("pass", "refused", "not applicable", "not run", "failed")
        if counted[outcome]
    )


def served(seen: dict[str, Any]) -> str:
    """Return what serves a family."""
    by = "the generic host" if seen["served_by"] == "Host" else seen["served_by"]
    return (
        f"{by},"
        f" {'encodes videos' if seen['encodes'] else 'does not encode videos: give inputs and grids'}"
    )


# --- the page


def page(registry: plugins.Registry, note: str) -> str:
    """Return the reference page: for every version of transformers the matrix of rows × hosts, and
    below it every reason.
    """
    data = contract_results(registry)
    versions: dict[str, dict[str, Any]] = {}
    for name, by_version in data["families"].items():
        for version, seen in by_version.items():
            versions.setdefault(version, {})[name] = seen
    parts = [
        note,
        "# Hosts",
        INTRODUCTION,
        _table(
            ("family", *versions),
            [_standing(name, by, versions) for name, by in data["families"].items()],
        ),
    ]
    for version, families in versions.items():
        first = next(iter(families.values()))
        parts += [
            f"## transformers {version}",
            (
                f"{LibraryVersions(version, first['torch'], first.get('peft', '')).without_transformers()}, on"
                f" {first['device']}."
            ),
            *_matrix(data["rows"], families),
        ]
    return "\n\n".join(parts) + "\n"


INTRODUCTION = f"""Every row of the contract on every family of hosts: real transformers classes with tiny random weights, compared with a slow reference that
knows nothing of how modulate finds tokens. A cell is **pass**, **refused** (an error says why; no residual goes astray) or **n/a**; the number is that of
its reason below the table.

`{SUITE}` runs the suite, slow rows too, and notes what it saw; then `python -m modulate.cli.reference` writes this page: `make hosts` does both with the
locked, the newest and the oldest releases. `modulate hosts` prints the same, and `modulate hosts --verify` runs the quick rows on [your own](../how-to/install.md).
Any other model that follows transformers' conventions is served by the generic host; [add a host](../how-to/add-a-host.md) puts it into this table."""


def _standing(name: str, by_version: dict[str, Any], versions: dict[str, Any]) -> tuple[str, ...]:
    newest = next(iter(by_version.values()))
    return f"`{name}`: {served(newest)}", *(
        summary(by_version[v]["cells"]) if v in by_version else "not there" for v in versions
    )


def _matrix(rows: dict[str, str], families: dict[str, Any]) -> list[str]:
    reasons: dict[str, int] = {}
    lines = []
    for row, title in rows.items():
        cells = []
        for seen in families.values():
            cell = seen["cells"].get(row)
            if cell is None:
                raise PluginError(
                    f"The contract row {row!r} was not seen on every host; run `{SUITE}`."
                )
            short = {"not applicable": "n/a"}.get(cell["outcome"], cell["outcome"])
            cells.append(
                f"{short} {reasons.setdefault(cell['reason'], len(reasons) + 1)}"
                if cell.get("reason")
                else short
            )
        lines.append((title, *cells))
    listed = "\n".join(f"{number}. {reason}" for reason, number in reasons.items())
    return [
        _table(("row", *(f"`{name}`" for name in families)), lines),
        *([listed] if listed else []),
    ]


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    return "\n".join(
        f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |"
        for line in (head, ("---",) * len(head), *rows)
    )

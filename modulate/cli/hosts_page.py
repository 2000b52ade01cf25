"""The reference page of hosts: contract rows × families, for every release of transformers."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from modulate import plugins
from modulate.errors import PluginError
from modulate.hosts.verified_versions import SUITE, LibraryVersions, contract_results

OUTCOMES = ("pass", "refused", "not applicable", "not run", "failed")

INTRODUCTION = f"""\
Every row of the contract on every family of hosts: real transformers classes with tiny random
weights, compared with a slow reference implementation that does not know how modulate finds visual
tokens. A cell is **pass**, **refused** (an error says why; no residual reaches a wrong token) or
**n/a**; its number is that of the reason below the table.

`{SUITE}` runs the suite with its slow rows and records the outcomes. Then
`python -m modulate.cli.reference` writes this page. `make hosts` does both with the locked, the
newest and the oldest releases. `modulate hosts` prints the same table, and `modulate hosts
--verify` runs the quick rows on [your own releases](../how-to/install.md). The generic host serves
any other model that follows the conventions of transformers; [add a host](../how-to/add-a-host.md)
to see it in this table."""


def summary(outcomes: Sequence[str]) -> str:
    """Return how many rows there are of each outcome, such as "30 pass, 2 refused"."""
    counts = Counter(outcomes)
    return ", ".join(f"{counts[name]} {name}" for name in OUTCOMES if counts[name])


def summary_of_cells(cells: Mapping[str, Mapping[str, str]]) -> str:
    """Return the :func:`summary` of recorded cells."""
    return summary([cell["outcome"] for cell in cells.values()])


def served_by(result: Mapping[str, Any]) -> str:
    """Return which host class serves a family."""
    return "the generic host" if result["served_by"] == "Host" else str(result["served_by"])


ENCODING = """\
## How conversations are encoded

Prompts are made by the model's own chat template and processor; every frame is shown, whole and
once. Families without videos see a clip as one picture a frame. The last columns say whether the
host is told when the frames were shown (the visual grid has their true times in any case), and
whether one conversation may show a clip and a picture. Each family was measured with transformers'
own processor, and each trains one epoch in the test suite, except that transformers 5.24 cannot run
`llama4` at all."""


def _encodings(encodings: Mapping[str, Mapping[str, str]]) -> str:
    head = ("family", "served by", "a clip is given as", "a picture is given as", "times", "both")
    keys = ("clip", "picture", "times", "together")
    lines = [
        (f"`{family}`", served_by(record), *(record[key] for key in keys))
        for family, record in encodings.items()
    ]
    return _table(head, lines)


def page(registry: plugins.Registry, note: str) -> str:
    """Return the page: a summary, then per transformers release the matrix and its reasons."""
    results = contract_results(registry)
    by_release: dict[str, dict[str, Any]] = {}
    for family, releases in results["families"].items():
        for release, result in releases.items():
            by_release.setdefault(release, {})[family] = result
    lines = [
        _overview_row(family, releases, list(by_release))
        for family, releases in results["families"].items()
    ]
    parts = [note, "# Hosts", INTRODUCTION, _table(("family", *by_release), lines)]
    if results["encodings"]:
        parts += [ENCODING, _encodings(results["encodings"])]
    for release, families in by_release.items():
        first = next(iter(families.values()))
        versions = LibraryVersions(release, first["torch"], first.get("peft", ""))
        parts.append(f"## transformers {release}")
        parts.append(f"{versions.without_transformers()}, on {first['device']}.")
        parts += _matrix(results["rows"], families)
    return "\n\n".join(parts) + "\n"


def _overview_row(
    family: str, releases: Mapping[str, Any], columns: Sequence[str]
) -> tuple[str, ...]:
    newest = next(iter(releases.values()))
    cells = [
        summary_of_cells(releases[release]["cells"]) if release in releases else "not there"
        for release in columns
    ]
    return f"`{family}`: {served_by(newest)}", *cells


def _matrix(rows: Mapping[str, str], families: Mapping[str, Any]) -> list[str]:
    """Return the table of one release, and below it the numbered reasons of its cells."""
    numbers: dict[str, int] = {}
    lines = []
    for row, title in rows.items():
        cells = []
        for result in families.values():
            cell = result["cells"].get(row)
            if cell is None:
                raise PluginError(
                    f"The contract row {row!r} was not seen on every host; run `{SUITE}`."
                )
            text = "n/a" if cell["outcome"] == "not applicable" else cell["outcome"]
            if cell.get("reason"):
                # The same reason has the same number in all cells.
                text += f" {numbers.setdefault(cell['reason'], len(numbers) + 1)}"
            cells.append(text)
        lines.append((title, *cells))
    table = _table(("row", *(f"`{name}`" for name in families)), lines)
    reasons = "\n".join(f"{number}. {reason}" for reason, number in numbers.items())
    return [table, reasons] if reasons else [table]


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = []
    for cells in (head, ("---",) * len(head), *rows):
        escaped = [cell.replace("|", "\\|") for cell in cells]
        lines.append(f"| {' | '.join(escaped)} |")
    return "\n".join(lines)

"""``modulate hosts``: families of hosts, and what the contract suite saw of each under which version of transformers.

A plugin that registers hosts may ship a ``verified.json`` beside its ``__init__.py``, written by its suite. Nothing here imports torch.
"""

from collections import Counter
from importlib.resources import files
from typing import Annotated, Any

import typer

from modulate import plugins
from modulate.cli.arguments import AsJson
from modulate.cli.output import echo_json
from modulate.errors import DataError, PluginError, near_matches, shown
from modulate.schema import Record, parse_record

SUITE = "python -m pytest tests/contract --write-hosts"


class Cell(Record):
    """What came of one row of the contract on one host, and why, where it did not pass."""

    outcome: str
    reason: str | None = None


class Host(Record):
    """What was seen of one family of hosts."""

    served_by: str
    encodes: bool
    cells: dict[str, Cell]


class Seen(Record):
    """What was seen under one version of transformers."""

    torch: str
    device: str
    hosts: dict[str, Host]


class Verified(Record):
    """verified.json: titles of the contract's rows, and what was seen by version of transformers."""

    rows: dict[str, str]
    versions: dict[str, Seen]


def hosts(
    family: Annotated[str | None, typer.Argument(metavar="FAMILY", help="a family, to see every row; without it all families, summed up")] = None,
    as_json: AsJson = False,
) -> None:
    """List families of hosts: what serves them, and which rows of the contract pass under which version of transformers."""
    data = verified(plugins.registry())
    rows, families = data["rows"], data["families"]
    if family is not None and family not in families:
        raise PluginError(f"Unknown family {family!r}. {near_matches(family, families)}")
    chosen = {family: families[family]} if family else families
    if as_json:
        echo_json({"rows": rows, "families": chosen})
        return
    width = max((len(name) for name in chosen), default=0)
    for name, versions in chosen.items():
        for version, seen in versions.items():
            typer.echo(f"{name:<{width}}  transformers {version}  {summary(seen['cells'])}  {served(seen)}")
            if family:
                for row, cell in seen["cells"].items():
                    typer.echo(f"  {cell['outcome']:<14}  {rows[row]}{f': {reason}' if (reason := cell.get('reason')) else ''}")


def verified(registry: plugins.Registry) -> dict[str, Any]:
    """Return {"rows": {row: title}, "families": {family: {transformers version: what was seen}}} of every plugin that registers hosts."""
    rows: dict[str, str] = {}
    families: dict[str, dict[str, Any]] = {}
    for owner in sorted({c.plugin for (kind, _), c in registry.components.items() if kind == "host"}):
        plugin: Any = registry.manager.get_plugin(owner)
        path = files(plugin.__name__) / "verified.json" if hasattr(plugin, "__path__") else None
        if path is None or not path.is_file():
            continue
        data = _read(path, owner)
        rows |= data.rows
        for version in sorted(data.versions, key=_order, reverse=True):
            seen = data.versions[version]
            for name, host in seen.hosts.items():
                families.setdefault(name, {})[version] = host.model_dump(exclude_unset=True) | {"torch": seen.torch, "device": seen.device}
    return {"rows": rows, "families": families}


def _read(path: Any, owner: str) -> Verified:
    """Return what a plugin's file says. Raises :class:`PluginError` naming plugin, file and key."""
    what, advice = "note of what was verified of hosts", f"`{SUITE}` writes it."
    try:
        found = parse_record(path.read_bytes(), Verified, str(path), what, advice)
        if unknown := sorted({row for v in found.versions.values() for h in v.hosts.values() for row in h.cells} - found.rows.keys()):
            raise DataError(f"{path}: the row {shown(unknown[0])} has no title among its rows. {advice}")
    except (OSError, DataError) as error:
        raise PluginError(f"Plugin {owner!r}: {error}") from error
    return found


def _order(version: str) -> list[int]:
    """Return the numbers of a version, −1 for parts that are none."""
    return [int(part) if part.isdecimal() and len(part) < 10 else -1 for part in version.split(".")]


def summary(cells: dict[str, dict[str, str]]) -> str:
    """Return how many rows pass, are refused, are not applicable."""
    counted = Counter(cell["outcome"] for cell in cells.values())
    return ", ".join(f"{counted[outcome]} {outcome}" for outcome in ("pass", "refused", "not applicable") if counted[outcome])


def served(seen: dict[str, Any]) -> str:
    """Return what serves a family."""
    by = "the generic host" if seen["served_by"] == "Host" else seen["served_by"]
    return f"{by}, {'encodes videos' if seen['encodes'] else 'does not encode videos: give inputs and grids'}"


# --- the page ---------------------------------------------------------------------------------------------------------------------------


def page(registry: plugins.Registry, note: str) -> str:
    """Return the reference page: for every version of transformers the matrix of rows × hosts, and below it every reason."""
    data = verified(registry)
    versions: dict[str, dict[str, Any]] = {}
    for name, by_version in data["families"].items():
        for version, seen in by_version.items():
            versions.setdefault(version, {})[name] = seen
    parts = [note, "# Hosts", INTRODUCTION, _table(("family", *versions), [_standing(name, by, versions) for name, by in data["families"].items()])]
    for version, families in versions.items():
        first = next(iter(families.values()))
        parts += [f"## transformers {version}", f"torch {first['torch']}, on {first['device']}.", *_matrix(data["rows"], families)]
    return "\n\n".join(parts) + "\n"


INTRODUCTION = f"""Every row of the contract on every family of hosts: real transformers classes with tiny random weights, compared with a slow reference that
knows nothing of how modulate finds tokens. A cell is **pass**, **refused** (an error says why; no residual goes astray) or **n/a**; the number is that of
its reason below the table.

`{SUITE}` runs the suite, slow rows too, and notes what it saw; then `python -m modulate.cli.reference` writes this page. `modulate hosts` prints the same.
Any other model that follows transformers' conventions is served by the generic host; [add a host](../how-to/add-a-host.md) puts it into this table."""


def _standing(name: str, by_version: dict[str, Any], versions: dict[str, Any]) -> tuple[str, ...]:
    newest = next(iter(by_version.values()))
    return f"`{name}`: {served(newest)}", *(summary(by_version[v]["cells"]) if v in by_version else "not there" for v in versions)


def _matrix(rows: dict[str, str], families: dict[str, Any]) -> list[str]:
    reasons: dict[str, int] = {}
    lines = []
    for row, title in rows.items():
        cells = []
        for seen in families.values():
            cell = seen["cells"].get(row)
            if cell is None:
                raise PluginError(f"The contract row {row!r} was not seen on every host; run `{SUITE}`.")
            short = {"not applicable": "n/a"}.get(cell["outcome"], cell["outcome"])
            cells.append(f"{short} {reasons.setdefault(cell['reason'], len(reasons) + 1)}" if cell.get("reason") else short)
        lines.append((title, *cells))
    listed = "\n".join(f"{number}. {reason}" for reason, number in reasons.items())
    return [_table(("row", *(f"`{name}`" for name in families)), lines), *([listed] if listed else [])]


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in (head, ("---",) * len(head), *rows))

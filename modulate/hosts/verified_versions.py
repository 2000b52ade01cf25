"""Which releases of the libraries that hosts come from were verified: by us, as data of plugins,
and by the user, on this machine.

A plugin that registers hosts may ship a ``verified.json`` beside its ``__init__.py``, written by
its suite, and a sub-package ``contract`` whose ``verify(family)`` yields (title, :class:`Cell`) of
every row that is quick. Nothing here imports torch.
"""

import functools
import json
import os
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, fields
from importlib import import_module
from importlib.metadata import version
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from modulate import plugins
from modulate.errors import DataError, PluginError, UnverifiedWarning, shown
from modulate.utils.atomic_files import write_atomically
from modulate.utils.schema import Record, parse_record

FOLDER = "MODULATE_CACHE"
"""Environment variable: the folder in which a machine's own verifications are remembered."""


SUITE = "python -m pytest tests/contract --write-hosts"
"""The command that writes a plugin's ``verified.json``."""


class SeenCell(Record):
    """What came of one row of the contract on one host, and why, where it did not pass."""

    outcome: str
    reason: str | None = None


class SeenHost(Record):
    """What was seen of one family of hosts."""

    served_by: str
    encodes: bool
    cells: dict[str, SeenCell]


class VerifiedReleases(Record):
    """What was seen under one version of transformers."""

    torch: str
    device: str
    peft: str = ""
    hosts: dict[str, SeenHost]


class Verified(Record):
    """verified.json: titles of the contract's rows, and what was seen by version of transformers."""

    rows: dict[str, str]
    versions: dict[str, VerifiedReleases]


@dataclass(frozen=True)
class Cell:
    """What came of one row on one host: "pass", "refused", "not applicable" or "failed", and why it
    is not a pass.
    """

    outcome: str
    reason: str = ""


@dataclass(frozen=True)
class Versions:
    """Releases that belong together, without what stands behind a plus sign (which device they were
    built for).
    """

    transformers: str
    torch: str
    peft: str = ""  # "": not noted

    @classmethod
    def installed(cls) -> "Versions":
        """Return those that this process would import."""
        return cls(**{field.name: version(field.name).partition("+")[0] for field in fields(cls)})

    def beside(self) -> str:
        """Return all but transformers', as text."""
        return ", ".join(
            f"{name} {value}"
            for name, value in asdict(self).items()
            if value and name != "transformers"
        )

    def __str__(self) -> str:
        return f"transformers {self.transformers}, {self.beside()}"


def recorded(registry: plugins.Registry) -> dict[str, Any]:
    """Return {"rows": {row: title}, "families": {family: {transformers version: what was seen}}} of
    every plugin that registers hosts.
    """
    rows: dict[str, str] = {}
    families: dict[str, dict[str, Any]] = {}
    for _, data in _records(registry):
        rows |= data["rows"]
        for release in sorted(data["versions"], key=_order, reverse=True):
            seen = data["versions"][release]
            beside = {name: value for name, value in seen.items() if name != "hosts"}
            for name, host in seen["hosts"].items():
                families.setdefault(name, {})[release] = host | beside
    return {"rows": rows, "families": families}


def contract_of(registry: plugins.Registry, family: str) -> Any:
    """Return the ``contract`` of the plugin whose suite knows ``family``; None where it ships none."""
    for package, data in _records(registry):
        known = any(family in seen["hosts"] for seen in data["versions"].values())
        if known and find_spec(f"{package}.contract"):
            return import_module(f"{package}.contract")
    return None


def _records(registry: plugins.Registry) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield package and record of every plugin that registers hosts and ships a record, in the
    order of their names.
    """
    for name in sorted(
        {c.plugin for (kind, _), c in registry.components.items() if kind == "host"}
    ):
        plugin: Any = registry.manager.get_plugin(name)
        path = files(plugin.__name__) / "verified.json" if hasattr(plugin, "__path__") else None
        if path is not None and path.is_file():
            yield plugin.__name__, _read(path, name).model_dump(exclude_unset=True)


def _read(path: Any, owner: str) -> Record:
    """Return what a plugin's file says. Raises :class:`PluginError` naming plugin, file and key."""
    what = "note of what was verified of hosts"
    advice = f"`{SUITE}` writes it."
    try:
        found = parse_record(path.read_bytes(), Verified, str(path), what, advice)
        unknown = sorted(
            {row for v in found.versions.values() for h in v.hosts.values() for row in h.cells}
            - found.rows.keys()
        )
        if unknown:
            raise DataError(
                f"{path}: the row {shown(unknown[0])} has no title among its rows. {advice}"
            )
    except (OSError, DataError) as error:
        raise PluginError(f"Plugin {owner!r}: {error}") from error
    return found


def _order(release: str) -> list[int]:
    """Return the numbers of a version, −1 for parts that are none."""
    return [int(part) if part.isdecimal() and len(part) < 10 else -1 for part in release.split(".")]


def _minor(release: str) -> list[int]:
    return _order(release)[:2]


# --- what was verified


def doubt(here: Versions, seen: Iterable[Versions]) -> str:
    """Return which of the releases ``here`` is outside what was ``seen``, and why that counts; ""
    when none is.

    transformers changes what hosts look like from one minor release to the next: its minor release
    must have been seen. torch and peft keep what we use of them: theirs must be between the oldest
    and the newest that were seen. Patch releases are not told apart.
    """
    seen = list(seen)
    known = sorted({tuple(_minor(v.transformers)) for v in seen})
    if known and tuple(_minor(here.transformers)) not in known:
        return (
            f"transformers {here.transformers}; it was with"
            f" {', '.join('.'.join(map(str, v)) for v in known)}"
        )
    for name in ("torch", "peft"):
        mine = getattr(here, name)
        theirs = sorted((getattr(v, name) for v in seen if getattr(v, name)), key=_order)
        if theirs and not _minor(theirs[0]) <= _minor(mine) <= _minor(theirs[-1]):
            return f"{name} {mine}; it was with {theirs[0]} to {theirs[-1]}"
    return ""


def releases(registry: plugins.Registry) -> list[Versions]:
    """Return the releases that plugins' suites were run with."""
    found = {}
    for by_release in recorded(registry)["families"].values():
        for release, seen in by_release.items():
            found[release] = Versions(release, seen["torch"], seen.get("peft", ""))
    return list(found.values())


# --- what this machine verified


def notes() -> Path:
    """Return the file in which this machine's verifications are remembered."""
    base = (
        os.environ.get(FOLDER)
        or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "modulate"
    )
    return Path(base) / "verified.json"


def remembered(here: Versions) -> set[str]:
    """Return the families that this machine verified with the releases ``here`` and this modulate;
    none where the notes cannot be read.
    """
    try:
        kept = json.loads(notes().read_text(encoding="utf-8"))
        return {
            family for note in kept if note["versions"] == _key(here) for family in note["families"]
        }
    except (OSError, ValueError, TypeError, KeyError):  # none yet, or another program's
        return set()


def remember(here: Versions, families: Iterable[str]) -> Path:
    """Note that ``families`` passed with the releases ``here``; return the file.

    Raises :class:`StorageError` where it cannot be written.
    """
    path = notes()
    try:
        kept = [
            note
            for note in json.loads(path.read_text(encoding="utf-8"))
            if note["versions"] != _key(here)
        ]
    except (OSError, ValueError, TypeError, KeyError):  # as above
        kept = []
    kept.append({"versions": _key(here), "families": sorted(remembered(here) | set(families))})
    write_atomically(
        path,
        lambda temporary: temporary.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8"),
    )
    _warning.cache_clear()
    return path


def _key(here: Versions) -> dict[str, str]:
    from modulate import __version__

    return asdict(here) | {"modulate": __version__}


# --- the warning


def warn_if_unverified(model_type: str) -> None:
    """Warn, once in a process, when nobody has verified hosts like ``model_type`` with the releases
    installed.
    """
    text = _warning(model_type)
    if text and not _said:
        _said.append(text)
        warnings.warn(text, UnverifiedWarning, stacklevel=4)


_said: list[str] = []


@functools.cache
def _warning(model_type: str) -> str:
    registry = plugins.registry()
    here = Versions.installed()
    try:
        why = doubt(here, releases(registry))
    # a plugin's record that cannot be read: `modulate hosts` says so, attaching does not depend on
    # it
    except PluginError:
        return ""
    if not why:
        return ""
    known = recorded(registry)["families"]
    own = remembered(here)
    needed = {model_type} if model_type in known else set()
    if own and needed <= own:
        return ""
    command = " ".join(["modulate hosts --verify", *sorted(needed)])
    return (
        f"modulate was never verified with {why}. `{command}` proves it for your versions, and ends"
        " this warning."
    )
